"""A Hugging Face classifier, packed, and its labels: python examples/classify.py MODEL TEXT..."""

import sys

from transformers import AutoTokenizer

from consistentee_ext import FastEarlyExitEncoder

name, *texts = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = FastEarlyExitEncoder.from_pretrained(name)  # the line that was AutoModelFor...

output = model(**tokenizer(texts, padding=True, return_tensors="pt"))
probabilities = output.logits.softmax(dim=-1)
for text, row, layers in zip(texts, probabilities, output.exit_layers.tolist(), strict=True):
    label = model.config.id2label[int(row.argmax())]
    print(f"{label} {row.max():.3f}, {layers} of {model.num_layers} layers: {text}")
