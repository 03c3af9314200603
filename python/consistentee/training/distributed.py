"""The processes that ``torchrun`` or ``accelerate launch`` started for one run."""

from __future__ import annotations

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """The state of this process and the others of its run; alone if no launcher started others."""
    # Without cpu=True, PartialState does not join CPU-only processes into one group.
    return PartialState(cpu=not torch.accelerator.is_available())
