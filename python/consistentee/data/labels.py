"""The labels of tables: their names and spelling, and how a column of them is read."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any

from datasets import Dataset


def label_names(table: Dataset) -> list[str]:
    """The distinct labels, also those in sets: by value if all are integers, else as strings."""
    labels = table["label"][:]
    parts = ([label] if isinstance(label, str) else label for label in labels)
    names = sorted(set(chain.from_iterable(parts)))
    try:
        return sorted(names, key=int)
    except ValueError:
        return names


def check_spelling(names: Iterable[str]) -> None:
    """Raise ValueError, listing them, if labels differ by their spelling alone.

    That is by blanks, case or how a number is written: ``pos`` and ``Pos ``, ``1`` and ``1.0``.
    They would be trained as different classes.
    """
    alike: dict[str | float, set[str]] = {}
    for name in names:
        alike.setdefault(_meaning(name), set()).add(name)
    groups = [" and ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1]
    if groups:
        raise ValueError(
            "label: expected one spelling of each label, got some that differ by blanks, case or "
            f"the spelling of a number alone: {'; '.join(groups)}"
        )


def _meaning(name: str) -> str | float:
    """A label without what its spelling leaves open."""
    try:
        number = float(name)
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else " ".join(name.split()).casefold()


def read_sets(values: Iterable[Any], where: str) -> list[list[str]]:
    """Sets of labels from a column: names joined by ``|``, empty for none, or lists of names.

    Blanks around a name are no part of it where names are joined.

    Args:
        values: of N rows.
        where: the file and the column, for messages.

    Raises:
        ValueError: something else, an empty name, a name twice in a row, or one with ``|``.
    """
    return [_read_set(value, f"{where}: row {row}") for row, value in enumerate(values, start=1)]


def _read_set(value: Any, where: str) -> list[str]:
    names: list[str] = value
    if isinstance(value, str):
        names = [name.strip() for name in value.split("|")] if value.strip() else []
    good = isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)
    if not good or any("|" in name for name in names) or len(set(names)) < len(names):
        raise ValueError(
            f"{where}: expected different names joined by '|', or a list of them, got {value!r}"
        )
    return names


def numbers(table: Dataset) -> list[float]:
    """The labels as numbers, for regression.

    Raises:
        ValueError: a label is not a finite number.
    """
    values = []
    for row, label in enumerate(table["label"], start=1):
        try:
            value = float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"label: row {row}: expected a finite number, got {label!r}")
        values.append(value)
    return values
