"""Runs a Hugging Face module whose layers see packed rows, and all else of it padded ones.

Hooks around the layers pack what goes into the first one and unpack what comes out of the last one;
between them rows may leave. The layers' attention is ours, and goes by the masks that transformers
would make. Letters: B rows, S padded length, T packed tokens, H hidden size, d head size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers.hooks import UnsupportedError
from consistentee_ext.ops import LayerOps
from consistentee_ext.packed import PackedBatch
from consistentee_ext.weights import AttentionForm

Path = tuple[int | str, ...]


class NoRowLeft(Exception):  # noqa: N818 - no error
    """Ends a module's forward."""


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
