"""Weights as plain tensors, to be copied, pickled or moved, and laid out again where they run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TypeVar, cast

import torch
from torch import Tensor

from consistentee_ext.ops.onednn import prepack
from consistentee_ext.weights import LinearWeights

Part = TypeVar("Part")


def dense(part: Part) -> Part:
    """A stack or exits whose products are plain matrices."""

    def unpack(linear: LinearWeights) -> LinearWeights:
        weight = linear.weight.to_dense() if linear.prepacked else linear.weight
        return LinearWeights(weight, linear.bias, linear.activation)

    return _map(part, unpack, lambda tensor: tensor)


def place(part: Part, device: torch.device) -> Part:
    """What `dense` gives, on a device and laid out for it."""

    def pack(linear: LinearWeights) -> LinearWeights:
        return prepack(linear.weight.to(device), linear.bias.to(device), linear.activation)

    return _map(part, pack, lambda tensor: tensor.to(device))


def _map(
    part: Part,
    linear: Callable[[LinearWeights], LinearWeights],
    tensor: Callable[[Tensor], Tensor],
) -> Part:
    """`part` with its weights replaced, through dataclasses, named tuples, tuples and mappings."""

    def inner(value: object) -> object:
        if isinstance(value, LinearWeights):
            return linear(value)
        if isinstance(value, Tensor):
            return tensor(value)
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
