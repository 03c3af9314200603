"""A task for the command line, and what a call of it gave."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import NamedTuple

PRAISE = ["good", "fine", "great", "lovely"]
BLAME = ["bad", "poor", "awful", "dull"]
REST = ["film", "plot", "cast", "scene", "the", "a", "was", "very"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *PRAISE, *BLAME, *REST]

TRAINED_WITH = ("--epochs", 1, "--batch-size", 16, "--seed", 7, "--alpha", 0.1)


STAGE = re.compile(r"[a-z_. ]+: \d+ of \d+ in \d\d:\d\d, .*")


class Run(NamedTuple):
    code: int
    out: str
    err: str


def write_rows(path: Path, rows: int, seed: int) -> None:
    """Sentences whose class is their first word's."""
    choose = random.Random(seed)
    lines = ["sentence\tlabel"]
    for _ in range(rows):
        praise = choose.random() < 0.5
        first = choose.choice(PRAISE if praise else BLAME)
        rest = choose.choices(REST, k=choose.randint(1, 9))
        lines.append(f"{' '.join([first, *rest])}\t{'praise' if praise else 'blame'}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_one_line(done: Run, *parts: str) -> None:
    """After the lines of the stages that are done."""
    lines = [line for line in done.err.splitlines() if not STAGE.fullmatch(line)]
    assert done.code == 2
    assert len(lines) == 1, done.err
    assert lines[0].startswith("consistentee: ")
    for part in parts:
        assert part in lines[0]
