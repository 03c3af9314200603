"""The backends that this machine runs CPU tensors with."""

from __future__ import annotations

import torch

from consistentee_ext.backend import availability

CPU = torch.device("cpu")
BACKENDS = [name for name in ("cpu", "torch") if availability(name, CPU).usable]
