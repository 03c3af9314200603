"""Checks what the caller gave and drops the padding before anything is computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from consistentee_ext.backend import availability
from consistentee_ext.ops.reference import pack
from consistentee_ext.packed import InputLimits

HOST = torch.device("cpu")


class PackedInputs(NamedTuple):
    """Tokens of B rows on the host, longest row first.

    ``ids``, ``types``, ``positions`` are ``[T]`` int64, ``cu_seqlens`` is ``[B+1]`` int32;
    ``row_ids [B]`` int64 says which of the caller's rows each one is.
    """

    ids: Tensor
    types: Tensor
    positions: Tensor
    cu_seqlens: Tensor
    row_ids: Tensor

    @property
    def max_length(self) -> int:
        """Tokens of the longest row; 0 without rows."""
        return int(self.cu_seqlens[1]) if len(self.row_ids) else 0

    def to(self, device: torch.device) -> PackedInputs:
        """The same tensors on `device`: to a GPU one copy, which the host does not wait for."""
        if device == HOST:
            return self
        on_gpu = device.type == "cuda"
        return self._unflatten(self._flatten(pinned=on_gpu).to(device, non_blocking=on_gpu))

    def _flatten(self, pinned: bool) -> Tensor:
        """The bytes of all five, one after the other; the offsets last, as their 4-byte integers
        would leave what follows misaligned.
        """
        *wide, offsets, row_ids = (tensor.view(torch.uint8) for tensor in self)
        parts = [*wide, row_ids, offsets]
        flat = torch.empty(sum(map(len, parts)), dtype=torch.uint8, pin_memory=pinned)
        return torch.cat(parts, out=flat)

    def _unflatten(self, flat: Tensor) -> PackedInputs:
        """The five that `_flatten` joined, as views."""
        tokens, rows = 8 * len(self.ids), 8 * len(self.row_ids)
        *wide, row_ids, offsets = flat.split([tokens] * 3 + [rows, 4 * len(self.cu_seqlens)])
        ids, types, positions, row_ids = (part.view(torch.int64) for part in (*wide, row_ids))
        return PackedInputs(ids, types, positions, offsets.view(torch.int32), row_ids)


def _check_integer_matrix(name: str, tensor: object, shape: torch.Size | None) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected an integer tensor [B, S], got {type(tensor).__name__}")
    if tensor.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"{name}: expected int64 or int32, got {tensor.dtype}")
    if tensor.dim() != 2:
        raise ValueError(f"{name}: expected shape [B, S], got {tuple(tensor.shape)}")
    if shape is not None and tensor.shape != shape:
        raise ValueError(
            f"{name}: expected the shape of input_ids, {tuple(shape)}, got {tuple(tensor.shape)}"
        )
    return tensor


def _check_mask(mask: object, shape: torch.Size) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"attention_mask: expected a tensor [B, S], got {type(mask).__name__}")
    if mask.shape != shape:
        raise ValueError(
            f"attention_mask: expected the shape of input_ids, {tuple(shape)}, "
            f"got {tuple(mask.shape)}"
        )
    return mask


def _check_range(name: str, values: Tensor, size: int, what: str) -> None:
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= size:
        wrong = low if low < 0 else high
        raise ValueError(f"{name}: expected {what} from 0 to {size - 1}, got {wrong}")


def pack_inputs(
    input_ids: object,
    attention_mask: object | None,
    token_type_ids: object | None,
    limits: InputLimits,
    device: torch.device,
    backend: str,
    position_ids: object | None = None,
) -> PackedInputs:
    """The unmasked tokens of ``input_ids [B, S]`` side by side, on the host.

    A token keeps the position it had in its padded row, counted from the row's first token: a mask
    with zeros in between gives what the padded model gives, one with zeros in front what the row
    gives without them.

    Args:
        input_ids: as the next two on the host or on `device`; the host waits for what is on a GPU.
        device: the encoder's.
        backend: the encoder's; all but ``torch`` pack in C++ where it is built.
        position_ids: ``[B, S]`` or ``[1, S]``, in place of these positions.

    Raises:
        TypeError, ValueError: see the messages; each names the argument, what was expected, what
        came.
    """
    given = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "token_type_ids": token_type_ids,
    }
    if device != HOST:
        given = _on_host(given, device)
    if position_ids is None and backend != "torch" and availability("cpu", HOST).usable:
        try:
            packed = torch.ops.consistentee.pack.default(*given.values(), **limits._asdict())
            return PackedInputs(*packed)
        except RuntimeError:
            # Rare. The Python path below either raises with the argument's name or handles the
            # input.
            pass
    return _pack_checked(given, limits, device, position_ids)


def _on_host(given: dict[str, object], device: torch.device) -> dict[str, object]:
    """The tensors of `device` on the host: copies side by side, one wait for all of them."""
    held = {
        name: value.to(HOST, non_blocking=device.type == "cuda")
        for name, value in given.items()
        if isinstance(value, Tensor) and value.device == device
    }
    if held and device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return given | held


def _pack_checked(
    given: dict[str, object],
    limits: InputLimits,
    device: torch.device,
    position_ids: object | None,
) -> PackedInputs:
    """`pack_inputs` in PyTorch, with errors that name the argument."""
    ids = _check_integer_matrix("input_ids", given["input_ids"], None)
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    if given["attention_mask"] is not None:
        mask = _check_mask(given["attention_mask"], ids.shape)
    if given["token_type_ids"] is not None:
        types = _check_integer_matrix("token_type_ids", given["token_type_ids"], ids.shape)
    for name, tensor in (("input_ids", ids), ("attention_mask", mask), ("token_type_ids", types)):
        if tensor.device != HOST:
            wanted = "device cpu" if device == HOST else f"device cpu or {device}"
            raise ValueError(f"{name}: expected {wanted}, got {tensor.device}")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("attention_mask: expected only 0 and 1, got other values")
    if limits.trailing_id is not None:
        mask = _without_trailing(ids, mask, limits.trailing_id)
    rows, width = ids.shape
    if rows == 0:
        empty = torch.zeros(0, dtype=torch.int64)
        return PackedInputs(empty, empty, empty, torch.zeros(1, dtype=torch.int32), empty)
    lengths = mask.sum(dim=1)
    if width == 0 or not bool((lengths > 0).all()):
        row = 0 if width == 0 else int((lengths == 0).nonzero()[0])
        raise ValueError(
            f"attention_mask: expected at least one token a row, got none in row {row}"
        )
    if limits.by_place:
        _check_places(mask, lengths, position_ids)
    # Rows of one length side by side, so that plain PyTorch attends to them in one call.
    row_ids = lengths.argsort(descending=True, stable=True)
    packed_ids, cu_seqlens = pack(ids[row_ids], mask[row_ids])
    kept = mask[row_ids].bool()
    packed_types = types[row_ids][kept]
    if position_ids is None:
        positions = _positions(ids, mask, limits)[row_ids][kept]
        longest = int(positions.max()) + 1
        if longest > limits.num_positions:
            raise ValueError(
                f"input_ids: expected at most {limits.max_length} positions, "
                f"got {longest - limits.num_positions + limits.max_length}"
            )
    else:
        positions = _check_positions(position_ids, ids.shape)[row_ids][kept].long()
        _check_range("position_ids", positions, limits.num_positions, "positions")
    _check_range("input_ids", packed_ids, limits.vocab_size, "ids")
    _check_range("token_type_ids", packed_types, limits.type_vocab_size, "segments")
    return PackedInputs(packed_ids.long(), packed_types.long(), positions, cu_seqlens, row_ids)


def _without_trailing(ids: Tensor, mask: Tensor, trailing_id: int) -> Tensor:
    """The mask without the tokens of this id at the end of each row; its first one stays."""
    columns = torch.arange(ids.shape[1])
    first = mask.int().argmax(dim=1) if ids.shape[1] else columns
    kept = torch.where((mask == 1) & (ids != trailing_id), columns, -1).amax(dim=1, keepdim=True)
    return mask * (columns <= torch.maximum(kept, first[:, None]))


def _check_places(mask: Tensor, lengths: Tensor, position_ids: object | None) -> None:
    """Raise ValueError unless the tokens of each row lie side by side, at the places they have."""
    if position_ids is not None:
        raise ValueError("position_ids: expected none, as this model goes by a token's place")
    last = mask.shape[1] - mask.flip(1).int().argmax(dim=1)
    holes = (last - mask.int().argmax(dim=1) != lengths).nonzero()
    if len(holes):
        raise ValueError(
            "attention_mask: expected no zeros between the tokens of a row, as this model goes by "
            f"their distances, got some in row {int(holes[0])}"
        )


def _check_positions(position_ids: object, shape: torch.Size) -> Tensor:
    rows = position_ids.shape[:1] if isinstance(position_ids, Tensor) else shape[:1]
    wanted = torch.Size((1, shape[1])) if rows == (1,) else shape
    return _check_integer_matrix("position_ids", position_ids, wanted).to(HOST).expand(shape)


def _positions(ids: Tensor, mask: Tensor, limits: InputLimits) -> Tensor:
    """``[B, S]`` int64: the column, from the row's first token on, or how many ids up to here
    differ from the padding id.
    """
    if limits.padding_id is None:
        return torch.arange(ids.shape[1]) - mask.int().argmax(dim=1, keepdim=True)
    counted = (ids != limits.padding_id).long()
    return limits.padding_id + counted.cumsum(dim=1) * counted
