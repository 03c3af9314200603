"""The same inside a transformers pipeline: python examples/pipeline.py MODEL TEXT..."""

import sys

from transformers import AutoTokenizer, pipeline

from consistentee_ext import FastEarlyExitEncoder

name, *texts = sys.argv[1:]
classify = pipeline(
    "text-classification",
    model=FastEarlyExitEncoder.from_pretrained(name),
    tokenizer=AutoTokenizer.from_pretrained(name),
)
for text, answer in zip(texts, classify(texts, batch_size=32), strict=True):
    print(f"{answer['label']} {answer['score']:.3f}: {text}")
