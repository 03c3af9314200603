"""What the layers of a Hugging Face module call while they run: hooks, and an attention whose masks
are distances.

Letters: T packed tokens, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from consistentee_ext.weights import AttentionForm

ATTENTION = "consistentee_packed"  # its name in transformers
# Of what models hand to an attention: what means nothing to a pass without cache and dropout, and
# what the mask says already.
_WITHOUT_EFFECT = ("deterministic", "dropout", "position_ids", "sliding_window", "use_cache")
_SAMPLED = 64  # queries at which a mask is looked at: all of them would be a matrix


class UnsupportedError(ValueError):
    """A module cannot run on packed rows, for the reason given."""


class Listener(Protocol):
    """What hooks and attention of a module call while it runs."""

    def begin(self, arguments: Any) -> Any:
        """What a layer is called with, in place of `arguments`."""

    def end(self, hidden: Tensor) -> Tensor:
        """What a layer gives, in place of its hidden states."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """``[1, T, heads, d]`` from ``[1, heads, T, d]`` and keys and values alike."""


_current: ContextVar[Listener] = ContextVar("listener")


def listen(module: nn.Module, inputs: dict[str, Tensor | None], listener: Listener) -> Any:
    """The module's output, with `listener` told of its layers."""
    token = _current.set(listener)
    try:
        return module(**inputs)
    finally:
        _current.reset(token)


def hook_layers(layers: Sequence[nn.Module]) -> None:
    """Let layers tell the listener of the pass."""
    for layer in layers:
        layer.register_forward_pre_hook(_before_layer, with_kwargs=True)
        layer.register_forward_hook(_after_layer)


def _before_layer(layer: nn.Module, args: Any, kwargs: Any) -> Any:
    return _current.get().begin((args, kwargs))


def _after_layer(layer: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return _current.get().end(output)
    if not isinstance(output, tuple):
        raise UnsupportedError(f"its layers give a {type(output).__name__}")
    return (_current.get().end(output[0]), *output[1:])


@dataclass(frozen=True)
class Reach:
    """Stands for a mask: a query attends to the keys with ``low <= q - k <= high``."""

    low: int | None
    high: int | None


def _mask(kv_length: int, mask_function: Callable[..., Tensor], **options: Any) -> Reach:
    """In place of transformers' masks, of as many queries as keys: `mask_function` says of one of
    each, by their places, whether one attends to the other. Padding is not its concern.
    """
    keys = torch.arange(kv_length)
    queries = torch.linspace(0, kv_length - 1, min(kv_length, _SAMPLED)).long()
    zero = torch.zeros(1, 1, 1, 1, dtype=torch.int64)
    seen = mask_function(zero, zero, queries.view(1, 1, -1, 1), keys.view(1, 1, 1, -1))
    seen = seen.expand(1, 1, len(queries), kv_length)[0, 0]
    ahead, behind = int(seen[0].sum()), int(seen[-1].sum())
    reach = Reach(
        low=None if ahead == kv_length else 1 - ahead,
        high=None if behind == kv_length else behind - 1,
    )
    distance = queries[:, None] - keys
    expected = torch.ones_like(seen)
    if reach.low is not None:
        expected &= distance >= reach.low
    if reach.high is not None:
        expected &= distance <= reach.high
    if not torch.equal(seen, expected):
        raise UnsupportedError("its mask does not go by the distance of two tokens alone")
    return reach


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: object,
    scaling: float | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """In place of transformers' attentions."""
    given = [name for name, other in others.items() if other is not None and other is not False]
    unknown = [name for name in given if name not in _WITHOUT_EFFECT]
    if unknown:
        raise UnsupportedError(f"its attention takes {unknown[0]}")
    if not isinstance(attention_mask, Reach):
        raise UnsupportedError("its attention takes a mask that transformers does not make")
    size = query.shape[-1]
    form = AttentionForm(
        num_kv_heads=None if key.shape[1] == query.shape[1] else key.shape[1],
        scale=None if scaling == size**-0.5 else scaling,
        low=attention_mask.low,
        high=attention_mask.high,
        cap=softcap,
    )
    return _current.get().attend(query, key, value, form), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
