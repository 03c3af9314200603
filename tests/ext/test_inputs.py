"""What the encoder takes as a batch: masks, padding, and what it says of bad ones."""

from __future__ import annotations

import pytest
import torch
from support.models import VOCABULARY, random_batch, tiny_classifier, tiny_model

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.inputs import PackedInputs, pack_inputs
from consistentee_ext.packed import InputLimits

GOOD = random_batch([3, 5])
native = pytest.mark.needs_native


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"input_ids": [[1, 2]]}, TypeError, "input_ids: expected an integer tensor"),
        ({"input_ids": GOOD["input_ids"].float()}, TypeError, "input_ids: expected int64 or int32"),
        ({"input_ids": GOOD["input_ids"][0]}, ValueError, r"input_ids: expected shape \[B, S\]"),
        (
            {"input_ids": GOOD["input_ids"] + VOCABULARY},
            ValueError,
            f"input_ids: expected ids from 0 to {VOCABULARY - 1}",
        ),
        (
            {"input_ids": GOOD["input_ids"] - VOCABULARY},
            ValueError,
            "input_ids: expected ids from 0",
        ),
        (
            {"attention_mask": GOOD["attention_mask"][:, :4]},
            ValueError,
            r"attention_mask: expected the shape of input_ids, \(2, 5\), got \(2, 4\)",
        ),
        (
            {"attention_mask": GOOD["attention_mask"] * 2},
            ValueError,
            "attention_mask: expected only 0 and 1",
        ),
        (
            {"attention_mask": GOOD["attention_mask"] * torch.tensor([[1], [0]])},
            ValueError,
            "attention_mask: expected at least one token a row, got none in row 1",
        ),
        (
            {"token_type_ids": GOOD["token_type_ids"] + 2},
            ValueError,
            "token_type_ids: expected segments from 0 to 1",
        ),
        (
            {"token_type_ids": GOOD["token_type_ids"].to("meta")},
            ValueError,
            "token_type_ids: expected device cpu, got meta",
        ),
    ],
)
def test_bad_inputs_name_themselves(changes: dict, error: type, message: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model())
    with pytest.raises(error, match=message):
        encoder(**(GOOD | changes))


def test_padding_ids_are_not_read() -> None:
    """An id outside the vocabulary where the mask is 0 is padding like any other."""
    encoder = FastEarlyExitEncoder(tiny_model())
    inputs = random_batch([2, 5])
    strange = inputs["input_ids"].clone()
    strange[0, 2:] = -100
    expected = encoder(**inputs)
    assert torch.equal(encoder(**(inputs | {"input_ids": strange})).logits, expected.logits)


def test_mask_with_holes_keeps_positions(backend: str) -> None:
    """Positions count columns, as in the padded model: zeros between tokens change nothing."""
    model = tiny_classifier()
    inputs = random_batch([8, 8, 8], seed=4)
    inputs["attention_mask"][0, 3:5] = 0
    inputs["attention_mask"][1, 1] = 0
    with torch.no_grad():
        expected = model(**inputs).logits
    found = FastEarlyExitEncoder(model, backend=backend)(**inputs).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


CPU = torch.device("cpu")
LIMITS = InputLimits(VOCABULARY, 2, 64)


def with_holes(rows: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, 20, generator=generator) < 0.6
    mask[:, 3] = True
    return random_batch([20] * rows, seed) | {"attention_mask": mask}


@native
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool], ids=str)
def test_the_op_packs_as_pytorch_does(dtype: torch.dtype) -> None:
    inputs = with_holes(9)
    if dtype != torch.bool:
        inputs = {name: rows.to(dtype) for name, rows in inputs.items()}
    by_op, by_pytorch = (
        pack_inputs(**inputs, limits=LIMITS, device=CPU, backend=backend)
        for backend in ("cpu", "torch")
    )
    for one, other in zip(by_op, by_pytorch, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert by_op.max_length == int(inputs["attention_mask"].sum(dim=1).max())


@pytest.mark.parametrize("rows", [0, 1, 2, 5])
def test_one_copy_holds_all_of_a_batch(rows: int) -> None:
    """Joined, and taken apart as views whose 8-byte integers are aligned."""
    given = {name: values[:rows] for name, values in with_holes(5).items()}
    packed = pack_inputs(**given, limits=LIMITS, device=CPU, backend="torch")
    flat = packed._flatten(pinned=False)
    assert flat.dtype == torch.uint8
    found = packed._unflatten(flat)
    for name, one, other in zip(packed._fields, packed, found, strict=True):
        assert torch.equal(one, other), name
        assert one.dtype == other.dtype, name
        assert not other.numel() or other.data_ptr() % other.element_size() == 0, name
        assert other.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr(), name
    there = packed.to(torch.device("meta"))
    assert [(t.shape, t.dtype) for t in there] == [(t.shape, t.dtype) for t in packed]
    assert packed.to(CPU) is packed
    assert isinstance(there, PackedInputs)
