"""Train exits on your rows, choose a threshold, classify: python examples/train_your_own.py
MODEL DATA OUTPUT, where DATA holds train.tsv and dev.tsv with columns sentence and label.
"""

import csv
import subprocess
import sys
from pathlib import Path

from consistentee_ext import FastEarlyExitEncoder

name, data, output = sys.argv[1:]
train = ["consistentee", "train", "--model", name, "--data", data, "--output", output]
calibrate = ["consistentee", "calibrate", output, "--data", f"{data}/dev.tsv"]
subprocess.run(train, check=True)
subprocess.run([*calibrate, "--layer-ratio", "2"], check=True)

model = FastEarlyExitEncoder.from_pretrained(output)
with Path(data, "dev.tsv").open(encoding="utf-8", newline="") as file:
    texts = [row["sentence"] for row in csv.DictReader(file, delimiter="\t")]
layers = model.predict(texts).exit_layers.double().mean().item()
print(f"{layers:.2f} of {model.num_layers} layers a row")
