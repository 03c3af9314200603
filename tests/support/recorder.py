"""What each phase of a training began with, ended with and was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import pytest
import torch

from consistentee.training import phase as phase_module
from consistentee.training.trainer import PhaseTrainer


class Recorder(PhaseTrainer):
    """A trainer that keeps what each phase began with, ended with and was trained on, and the
    threads of its steps.
    """

    phases: ClassVar[list[Recorder]] = []

    def train(self, *args, **kwargs):
        self.before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.threads: set[int] = set()
        result = super().train(*args, **kwargs)
        self.after = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        Recorder.phases.append(self)
        return result

    def compute_loss(self, *args, **kwargs):
        self.threads.add(torch.get_num_threads())
        return super().compute_loss(*args, **kwargs)


@contextmanager
def recorded() -> Iterator[list[Recorder]]:
    """The phases that are trained inside, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phase_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        yield Recorder.phases


def moved(phase: Recorder) -> set[str]:
    """What a phase changed: the trunk, the classifiers (with poolers), the policies."""

    def part(name: str) -> str:
        if name.startswith("backbone."):
            return "trunk"
        return "policies" if ".policy." in name else "classifiers"

    return {part(n) for n, p in phase.before.items() if not torch.equal(p, phase.after[n])}
