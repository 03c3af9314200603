"""Passes of this tree beside those of another checkout, in turn: has a change made BERT slower?

git worktree add /tmp/before HEAD~1    # and build it, or copy its consistentee_ext/_C*.so there
python bench/against.py /tmp/before --batch-size 8 --dtype float32 --pairs 40

Both must give the same logits, bit for bit. The ratio is new over old; its interval is the sign
test's, 95%.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def work(dtype: torch.dtype, rows: int) -> None:
    """Serve timed passes of BERT-base, random weights, exits by confidence: one a line of stdin."""
    from exit_shares import EXIT_SHARES, set_exit_shares
    from transformers import BertConfig

    from consistentee import ConsistentEEConfig, ConsistentEEForSequenceClassification
    from consistentee_ext import FastEarlyExitEncoder

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    config = ConsistentEEConfig(BertConfig(), num_labels=2)
    model = ConsistentEEForSequenceClassification(config).eval()
    lengths = torch.randint(8, 50, (rows,))
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    batch = {"input_ids": torch.randint(0, 30000, mask.shape), "attention_mask": mask}
    encoder = FastEarlyExitEncoder(model, dtype=dtype, criterion="confidence")
    set_exit_shares(encoder, [batch], EXIT_SHARES)
    output = encoder(**batch)
    print(output.exit_layers.tolist(), output.logits.double().sum().item(), flush=True)
    for _ in sys.stdin:
        begin = time.perf_counter()
        encoder(**batch)
        print(time.perf_counter() - begin, flush=True)


def start(tree: Path, options: argparse.Namespace) -> subprocess.Popen[str]:
    """A process that works on the sources of `tree`."""
    command = [sys.executable, __file__, "--work", "--dtype", options.dtype]
    command += ["--batch-size", str(options.batch_size)]
    path = os.pathsep.join((str(tree), str(tree / "python")))
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )


def ask(worker: subprocess.Popen[str]) -> float:
    """The seconds of one pass."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    worker.stdin.write("\n")
    worker.stdin.flush()
    return float(worker.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tree", type=Path, nargs="?", help="the other checkout, built")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(getattr(torch, options.dtype), options.batch_size)
        return
    if options.tree is None or not (options.tree / "consistentee_ext").is_dir():
        parser.error(f"tree: expected a checkout of this project, got {options.tree}")
    workers = [start(tree.resolve(), options) for tree in (options.tree, ROOT)]
    results = [worker.stdout.readline() for worker in workers if worker.stdout is not None]
    if results[0] != results[1] or not results[0]:
        sys.exit(f"the trees give other results:\n{results[0]}{results[1]}")
    for worker in workers * 3:
        ask(worker)
    seconds: list[list[float]] = [[], []]
    for _ in range(options.pairs):
        for number in random.sample((0, 1), 2):
            seconds[number].append(ask(workers[number]))
    ratios = sorted(new / old for old, new in zip(*seconds, strict=True))
    reach = int(len(ratios) / 2 - 0.98 * len(ratios) ** 0.5)
    low, high = ratios[max(reach, 0)], ratios[min(len(ratios) - 1 - reach, len(ratios) - 1)]
    old, new = map(statistics.median, seconds)
    print(
        f"{options.dtype}, B = {options.batch_size}: new over old "
        f"{statistics.median(ratios):.3f} [{low:.3f}, {high:.3f}], "
        f"{1e3 * old:.2f} and {1e3 * new:.2f} ms, {options.pairs} pairs"
    )
    for worker in workers:
        worker.kill()


if __name__ == "__main__":
    main()
