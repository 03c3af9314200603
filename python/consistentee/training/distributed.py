"""The processes that ``torchrun`` or ``accelerate launch`` started for one run."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """This process among those that share the run; alone where nothing started others."""
    # Told of no CPU, it takes processes without an accelerator for strangers to each other.
    return PartialState(cpu=not torch.accelerator.is_available())
