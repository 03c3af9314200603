"""A whole pass in one call against the same pass op by op."""

from __future__ import annotations

import copy
import gc
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.models import VOCABULARY, pack, random_batch, tiny_classifier, tiny_model

import consistentee_ext
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.criteria import CRITERIA
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.native import (
    NativeEngine,
    _block_arguments,
    _embedding_arguments,
    _exit_arguments,
)
from consistentee_ext.exits.exits import Exits
from consistentee_ext.inputs import PackedInputs, pack_inputs
from consistentee_ext.ops import cpu, onednn
from consistentee_ext.packed import ExitResults, InputLimits, PackedBatch

pytestmark = pytest.mark.needs_native

NEEDS_BF16 = pytest.mark.skipif(
    not onednn.is_available(torch.bfloat16), reason="this processor has no bfloat16 products"
)
BATCH = random_batch([5, 1, 17, 9, 9, 30, 2], seed=3)


def check_passes_agree(encoder: FastEarlyExitEncoder, batch: dict, tolerance: float) -> None:
    op_by_op = copy.copy(encoder)
    assert isinstance(encoder._engine, NativeEngine)
    op_by_op._engine = EagerEngine(encoder._engine.stack, encoder._engine.exits, cpu)
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
        engine = FastEarlyExitEncoder(tiny_model(), **options)._engine
        assert isinstance(engine, EagerEngine)
    quick = FastEarlyExitEncoder(tiny_model(hidden_act="quick_gelu"))
    assert isinstance(quick._engine, EagerEngine)
    assert quick(**BATCH).logits.shape == (7, 3)


def test_bfloat16_goes_op_by_op_where_the_processor_has_no_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onednn, "is_available", lambda dtype: dtype != torch.bfloat16)
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), exit_layers=[], dtype=torch.bfloat16)
    assert isinstance(encoder._engine, EagerEngine)
    exact = FastEarlyExitEncoder(tiny_model(seed=3), exit_layers=[])(**BATCH)
    torch.testing.assert_close(encoder(**BATCH).logits, exact.logits, atol=5e-2, rtol=5e-2)


LIMITS = InputLimits(VOCABULARY, 2, 512)


def packed(batch: dict[str, torch.Tensor]) -> PackedInputs:
    return pack(batch, LIMITS)


def native(encoder: FastEarlyExitEncoder) -> NativeEngine:
    assert isinstance(encoder._engine, NativeEngine)
    return encoder._engine


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_advance_layer_by_layer_is_the_whole_pass(pooling: str) -> None:
    """Survivors of one advance are what the next one takes, in every engine."""
    whole_pass = native(FastEarlyExitEncoder(tiny_model(pooling, seed=3), threshold=0.6))
    whole = ExitResults.empty(len(BATCH["input_ids"]), 3)
    left = whole_pass.advance(packed(BATCH), 0, 4, whole)
    assert [tuple(tensor.shape) for tensor in left] == [(0, 32), (1,), (0,)]
    assert len(set(whole.exit_layers.tolist())) > 2
    for engine in (whole_pass, EagerEngine(whole_pass.stack, whole_pass.exits, cpu)):
        results = ExitResults.empty(len(BATCH["input_ids"]), 3)
        inputs = packed(BATCH)
        batch: PackedInputs | PackedBatch = inputs
        for layer in range(4):
            before = [tensor.clone() for tensor in batch]
            survivors = engine.advance(batch, layer, layer + 1, results)
            for tensor, untouched in zip(batch, before, strict=True):
                assert torch.equal(tensor, untouched)
            batch = survivors
            still = (whole.exit_layers > layer + 1).nonzero().flatten().tolist()
            assert sorted(batch.row_ids.tolist()) == still
            assert len(batch.hidden) == batch.cu_seqlens[-1]
        assert torch.equal(results.exit_layers, whole.exit_layers)
        torch.testing.assert_close(results.logits, whole.logits, atol=1e-5, rtol=1e-5)


def test_other_thresholds_share_the_layers_other_weights_do_not() -> None:
    engine = native(FastEarlyExitEncoder(tiny_model(), threshold=0.6))
    exits = engine.exits
    again = engine.with_exits(Exits(exits.by_layer, "entropy", dict.fromkeys((1, 2, 3), 0.3)))
    assert again._number is engine._number
    fewer = {layer: exits.by_layer[layer] for layer in (2, 4)}
    other = engine.with_exits(Exits(fewer, "policy", {2: 0.6}))
    assert other._number is not engine._number
    for one in (engine, again, other):
        eager, inputs = EagerEngine(one.stack, one.exits, cpu), packed(BATCH)
        found, expected = ExitResults.empty(7, 3), ExitResults.empty(7, 3)
        one.advance(inputs, 0, 4, found)
        eager.advance(inputs, 0, 4, expected)
        assert torch.equal(found.exit_layers, expected.exit_layers)


def test_an_engine_is_freed_with_its_owner() -> None:
    engine = native(FastEarlyExitEncoder(tiny_model()))
    number = engine._number.value
    twin = engine.with_exits(engine.exits)
    del engine
    gc.collect()
    arguments = advance_arguments(twin)
    torch.ops.consistentee.engine_advance(number, 0, 4, **arguments)
    del twin
    gc.collect()
    with pytest.raises(RuntimeError, match="engine: expected a number that engine_create gave"):
        torch.ops.consistentee.engine_advance(number, 0, 4, **arguments)


def advance_arguments(engine: NativeEngine) -> dict[str, Any]:
    inputs, results = packed(BATCH), ExitResults.empty(7, 3)
    return {
        **inputs._asdict(),
        "hidden": None,
        "criterion": 0,
        "thresholds": engine.exits.thresholds(7),
        "first_lengths": None,
        **results._asdict(),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": -1}, "first, last: expected 0 <= first < last <= 4"),
        ({"last": 0}, "first, last: expected 0 <= first < last <= 4"),
        ({"last": 5}, "first, last: expected 0 <= first < last <= 4"),
        ({"first": 1}, "ids, types, positions, hidden: expected the first three at block 0"),
        ({"ids": None}, "ids, types, positions, hidden: expected the first three at block 0"),
        ({"hidden": torch.zeros(1, 32)}, "ids, types, positions, hidden: expected the first"),
        ({"thresholds": torch.zeros(3, 7)}, r"thresholds: expected shape \[4, N\]"),
        ({"thresholds": torch.zeros(4, 6)}, "thresholds: expected float32, one for each row"),
        ({"logits": torch.zeros(7, 2)}, "logits: expected 3 columns"),
        ({"row_ids": torch.arange(7) + 1}, "row_ids: expected numbers from 0 to N - 1"),
        ({"criterion": 99}, f"criterion: expected a number from 0 to {len(CRITERIA) - 1}"),
    ],
)
def test_a_direct_advance_out_of_bounds_raises(changes: dict, message: str) -> None:
    engine = native(FastEarlyExitEncoder(tiny_model()))
    arguments = {"first": 0, "last": 4} | advance_arguments(engine) | changes
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.engine_advance(engine._number.value, **arguments)


def test_hidden_states_of_another_size_raise() -> None:
    engine = native(FastEarlyExitEncoder(tiny_model()))
    for hidden in (torch.zeros(3, 31), torch.zeros(3, 32).bfloat16()):
        batch = PackedBatch(hidden, torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0]))
        with pytest.raises(RuntimeError, match="hidden: expected a contiguous tensor of shape"):
            engine.advance(batch, 1, 2, ExitResults.empty(1, 3))


def test_what_cannot_be_added_raises() -> None:
    """Exits out of order, a block behind one of first tokens, anything after a pass."""
    library, encoder = torch.ops.consistentee, FastEarlyExitEncoder(tiny_model("cls"))
    engine = native(encoder)
    *_, first_tokens = engine.stack.blocks
    exits = engine.exits.by_layer
    number = library.engine_create(**_embedding_arguments(engine.stack))
    try:
        library.engine_add_block(number, **_block_arguments(first_tokens))
        with pytest.raises(RuntimeError, match="key_value: expected it in the last block alone"):
            library.engine_add_block(number, **_block_arguments(first_tokens))
        add = partial(library.engine_add_exit, number)
        arguments = _exit_arguments(exits[4])
        for layer in (0, 2):
            with pytest.raises(RuntimeError, match="layer: expected a number from 1 to 1"):
                add(layer=layer, **arguments)
        for pooling in ("mean", "last"):
            with pytest.raises(RuntimeError, match="pooling: expected cls or last behind a block"):
                add(layer=1, **(arguments | {"pooling": pooling}))
        with pytest.raises(RuntimeError, match="pooling: expected cls, last, mean or pair"):
            add(layer=1, **(arguments | {"pooling": "max"}))
        add(layer=1, **arguments)
        with pytest.raises(RuntimeError, match="layer: expected more than 1"):
            add(layer=1, **arguments)
        without = _block_arguments(first_tokens) | {"attention_norm_weight": None}
        with pytest.raises(RuntimeError, match="attention_norm_weight: expected one where"):
            library.engine_add_block(number, **without)
        arguments = advance_arguments(engine) | {"thresholds": torch.ones(1, 7)}
        library.engine_advance(number, 0, 1, **arguments)
        with pytest.raises(RuntimeError, match="engine: expected one that has not run yet"):
            library.engine_add_block(number, **_block_arguments(first_tokens))
    finally:
        library.engine_free(number)


@settings(max_examples=60, deadline=None)
@given(
    mask=st.lists(st.lists(st.booleans(), min_size=6, max_size=6).filter(any), max_size=9),
    ids=st.sampled_from([torch.int64, torch.int32]),
    kind=st.sampled_from([torch.int64, torch.int32, torch.bool, torch.float32]),
    padding_id=st.sampled_from([None, 0, 1, 5]),
    trailing_id=st.sampled_from([None, 0, 5]),
    seed=st.integers(0, 1000),
)
def test_packing_matches_the_python_one(
    mask: list[list[bool]],
    ids: torch.dtype,
    kind: torch.dtype,
    padding_id: int | None,
    trailing_id: int | None,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shape = (len(mask), 6)
    given_ids = torch.randint(0, 8, shape, generator=generator).to(ids)
    types = torch.randint(0, 2, shape, generator=generator)
    given_mask = torch.tensor(mask).reshape(shape).to(kind)
    limits = InputLimits(50, 2, 12, padding_id, trailing_id=trailing_id)
    for attention_mask in (given_mask, None):
        for segments in (types, None):
            arguments = (given_ids, attention_mask, segments, limits, torch.device("cpu"))
            for found, expected in zip(
                pack_inputs(*arguments, "cpu"), pack_inputs(*arguments, "torch"), strict=True
            ):
                assert found.dtype == expected.dtype
                assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input_ids": torch.tensor([[1, 50]])}, "input_ids: expected ids of the vocabulary"),
        ({"input_ids": torch.tensor([[1, -1]])}, "input_ids: expected ids of the vocabulary"),
        ({"input_ids": torch.tensor([[True, False]])}, "input_ids: expected a contiguous tensor"),
        ({"attention_mask": torch.tensor([[1, 2]])}, "attention_mask: expected only 0 and 1"),
        ({"attention_mask": torch.tensor([[0, 0]])}, "attention_mask: expected at least one token"),
        ({"token_type_ids": torch.tensor([[0, 2]])}, "token_type_ids: expected known segments"),
        (
            {
                "input_ids": torch.tensor([[2, 3, 4]]),
                "attention_mask": torch.tensor([[1, 0, 1]]),
                "token_type_ids": None,
                "by_place": True,
            },
            "attention_mask: expected no zeros between the tokens of a row",
        ),
        ({"num_positions": 1}, "input_ids: expected fewer positions"),
        ({"num_positions": 3, "padding_id": 1}, "input_ids: expected fewer positions"),
    ],
)
def test_direct_call_of_pack_out_of_bounds_raises(changes: dict, message: str) -> None:
    arguments = {
        "input_ids": torch.tensor([[2, 3]]),
        "attention_mask": torch.tensor([[1, 1]]),
        "token_type_ids": torch.tensor([[0, 1]]),
        **InputLimits(50, 2, 6)._asdict(),
    }
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.pack(**(arguments | changes))


def test_opcheck() -> None:
    """Of those that take no prepacked weights: opcheck asks for their storage."""
    library = torch.ops.consistentee
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    limits = InputLimits(50, 2, 6)._asdict()
    torch.library.opcheck(library.pack.default, (ids, ids > 2, None), limits)
    engine = native(FastEarlyExitEncoder(tiny_model(), threshold=0.6))
    for last in (1, 4):
        torch.library.opcheck(
            library.engine_advance.default,
            (engine._number.value, 0, last),
            advance_arguments(engine),
            test_utils="test_schema",  # no shape without the engine: it cannot be traced
        )


def test_a_pass_is_few_frames_and_two_calls_into_cpp() -> None:
    """In a small batch Python is the cost: packing is one call, all layers and exits another."""
    encoder = FastEarlyExitEncoder(tiny_model(), threshold=0.6)
    encoder(**BATCH)
    package = str(Path(consistentee_ext.__file__).parent)
    frames: list[str] = []
    calls: list[str] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        if event != "call":
            return
        if frame.f_code.co_filename.startswith(package):
            frames.append(frame.f_code.co_name)
        called = frame.f_locals.get("self")
        if isinstance(called, torch._ops.OpOverload) and called.namespace == "consistentee":
            calls.append(called.name())

    sys.setprofile(record)
    try:
        encoder(**BATCH)
    finally:
        sys.setprofile(None)
    assert calls == ["consistentee::pack", "consistentee::engine_advance"]
    assert len(frames) <= 11, frames
