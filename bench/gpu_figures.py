"""What a row of the GPU check is, and the runs that its rows time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from gpu_models import Batch, Bench
from gpu_timing import Clock, Run

from consistentee_ext import FastEarlyExitEncoder


class Figure(NamedTuple):
    """One measured value; without one, `note` says why there is none."""

    name: str
    value: float | None
    unit: str
    note: str = ""


Measure = Callable[[Bench, Clock], Iterator[Figure]]


class Row(NamedTuple):
    """A row of the check: what it measures, the seconds it may take on a card."""

    title: str
    limit: float
    measure: Measure


def each(run: Callable[[], object]) -> Run:
    """A run that does the same whatever its number."""
    return lambda _: run()


def over(run: Callable[[Batch], object], batches: Sequence[Batch]) -> Run:
    return lambda number: run(batches[number % len(batches)])


def over_encoder(encoder: FastEarlyExitEncoder, batches: Sequence[Batch]) -> Run:
    return over(lambda batch: encoder(**batch), batches)


def layer_ratio(encoder: FastEarlyExitEncoder, batches: Sequence[Batch]) -> float:
    """L over the mean exit layer."""
    layers = torch.cat([encoder(**batch).exit_layers for batch in batches])
    return encoder.num_layers / layers.double().mean().item()
