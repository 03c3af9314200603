"""A whole pass in one call against the same pass op by op."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCABULARY, random_batch, tiny_classifier, tiny_model

from consistentee_ext import FastEarlyExitEncoder, linear
from consistentee_ext.criteria import CRITERIA
from consistentee_ext.inputs import Limits, pack_inputs
from consistentee_ext.native import NativeEncoder
from consistentee_ext.packed import ExitState

pytestmark = pytest.mark.needs_native

NEEDS_BF16 = pytest.mark.skipif(
    not linear._onednn_available(torch.bfloat16), reason="this processor has no bfloat16 products"
)
BATCH = random_batch([5, 1, 17, 9, 9, 30, 2], seed=3)


def check_passes_agree(encoder: FastEarlyExitEncoder, batch: dict, tolerance: float) -> None:
    op_by_op = copy.copy(encoder)
    op_by_op._native = None
    assert encoder._native is not None
    found, expected = encoder(**batch), op_by_op(**batch)
    # Both run the same kernels on the same numbers, but round the number of rows differently.
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(
        found.exit_scores, expected.exit_scores, atol=tolerance, rtol=tolerance
    )


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NEEDS_BF16)], ids=str
)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("exit_layers", [None, [2]])
def test_one_call_gives_what_the_ops_give(
    dtype: torch.dtype, pooling: str, criterion: str, exit_layers: list[int] | None
) -> None:
    model = tiny_model(pooling, seed=3)
    encoder = FastEarlyExitEncoder(
        model, dtype=dtype, criterion=criterion, exit_layers=exit_layers, threshold=0.6
    )
    check_passes_agree(encoder, BATCH, 1e-5 if dtype == torch.float32 else 2e-2)
    if criterion == "policy" and exit_layers is None:
        assert len(set(encoder(**BATCH).exit_layers.tolist())) > 2


@pytest.mark.parametrize("rows", [1, 5, 30, 80])
def test_numbers_of_tokens_that_are_rounded_up(rows: int) -> None:
    """The rows computed beyond the tokens are dropped: 11 to 1,017 tokens, odd at most layers."""
    batch = random_batch([11 + 3 * (row % 3) for row in range(rows)], seed=rows)
    check_passes_agree(FastEarlyExitEncoder(tiny_model(seed=3), threshold=0.6), batch, 1e-5)


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_activations_that_onednn_fuses(activation: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(hidden_act=activation, seed=3), threshold=0.6)
    check_passes_agree(encoder, BATCH, 1e-5)


def test_models_without_policy_or_early_exit() -> None:
    check_passes_agree(FastEarlyExitEncoder(tiny_classifier()), BATCH, 1e-5)
    check_passes_agree(FastEarlyExitEncoder(tiny_model(), exit_layers=[]), BATCH, 1e-5)


def test_what_cannot_be_packed_goes_op_by_op() -> None:
    for options in ({"dtype": torch.float16}, {"backend": "torch"}):
        assert FastEarlyExitEncoder(tiny_model(), **options)._native is None
    silu = FastEarlyExitEncoder(tiny_model(hidden_act="silu"))
    assert silu._native is None
    assert silu(**BATCH).logits.shape == (7, 3)


def test_bfloat16_goes_op_by_op_where_the_processor_has_no_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "_onednn_available", lambda dtype: dtype != torch.bfloat16)
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), exit_layers=[], dtype=torch.bfloat16)
    assert encoder._native is None
    exact = FastEarlyExitEncoder(tiny_model(seed=3), exit_layers=[])(**BATCH)
    torch.testing.assert_close(encoder(**BATCH).logits, exact.logits, atol=5e-2, rtol=5e-2)


def test_an_encoder_is_freed_with_its_owner() -> None:
    encoder = FastEarlyExitEncoder(tiny_model())
    twin = copy.copy(encoder)
    number = encoder._native._number
    expected = encoder(**BATCH).logits
    del encoder
    gc.collect()
    assert torch.equal(twin(**BATCH).logits, expected)
    empty = torch.zeros(0, dtype=torch.int64)
    offsets = torch.zeros(1, dtype=torch.int32)
    results = (torch.zeros(0, 3), empty, torch.zeros(0), offsets[:0], offsets[:0])
    arguments = (empty, empty, empty, offsets, empty, number, [1.0] * 4, 0, *results)
    torch.ops.consistentee.classify(*arguments)
    del twin
    gc.collect()
    with pytest.raises(RuntimeError, match="encoder: expected a number that new_encoder gave"):
        torch.ops.consistentee.classify(*arguments)


def test_exit_layers_out_of_order_raise() -> None:
    encoder = FastEarlyExitEncoder(tiny_model())
    *exits, _ = encoder._exits.values()
    for layers in ([2, 1, 4], [0, 1, 4], [1, 4, 5]):
        with pytest.raises(RuntimeError, match="exit_layers: expected rising numbers of layers"):
            NativeEncoder(encoder._trunk, dict(zip(layers, exits, strict=True)))


def test_results_for_another_number_of_classes_raise() -> None:
    native = FastEarlyExitEncoder(tiny_model())._native
    limits = Limits(VOCABULARY, 2, 512)
    inputs = pack_inputs(*BATCH.values(), limits, torch.device("cpu"), "cpu")
    with pytest.raises(
        RuntimeError, match=r"logits: expected .* shape \[7, 3\] .* got shape \[7, 2\]"
    ):
        native.classify(inputs, [0.6] * 4, "policy", ExitState.empty(7, 2))


@settings(max_examples=60, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), max_size=9),
    ids=st.sampled_from([torch.int64, torch.int32]),
    kind=st.sampled_from([torch.int64, torch.int32, torch.bool, torch.float32]),
    seed=st.integers(0, 1000),
)
def test_packing_matches_the_python_one(
    mask: list[list[bool]], ids: torch.dtype, kind: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(mask), 6)
    given_ids = torch.randint(0, 50, shape, generator=generator).to(ids)
    types = torch.randint(0, 2, shape, generator=generator)
    given_mask = torch.tensor(mask).reshape(shape).to(kind)
    limits = Limits(50, 2, 6)
    for attention_mask in (given_mask, None):
        for segments in (types, None):
            arguments = (given_ids, attention_mask, segments, limits, torch.device("cpu"))
            for found, expected in zip(
                pack_inputs(*arguments, "cpu"), pack_inputs(*arguments, "torch"), strict=True
            ):
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("position", "value", "message"),
    [
        (0, torch.tensor([[1, 50]]), "input_ids: expected ids of the vocabulary"),
        (0, torch.tensor([[1, -1]]), "input_ids: expected ids of the vocabulary"),
        (0, torch.tensor([[True, False]]), "input_ids: expected a contiguous tensor"),
        (1, torch.tensor([[1, 2]]), "attention_mask: expected only 0 and 1"),
        (1, torch.tensor([[0, 0]]), "attention_mask: expected at least one token a row"),
        (2, torch.tensor([[0, 2]]), "token_type_ids: expected known segments"),
        (5, 1, "input_ids: expected fewer positions"),
    ],
)
def test_direct_call_of_pack_out_of_bounds_raises(
    position: int, value: object, message: str
) -> None:
    arguments = [torch.tensor([[1, 2]]), torch.tensor([[1, 1]]), torch.tensor([[0, 1]]), 50, 2, 6]
    arguments[position] = value
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.pack(*arguments)


def test_opcheck() -> None:
    """Of all but `linear` and `new_encoder`: it asks their packed weights for storage."""
    library = torch.ops.consistentee
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    torch.library.opcheck(library.pack.default, (ids, ids > 2, None, 50, 2, 6))
    encoder = FastEarlyExitEncoder(tiny_model(), threshold=0.6)
    offsets = torch.tensor([0, 2, 5], dtype=torch.int32)
    results = ExitState.empty(2, 3)
    tokens = (torch.tensor([1, 2, 3, 4, 5]), torch.zeros(5).long(), torch.tensor([0, 1, 0, 1, 2]))
    torch.library.opcheck(
        library.classify.default,
        (*tokens, offsets, torch.arange(2), encoder._native._number, [0.6] * 4, 0, *results),
        test_utils=("test_schema", "test_faketensor"),
    )
