"""The operations on packed tokens. A backend is a module here with the functions that its device's
passes call; it is chosen once and handed on.

`reference` says what each operation computes, and is the backend ``torch``. ``cpu`` calls the C++
ops, ``cuda`` and ``triton`` the kernels of a device.
"""

from __future__ import annotations

import importlib
from typing import Protocol, cast

from torch import Tensor

from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import PLAIN, AttentionForm, HeadWeights, LinearWeights

_MODULES = {"torch": "reference", "cpu": "cpu", "cuda": "cuda", "triton": "triton"}


class LayerOps(Protocol):
    """What every backend has; see `consistentee_ext.ops.reference`."""

    def embed(
        self,
        ids: Tensor,
        types: Tensor,
        positions: Tensor,
        word_table: Tensor,
        type_table: Tensor,
        position_table: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        """Layer norm of the sum of three embeddings, ``[T, H]``."""

    def linear(self, x: Tensor, weights: LinearWeights) -> Tensor:
        """``f(x W^T + b)``, ``[T, O]``."""

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        query_offsets: Tensor,
        key_offsets: Tensor,
        num_heads: int,
        max_queries: int | None = None,
        max_keys: int | None = None,
        form: AttentionForm = PLAIN,
    ) -> Tensor:
        """Self-attention within each row, ``[Tq, heads * d]``."""

    def add_norm(
        self, hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
    ) -> Tensor:
        """The norm of ``hidden + residual``, ``[T, H]``; may be written over `hidden`."""


class HostOps(LayerOps, Protocol):
    """What ``torch`` and ``cpu`` have beside; the host knows the survivors of each exit step."""

    def pool(self, hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
        """One vector a row, ``[B, H]``: cls, last or mean."""

    def exit_step(
        self,
        batch: PackedBatch,
        pooled: Tensor,
        weights: HeadWeights,
        decision: ExitDecision,
        results: ExitResults,
    ) -> PackedBatch:
        """Classify, decide, write the results; the batch of the rows that stay."""


class DeviceOps(LayerOps, Protocol):
    """What ``cuda`` and ``triton`` have beside; no function waits for the device."""

    def add_norm_pool(
        self,
        hidden: Tensor,
        residual: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        cu_seqlens: Tensor,
        max_length: int,
        pooling: str,
        tickets: Tensor,
        row_ids: Tensor | None = None,
        first_lengths: Tensor | None = None,
    ) -> Tensor:
        """`add_norm` over `hidden`, and the pooling of its rows: cls or mean ``[B, H]``, or pair
        ``[B, 4H]``, which takes `row_ids` ``[B]`` and `first_lengths` ``[N]`` int32.
        """

    def exit_step_async(
        self,
        batch: PackedBatch,
        pooled: Tensor,
        weights: HeadWeights,
        decision: ExitDecision,
        results: ExitResults,
        tickets: Tensor,
        totals: Tensor,
        out: PackedBatch,
    ) -> None:
        """`exit_step`, whose survivors are written to `out`, which has room for all rows."""


def load_ops(backend: str) -> HostOps:
    """The module of ``torch`` or ``cpu``, whose libraries are imported with it."""
    return cast(HostOps, importlib.import_module(f"{__name__}.{_MODULES[backend]}"))


def load_layer_ops(backend: str) -> LayerOps:
    """The module of any backend."""
    return cast(LayerOps, importlib.import_module(f"{__name__}.{_MODULES[backend]}"))


def load_device_ops(backend: str) -> DeviceOps:
    """The module of ``cuda`` or ``triton``, whose libraries are imported with it."""
    return cast(DeviceOps, importlib.import_module(f"{__name__}.{_MODULES[backend]}"))
