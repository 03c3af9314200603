"""Where weights live and in which dtype."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from consistentee_ext.ops import layout, onednn_int8
from consistentee_ext.ops.checks import FLOAT_DTYPES
from consistentee_ext.ops.onednn import is_fast
from consistentee_ext.weights import WEIGHT_FORMATS, LinearWeights

Part = TypeVar("Part")


def place(part: Part, device: torch.device) -> Part:
    """A stack or exits on a device, through dataclasses, named tuples, tuples and mappings; what
    has one place in the part has one there. A module is moved, all else is copied.
    """
    placed: dict[int, Any] = {}

    def inner(value: Any) -> Any:
        if id(value) not in placed:
            placed[id(value)] = move(value)
        return placed[id(value)]

    def move(value: object) -> object:
        if isinstance(value, LinearWeights):
            if value.few_rows:
                return value._replace(weight=inner(value.weight), bias=inner(value.bias))
            return layout.move(value, device)
        if isinstance(value, (Tensor, nn.Module)):
            return value.to(device)
        if isinstance(value, tuple):
            make: Callable[..., object] = getattr(type(value), "_make", tuple)  # a named one
            return make(map(inner, value))
        if isinstance(value, Mapping):
            return {key: inner(held) for key, held in value.items()}
        if is_dataclass(value) and not isinstance(value, type):
            changed = {f.name: inner(getattr(value, f.name)) for f in fields(value) if f.init}
            return replace(value, **changed)
        return value

    return cast(Part, inner(part))


def choose_dtype(
    asked: torch.dtype | str | None, weights: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype asked for, where ``"auto"`` is that of the weights, as is the default unless the
    processor is slow in it.
    """
    if isinstance(asked, str):
        named = {str(known).removeprefix("torch."): known for known in FLOAT_DTYPES}
        named["auto"] = weights
        if asked not in named:
            raise ValueError(f"dtype: expected one of {', '.join(named)}, got {asked!r}")
        asked = named[asked]
    if asked is None and weights == torch.float64:
        return torch.float32  # no kernel here computes the other
    dtype = asked or weights
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype: expected one of {FLOAT_DTYPES}, got {dtype}")
    if asked is not None or device.type != "cpu" or is_fast(dtype):
        return dtype
    warnings.warn(
        f"dtype: the model is in {dtype}, which this processor multiplies slowly; it runs in "
        f"float32. dtype={dtype} keeps it.",
        stacklevel=3,
    )
    return torch.float32


def check_weights(weights: str | None, dtype: torch.dtype, device: torch.device) -> None:
    """Raise ValueError unless weights of this format, with the other numbers in `dtype`, run on the
    device.
    """
    if weights is None:
        return
    if weights not in WEIGHT_FORMATS:
        raise ValueError(f"weights: expected None or one of {WEIGHT_FORMATS}, got {weights!r}")
    if device.type != "cpu":
        raise ValueError(f"weights: expected None on {device}, as {weights} ones run on a CPU")
    if dtype not in onednn_int8.dtypes():
        names = " or ".join(str(known) for known in onednn_int8.dtypes())
        raise ValueError(f"dtype: expected {names} with {weights} weights here, got {dtype}")


def usable_device(device: torch.device | str) -> torch.device:
    """The device, with its number; raises ValueError where torch cannot use it."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch not built for it
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch can use here, got {device}: {reason}"
        ) from None
