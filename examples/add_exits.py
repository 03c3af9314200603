"""Make a classifier that you have leave early: python examples/add_exits.py MODEL TEXTS OUTPUT,
where TEXTS has a column text, and no labels.
"""

import csv
import subprocess
import sys
from pathlib import Path

from transformers import AutoTokenizer, pipeline

from consistentee_ext import FastEarlyExitEncoder

name, file, output = sys.argv[1:]
add = ["consistentee", "add-exits", name, "--data", file, "--output", output]
subprocess.run(add, check=True)

with Path(file).open(encoding="utf-8", newline="") as rows:
    texts = [row["text"] for row in csv.DictReader(rows)][:100]
model = FastEarlyExitEncoder.from_pretrained(output)
classify = pipeline(
    "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(name)
)
print(classify(texts[0]))
layers = model.predict(texts).exit_layers.double().mean().item()
print(f"{layers:.2f} of {model.num_layers} layers a row, other answers for 1% at most")
