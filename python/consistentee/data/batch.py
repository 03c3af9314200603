"""A batch of rows as tensors."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Columns of B rows by name: the model's inputs, ``[B, S]``, and what the losses read, ``[B]`` or
# ``[B, C]``.
Batch = Mapping[str, Tensor]
