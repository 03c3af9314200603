"""Peak memory of processes that load BERT-base and classify batches of 32. Linux only.

python bench/peak_memory.py
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from workloads import load_workload

from consistentee.evaluation.evaluate import full_depth_logits, load_model
from consistentee_ext import FastEarlyExitEncoder

ENGINES = ("imports", "hugging-face", "ours", "ours-bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, help="run this one here; its peak in KiB")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    if options.engine:
        run(options.engine, options.checkpoint)
        # Not getrusage: its maximum is inherited from the process that started this one.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert peak is not None
        print(peak[1])
        return
    with tempfile.TemporaryDirectory() as folder:
        workload = load_workload("bert-base", "sst2", 32)
        workload.model.save_pretrained(folder)
        torch.save(workload.batches, Path(folder, "batches.pt"))
        peaks = {name: measure(name, folder) for name in ENGINES}
    print(workload.name)
    for name in ENGINES[1:]:
        share = peaks[name] / peaks["hugging-face"]
        above = peaks[name] - peaks["imports"]
        print(f"{name:14} {peaks[name]:7.0f} MiB  {share:.2f}x  ({above:.0f} MiB above imports)")


def measure(engine: str, folder: str) -> float:
    """The peak of a process of its own, in MiB."""
    command = [sys.executable, __file__, "--engine", engine, "--checkpoint", folder]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(output.split()[-1]) / 1024


@torch.inference_mode()
def run(engine: str, checkpoint: Path) -> None:
    batches = torch.load(checkpoint / "batches.pt", weights_only=True)
    if engine == "imports":
        return
    if engine == "hugging-face":
        model = load_model(checkpoint)
        for batch in batches:
            full_depth_logits(model, batch)
        return
    dtype = torch.bfloat16 if engine.endswith("bf16") else torch.float32
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, dtype=dtype, tokenizer=())
    for batch in batches:
        encoder(**batch)


if __name__ == "__main__":
    main()
