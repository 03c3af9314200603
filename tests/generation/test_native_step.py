"""The C++ step called directly: what is out of bounds, what cannot be added, how it is called."""

from __future__ import annotations

import gc
import sys
from functools import partial
from types import FrameType
from typing import Any

import pytest
import torch
from support.decoders import random_rows, tiny_causal_lm
from torch.nn import functional as F

from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.engines.native import _block_arguments, _embedding_arguments
from consistentee_ext.generation.native_engine import NativeDecoderEngine, _exit_arguments

pytestmark = pytest.mark.needs_native
LIBRARY = torch.ops.consistentee


def native(**options: Any) -> NativeDecoderEngine:
    engine = FastEarlyExitDecoder(tiny_causal_lm(), backend="cpu", **options)._engine
    assert isinstance(engine, NativeDecoderEngine)
    return engine


def arguments_of(engine: NativeDecoderEngine) -> dict[str, Any]:
    """Of a step of two sequences, in a cache of three."""
    cache = engine.allocate(3, 8)
    prompts = random_rows([4, 2])
    offsets = torch.tensor([0, 4, 6], dtype=torch.int32)
    engine.prefill(cache, torch.tensor(prompts[0] + prompts[1]), offsets, torch.tensor([2, 0]))
    return {
        "engine": engine._number.value,
        "tokens": torch.tensor([5, 6]),
        "slots": torch.tensor([2, 0]),
        "positions": torch.tensor([4, 2]),
        "keys": cache.keys,
        "values": cache.values,
        "states": cache.states,
        "filled": cache.filled,
        "thresholds": torch.ones(3),
        "norm_weight": engine.weights.last_norm.weight,
        "norm_eps": 1e-6,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": 0}, "engine: expected a number that engine_create gave"),
        ({"tokens": torch.tensor([5, 61])}, "ids: expected ids from 0 to 60"),
        ({"tokens": torch.tensor([5])}, "tokens: expected a contiguous tensor of shape .2."),
        ({"slots": torch.tensor([3, 0])}, "slots: expected a number from 0 to 2"),
        ({"slots": torch.tensor([-1, 0])}, "slots: expected a number from 0 to 2"),
        ({"slots": torch.tensor([2, 0]).int()}, "slots: expected a contiguous tensor"),
        ({"positions": torch.tensor([8, 2])}, "positions: expected a number from 0 to 7"),
        ({"positions": torch.tensor([4])}, "positions: expected a contiguous tensor"),
        ({"thresholds": torch.ones(2)}, "thresholds: expected a contiguous tensor"),
        ({"filled": torch.zeros(3, 3, dtype=torch.long)}, "filled: expected a contiguous tensor"),
        ({"filled": torch.full((4, 3), -1)}, "filled: expected a number from 0 to 8"),
        ({"keys": torch.zeros(4, 24, 15)}, "keys, values: expected a contiguous tensor"),
        ({"keys": torch.zeros(3, 24, 16)}, "keys, values: expected a contiguous tensor"),
        ({"values": torch.zeros(4, 24, 16).bfloat16()}, "keys, values: expected a contiguous"),
        ({"states": torch.zeros(23, 32)}, "states: expected a contiguous tensor"),
        ({"norm_weight": torch.ones(31)}, "weight: expected a contiguous tensor"),
    ],
)
def test_a_direct_step_out_of_bounds_raises(changes: dict[str, Any], message: str) -> None:
    engine = native()
    arguments = arguments_of(engine) | changes
    with pytest.raises(RuntimeError, match=message):
        LIBRARY.engine_step(**arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.tensor([5, 61, 5])}, "ids: expected ids from 0 to 60"),
        ({"tokens": torch.tensor([5, 6])}, "cu_seqlens: expected offsets that rise from 0"),
        ({"cu_seqlens": torch.tensor([0, 0, 3]).int()}, "cu_seqlens: expected prompts of 1 to 8"),
        ({"cu_seqlens": torch.tensor([0, 3]).int()}, "cu_seqlens: expected a contiguous tensor"),
        ({"slots": torch.tensor([3, 0])}, "slots: expected a number from 0 to 2"),
        ({"keys": torch.zeros(3, 24, 16)}, "keys, values: expected a contiguous tensor"),
        ({"states": torch.zeros(23, 32)}, "states: expected a contiguous tensor"),
    ],
)
def test_a_direct_prefill_out_of_bounds_raises(changes: dict[str, Any], message: str) -> None:
    arguments = arguments_of(engine := native()) | {"tokens": torch.tensor([5, 6, 7])}
    arguments["cu_seqlens"] = torch.tensor([0, 2, 3], dtype=torch.int32)
    del arguments["positions"], arguments["thresholds"]
    LIBRARY.engine_prefill(**arguments)
    with pytest.raises(RuntimeError, match=message):
        LIBRARY.engine_prefill(**(arguments | changes))
    assert engine.weights.exits


def test_what_cannot_be_added_raises() -> None:
    engine = native()
    number = LIBRARY.engine_create(**_embedding_arguments(engine.weights.stack))
    try:
        for block in engine.weights.stack.blocks[:3]:
            LIBRARY.engine_add_block(number, **_block_arguments(block))
        add = partial(LIBRARY.engine_add_token_exit, number)
        arguments = _exit_arguments(engine.weights.exits[1])
        for layer in (0, 3):
            with pytest.raises(RuntimeError, match="layer: expected a number from 1, below the"):
                add(layer=layer, **arguments)
        for name, message in (
            ("up", "down, up: expected both or none"),
            ("dense_bias", "dense_weight, dense_bias: expected both or none"),
        ):
            with pytest.raises(RuntimeError, match=message):
                add(layer=1, **(arguments | {name: None}))
        with pytest.raises(RuntimeError, match="score_weight: expected a contiguous tensor"):
            add(layer=1, **(arguments | {"score_weight": torch.zeros(1, 31)}))
        add(layer=2, **arguments)
        with pytest.raises(RuntimeError, match="layer: expected a number from 3, below the last"):
            add(layer=2, **arguments)
        step = arguments_of(engine) | {"engine": number, "thresholds": torch.ones(1)}
        step |= {"filled": step["filled"][:2].clone(), "keys": step["keys"][:3].clone()}
        step |= {"values": step["values"][:3].clone()}
        LIBRARY.engine_step(**step)
        with pytest.raises(RuntimeError, match="engine: expected one that has not run yet"):
            add(layer=2, **arguments)
    finally:
        LIBRARY.engine_free(number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low": None}, "engine: expected causal blocks that norm first"),
        ({"norm_first": False}, "engine: expected causal blocks that norm first"),
        ({"num_kv_heads": 1}, "num_kv_heads: expected a divisor of num_heads, and keys as large"),
        ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads, and keys as large"),
        ({"num_heads": 6}, "query: expected a contiguous tensor"),
        ({"cos": torch.ones(4, 4), "sin": torch.ones(4, 4)}, "cos: expected shape"),
    ],
)
def test_blocks_of_another_kind_raise(changes: dict[str, Any], message: str) -> None:
    engine = native()
    number = LIBRARY.engine_create(**_embedding_arguments(engine.weights.stack))
    try:
        for block in engine.weights.stack.blocks[:3]:
            LIBRARY.engine_add_block(number, **_block_arguments(block))
        last = _block_arguments(engine.weights.stack.blocks[3])
        LIBRARY.engine_add_block(number, **(last | changes))
        step = arguments_of(engine) | {"engine": number, "thresholds": torch.ones(0)}
        with pytest.raises(RuntimeError, match=message):
            LIBRARY.engine_step(**(step | {"filled": step["filled"][:1].clone()}))
    finally:
        LIBRARY.engine_free(number)


def test_it_is_freed_with_its_last_owner() -> None:
    engine = native()
    number, other = engine._number.value, engine.with_thresholds({1: 0.5})
    arguments = arguments_of(engine)
    del engine
    gc.collect()
    LIBRARY.engine_step(**arguments)
    assert other._number.value == number
    del other
    gc.collect()
    with pytest.raises(RuntimeError, match="engine: expected a number that engine_create gave"):
        LIBRARY.engine_step(**arguments)


def test_opcheck() -> None:
    """Of its schema; without the engine there is no shape, so it cannot be traced."""
    engine = native()
    arguments = arguments_of(engine)
    places = ("engine", "tokens", "slots", "positions")
    torch.library.opcheck(
        LIBRARY.engine_step.default,
        tuple(arguments.pop(name) for name in places),
        arguments,
        test_utils="test_schema",
    )


def test_a_step_is_two_calls_into_cpp() -> None:
    """One of them the LM head's product."""
    engine = native(threshold=0.5)
    cache = engine.allocate(1, 8)
    engine.prefill(
        cache, torch.tensor([5, 6]), torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0])
    )
    calls: list[str] = []

    def record(frame: FrameType, event: str, argument: object) -> None:
        called = frame.f_locals.get("self")
        if event != "call" or not isinstance(called, torch._ops.OpOverload):
            return
        if called.namespace == "consistentee":
            calls.append(called.name())

    sys.setprofile(record)
    try:
        engine.step(cache, torch.tensor([7]), torch.tensor([0]))
    finally:
        sys.setprofile(None)
    assert calls == ["consistentee::engine_step", "consistentee::linear"]


@pytest.mark.parametrize(
    "fields", [{"policy": "linear"}, {"readout": "trunk"}, {"policy": "linear", "readout": "trunk"}]
)
def test_every_kind_of_exit(fields: dict[str, Any]) -> None:
    """Exit layers and states by the modules, of a first step that leaves at the first exit."""
    model = tiny_causal_lm(**fields)
    decoder = FastEarlyExitDecoder(model, backend="cpu", threshold=1e-9)
    engine = decoder._engine
    assert isinstance(engine, NativeDecoderEngine)
    cache = engine.allocate(1, 8)
    offsets = torch.tensor([0, 2], dtype=torch.int32)
    engine.prefill(cache, torch.tensor([5, 6]), offsets, torch.tensor([0]))
    found = engine.step(cache, torch.tensor([7]), torch.tensor([0]))
    assert found.exit_layers.tolist() == [1]
    hidden = cache.states[2]
    state = model.readout(1, hidden)
    torch.testing.assert_close(found.logits[0], model.logits(state).detach(), atol=1e-5, rtol=1e-5)
    probability = model.decide(1, state).sigmoid().item()
    for threshold, layers in ((probability - 1e-4, [1]), (probability + 1e-4, [4])):
        engine.prefill(cache, torch.tensor([5, 6]), offsets, torch.tensor([0]))
        of_first = engine.with_thresholds({1: threshold})
        found = of_first.step(cache, torch.tensor([7]), torch.tensor([0]))
        assert found.exit_layers.tolist() == layers


def test_float16_goes_op_by_op() -> None:
    """oneDNN lays out no weights of it; close to float32 all the same."""
    model = tiny_causal_lm()
    half = FastEarlyExitDecoder(model, dtype="float16", threshold=1.0)
    assert not isinstance(half._engine, NativeDecoderEngine)
    logits = []
    for engine in (half._engine, native(threshold=1.0)):
        cache = engine.allocate(1, 8)
        offsets = torch.tensor([0, 2], dtype=torch.int32)
        engine.prefill(cache, torch.tensor([5, 6]), offsets, torch.tensor([0]))
        logits.append(engine.step(cache, torch.tensor([7]), torch.tensor([0])).logits)
    assert F.cosine_similarity(logits[0], logits[1]).item() > 0.9999
