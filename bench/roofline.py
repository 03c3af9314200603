"""What the exit step and the compaction cannot take less than on a GPU: the tables of docs/gpu.md.

python bench/roofline.py
"""

from __future__ import annotations

from typing import NamedTuple


class Card(NamedTuple):
    name: str
    bandwidth: float  # of its memory, bytes a second (the makers' data sheets)
    arithmetic: float  # float32 operations a second outside tensor cores


CARDS = (
    Card("A100 80 GB", 2.04e12, 19.5e12),
    Card("H100 SXM", 3.35e12, 67e12),
    Card("H200", 4.8e12, 67e12),
)
HIDDEN_SIZES = (384, 768, 1024)
ROWS = (1, 8, 32, 128, 1024)
LENGTH, CLASSES, POLICY, STATISTICS, ELEMENT = 128, 2, 32, 5, 2  # bfloat16 hidden states
SURVIVE = 0.8  # of the rows at one exit layer: the rest leave
LAUNCH = 2e-6  # seconds between two dependent small kernels of a stream


class Work(NamedTuple):
    """Bytes that must move, and operations, of one kernel."""

    bytes: float
    operations: float

    def floor(self, card: Card) -> float:
        return max(self.bytes / card.bandwidth, self.operations / card.arithmetic)


def exit_rows(rows: int, size: int) -> Work:
    """Decide and plan: the pooler's product in, weights once, results out."""
    weights = 4 * (CLASSES * (size + 1) + POLICY * (size + STATISTICS + 2) + 1)
    each = ELEMENT * size + 4 * CLASSES + 8 + 4 + 2 * 2 * 4 + 8 + 4 + 1 + 4 + 4 + 8
    operations = 2 * rows * (CLASSES * size + POLICY * (size + STATISTICS))
    return Work(weights + rows * each, operations + 30 * rows * size)  # tanh: about 30


def pooler(rows: int, size: int) -> Work:
    """The product between pooling and decision, by cuBLAS; its operations run on tensor cores."""
    return Work(ELEMENT * (size * size + 2 * rows * size), 0)


def copy_rows(rows: int, size: int) -> Work:
    """Each surviving token is read and written once."""
    return Work(2 * SURVIVE * rows * LENGTH * size * ELEMENT, 0)


def main() -> None:
    print(f"rows of {LENGTH} tokens, bfloat16, C = {CLASSES}, P = {POLICY}, {SURVIVE:.0%} survive")
    print("| H | B | exit rows | pooler | copy |", *(f" {card.name} |" for card in CARDS))
    print("|---|---|---|---|---|" + "---|" * len(CARDS))
    for size in HIDDEN_SIZES:
        for rows in ROWS:
            works = (exit_rows(rows, size), pooler(rows, size), copy_rows(rows, size))
            moved = " | ".join(f"{work.bytes / 1024:,.0f} KiB" for work in works)
            floors = (
                f" {1e6 * sum(work.floor(card) for work in works):.1f} + {3e6 * LAUNCH:.0f} us |"
                for card in CARDS
            )
            print(f"| {size} | {rows} | {moved} |" + "".join(floors))


if __name__ == "__main__":
    main()
