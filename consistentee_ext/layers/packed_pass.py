"""Runs a Hugging Face module whose layers see packed rows, and all else of it padded ones.

Hooks around the layers pack what goes into the first one and unpack what comes out of the last one;
between them rows may leave. The layers' attention is ours, and goes by the masks that transformers
would make. Letters: B rows, S padded length, T packed tokens, H hidden size, d head size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from consistentee_ext.inputs import PackedInputs
from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import AttentionForm

ATTENTION = "consistentee_packed"  # its name in transformers
# Of what models hand to an attention: what means nothing to a pass without cache and dropout, and
# what the mask says already.
_WITHOUT_EFFECT = ("deterministic", "dropout", "position_ids", "sliding_window", "use_cache")
_SAMPLED = 64  # queries at which a mask is looked at: all of them would be a matrix

Path = tuple[int | str, ...]


class UnsupportedError(ValueError):
    """A module cannot run on packed rows, for the reason given."""


class NoRowLeft(Exception):  # noqa: N818 - no error
    """Ends a module's forward."""


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
    given = [name for name, value in others.items() if value is not None and value is not False]
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


class PackedPass:
    """The layers' side of one pass.

    Args:
        inputs: on the device of the module, which gets them padded on the right.
        num_layers: L.
        ops: for the attention.
        leave: which rows stay behind a layer, by its number from 1 to L - 1 and the batch there.
        axes: where the tokens are in a tensor that layers are called with, by its path in the
            arguments; None where it has none.
        learn: whether `axes` is to be filled. The numbers B, S and T must then be no other
            dimension of a tensor.
    """

    def __init__(
        self,
        inputs: PackedInputs,
        num_layers: int,
        ops: LayerOps,
        leave: Callable[[int, PackedBatch], PackedBatch],
        axes: dict[Path, int | None],
        learn: bool = False,
    ) -> None:
        self._cu_seqlens = cu_seqlens = inputs.cu_seqlens
        self._row_ids = inputs.row_ids
        self._num_rows, self._width = len(inputs.row_ids), inputs.max_length
        self._longest = self._width
        self._num_layers = num_layers
        self._ops = ops
        self._leave = leave
        self._axes = axes
        self._learn = learn
        lengths = cu_seqlens.diff().long()
        rows = torch.arange(len(lengths), device=lengths.device)
        self._rows = rows.repeat_interleave(lengths, output_size=len(inputs.ids))
        places = torch.arange(len(inputs.ids), device=lengths.device)
        self._columns = places - cu_seqlens[:-1].long()[self._rows]
        self._calls = 0
        self._packed: dict[int, tuple[Tensor, Tensor]] = {}  # by the id of what is padded

    def begin(self, arguments: Any) -> Any:
        """Cut the padding and the rows that have left out of the arguments."""
        return self._pack_all(arguments, ())

    def end(self, hidden: Tensor) -> Tensor:
        """Let rows leave; behind the last layer, ``[B, S, H]`` with zeros where nothing is left."""
        self._calls += 1
        if self._calls == self._num_layers:
            padded = hidden.new_zeros(self._num_rows, self._width, hidden.shape[-1])
            padded[self._rows, self._columns] = hidden[0]
            return padded
        batch = PackedBatch(hidden[0], self._cu_seqlens, self._row_ids)
        out = self._leave(self._calls, batch)
        if len(out.row_ids) == len(self._row_ids):
            return hidden
        if not len(out.row_ids):
            raise NoRowLeft
        self._keep(torch.isin(self._row_ids, out.row_ids))
        return out.hidden[None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, form: AttentionForm) -> Tensor:
        """Attention within each row."""
        if query.shape[0] != 1 or query.shape[2] != len(self._rows):
            raise UnsupportedError(f"its attention has queries of shape {tuple(query.shape)}")
        heads, size = query.shape[1], query.shape[-1]
        narrower = size - value.shape[-1]  # in some models values are; the op knows one size
        value = nn.functional.pad(value, (0, narrower))
        offsets, longest = self._cu_seqlens, self._longest
        flat = [part[0].transpose(0, 1).flatten(1) for part in (query, key, value)]
        out = self._ops.attention(
            flat[0], flat[1], flat[2], offsets, offsets, heads, longest, longest, form
        )
        return out.view(1, -1, heads, size)[..., : size - narrower]

    def pack(self, padded: Tensor) -> PackedBatch:
        """The rows that are left, of ``[B, S, H]``."""
        hidden = padded[self._rows, self._columns]
        return PackedBatch(hidden, self._cu_seqlens, self._row_ids)

    @property
    def row_ids(self) -> Tensor:
        """Of the rows that are left."""
        return self._row_ids

    def _keep(self, stay: Tensor) -> None:
        lengths = self._cu_seqlens.diff()
        tokens = stay.repeat_interleave(lengths.long(), output_size=len(self._rows))
        self._rows, self._columns = self._rows[tokens], self._columns[tokens]
        self._row_ids, lengths = self._row_ids[stay], lengths[stay]
        ends = lengths.cumsum(0, dtype=torch.int32)
        self._cu_seqlens = nn.functional.pad(ends, (1, 0))
        self._longest = int(lengths.max())
        self._packed.clear()

    def _pack_all(self, value: Any, path: Path) -> Any:
        """`value`, a tree of arguments, with its tensors packed."""
        if isinstance(value, Tensor):
            return self._pack_argument(value, path)
        if isinstance(value, (tuple, list)):
            parts = (self._pack_all(part, (*path, i)) for i, part in enumerate(value))
            return type(value)(parts)
        if isinstance(value, dict):
            return {key: self._pack_all(part, (*path, key)) for key, part in value.items()}
        return value

    def _pack_argument(self, argument: Tensor, path: Path) -> Tensor:
        if self._calls and path in ((0, 0), (1, "hidden_states")):
            return argument  # the layer before made it
        if self._learn:
            found = self._find_axis(argument, path)
            if self._axes.setdefault(path, found) != found:
                raise UnsupportedError(f"its layers take {path[-1]!r} in several shapes")
        if path not in self._axes:
            raise UnsupportedError(f"its layers take {path[-1]!r}, which was None before")
        axis = self._axes[path]
        if axis is None:
            return argument
        if id(argument) not in self._packed:
            self._packed[id(argument)] = argument, self._take(argument, axis)
        return self._packed[id(argument)][1]

    def _find_axis(self, argument: Tensor, path: Path) -> int | None:
        """Where the tokens are in an argument that is padded."""
        shape = tuple(argument.shape)
        if shape.count(self._width) == 1:
            axis = shape.index(self._width)
            if axis == 0 or shape[0] in (1, self._num_rows):
                return axis
        elif not {self._width, self._num_rows, len(self._rows)} & set(shape):
            return None
        raise UnsupportedError(f"its layers take a tensor of shape {shape}, argument {path[-1]!r}")

    def _take(self, padded: Tensor, axis: int) -> Tensor:
        """``[1, ..., T, ...]`` of ``[B or 1, ..., S, ...]``, or ``[T, ...]`` of ``[S, ...]``."""
        if axis == 0:
            return padded[self._columns]
        padded = padded.expand(self._num_rows, *padded.shape[1:])
        return padded.movedim(axis, 1)[self._rows, self._columns][None].movedim(1, axis)
