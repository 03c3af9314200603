"""The engine's prompts and steps against the reference generator's."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.decoders import CASES, left_padded, random_rows, tiny_causal_lm, tiny_decoder

from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.generation.cache import SlotCache, allocate_cache
from consistentee_ext.generation.engine import DecoderEngine, EagerDecoderEngine, check_logits
from consistentee_ext.generation.native_engine import NativeDecoderEngine
from consistentee_ext.generation.reference import ReferenceDecoder
from consistentee_ext.generation.rules import PolicyRule
from consistentee_ext.ops import load_ops

KINDS = ["native", "eager", "torch"]
PROMPTS = random_rows([5, 1, 9, 3], seed=3)


def engine_of(model: Any, kind: str = "native", **options: Any) -> DecoderEngine:
    """In C++, op by op with the C++ ops, or in plain PyTorch."""
    backend = "torch" if kind == "torch" else "cpu"
    engine = FastEarlyExitDecoder(model, backend=backend, **options)._engine
    assert isinstance(engine, NativeDecoderEngine) == (backend == "cpu")
    if kind != "eager":
        return engine
    return EagerDecoderEngine(engine.weights, engine.thresholds, load_ops("cpu"))


def prefill(
    engine: DecoderEngine, cache: SlotCache, prompts: Sequence[Sequence[int]], slots: Sequence[int]
) -> torch.Tensor:
    offsets = torch.tensor([0, *accumulate(map(len, prompts))], dtype=torch.int32)
    return engine.prefill(cache, torch.tensor([*chain(*prompts)]), offsets, torch.tensor(slots))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threshold", [1.0, 0.6, 0.3])
@pytest.mark.parametrize("case", CASES)
def test_steps_are_the_references(case: str, threshold: float, kind: str) -> None:
    """Logits and exits, now and then with a pause of a sequence, so that lengths and holes differ;
    slots are not the reference's rows, and one more is empty.
    """
    model = tiny_causal_lm(case)
    engine = engine_of(model, kind, threshold=threshold)
    reference = ReferenceDecoder(model, PROMPTS, 40)
    slots = torch.tensor([3, 0, 4, 1])
    cache = engine.allocate(5, 40)
    logits = prefill(engine, cache, PROMPTS, slots.tolist())
    torch.testing.assert_close(logits, reference.logits, atol=2e-5, rtol=1e-5)
    chosen, exits = reference.logits.argmax(-1), set()
    for number in range(16):
        rows = torch.tensor([row for row in range(4) if (row + number) % 3])
        expected = reference.step(rows, chosen[rows], PolicyRule(threshold))
        found = engine.step(cache, chosen[rows], slots[rows])
        assert torch.equal(found.exit_layers, expected.exit_layers)
        torch.testing.assert_close(found.logits, expected.logits, atol=2e-5, rtol=1e-5)
        assert torch.equal(cache.lengths[slots], reference.lengths)
        chosen[rows] = expected.logits.argmax(-1)
        exits |= set(found.exit_layers.tolist())
    assert exits == {4} if threshold == 1.0 else len(exits) >= 2


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_errs_as_the_modules_do(kind: str) -> None:
    """Logits within twice the error that Hugging Face's modules have in that dtype."""
    model = tiny_causal_lm()
    exact = ReferenceDecoder(model, PROMPTS, 40)
    engine = engine_of(model, kind, threshold=1.0, dtype=torch.bfloat16)
    rounded = ReferenceDecoder(tiny_causal_lm().bfloat16(), PROMPTS, 40)
    cache, rows = engine.allocate(4, 40), torch.arange(4)
    ours, theirs, full = (prefill(engine, cache, PROMPTS, range(4)), rounded.logits, exact.logits)
    rule = PolicyRule(1.0)
    for _ in range(8):
        error = (theirs.float() - full).abs().max()
        assert 0 < (ours - full).abs().max() <= 2 * error + 1e-3
        chosen = full.argmax(-1)
        ours = engine.step(cache, chosen, rows).logits
        theirs, full = (d.step(rows, chosen, rule).logits for d in (rounded, exact))


THRESHOLDS = st.sampled_from([1.0, 0.7, 0.55, 0.4, 0.2])


@hypothesis.settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_sequence_is_the_same_in_any_company(data: st.DataObject) -> None:
    """Slots are refilled, sequences pause, thresholds change between steps: each one's logits and
    exits are those it has alone in the reference, after the same thresholds.
    """
    layers = data.draw(st.sampled_from([2, 4]), label="layers")
    exits = data.draw(st.sampled_from([[1], list(range(1, layers))]), label="exits")
    model = tiny_causal_lm(decoder={"num_hidden_layers": layers}, exit_layers=exits)
    engine = engine_of(model, threshold=1.0)
    cache = engine.allocate(3, 24)
    alone: dict[int, ReferenceDecoder] = {}
    chosen: dict[int, int] = {}
    for step in range(data.draw(st.integers(1, 12), label="steps")):
        starting = [
            s for s in range(3) if data.draw(st.integers(0, 5)) == 0 or (step == 0 and s < 2)
        ]
        if starting:
            lengths = data.draw(st.lists(st.integers(1, 9), min_size=3, max_size=3))
            prompts = random_rows(lengths[: len(starting)], seed=data.draw(st.integers(0, 99)))
            logits = prefill(engine, cache, prompts, starting)
            for row, slot in enumerate(starting):
                alone[slot] = ReferenceDecoder(model, [prompts[row]], 24)
                torch.testing.assert_close(logits[row], alone[slot].logits[0], atol=2e-5, rtol=1e-5)
                chosen[slot] = int(alone[slot].logits.argmax())
        going = [s for s in alone if data.draw(st.booleans()) and int(alone[s].lengths) < 24]
        if not going:
            continue
        threshold = data.draw(THRESHOLDS, label="threshold")
        engine = engine.with_thresholds(dict.fromkeys(exits, threshold))
        tokens = torch.tensor([chosen[slot] for slot in going])
        found = engine.step(cache, tokens, torch.tensor(going))
        for row, slot in enumerate(going):
            expected = alone[slot].step(torch.tensor([0]), tokens[row, None], PolicyRule(threshold))
            assert found.exit_layers[row] == expected.exit_layers[0]
            torch.testing.assert_close(found.logits[row], expected.logits[0], atol=2e-5, rtol=1e-5)
            chosen[slot] = int(expected.logits.argmax())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@hypothesis.settings(deadline=None, max_examples=15)
@given(st.data())
def test_bit_for_bit_in_any_company(dtype: torch.dtype, data: st.DataObject) -> None:
    """Few slots, refilled: every logit of a sequence, and its exits, are those it has alone.

    Sizes are whole tiles, so that bfloat16 goes by them where the processor has them.
    """
    layers = data.draw(st.sampled_from([1, 2, 4]), label="layers")
    exits = list(range(1, layers))
    sizes: dict[str, Any] = {"num_hidden_layers": layers, "intermediate_size": 64, "vocab_size": 96}
    model: Any = tiny_causal_lm(decoder=sizes, exit_layers=exits) if exits else None
    engine = engine_of(model or tiny_decoder(**sizes), dtype=dtype)
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=9), label="lengths")
    news = data.draw(
        st.lists(st.integers(1, 7), min_size=len(lengths), max_size=len(lengths)), label="new"
    )
    plan = data.draw(st.lists(THRESHOLDS, min_size=7, max_size=7), label="thresholds")
    prompts = random_rows(lengths, seed=data.draw(st.integers(0, 99)))

    def decode(rows: list[int], num_slots: int) -> dict[int, list[torch.Tensor]]:
        """Rows through so many slots; the threshold goes by the number of a row's token."""
        cache, waiting = engine.allocate(num_slots, 16), list(rows)
        running: dict[int, int] = {}
        found: dict[int, list[torch.Tensor]] = {}
        while waiting or running:
            free = [slot for slot in range(num_slots) if slot not in running]
            starting = {slot: waiting.pop(0) for slot in free if waiting}
            if starting:
                logits = prefill(
                    engine, cache, [prompts[r] for r in starting.values()], [*starting]
                )
                found |= {r: [logits[i]] for i, r in enumerate(starting.values())}
                running |= starting
            running = {s: r for s, r in running.items() if len(found[r]) <= news[r]}
            numbers = {slot: len(found[row]) for slot, row in running.items()}
            for number in set(numbers.values()):
                slots = [slot for slot in numbers if numbers[slot] == number]
                chosen = torch.stack([found[running[s]][-1].argmax() for s in slots])
                at = engine.with_thresholds(dict.fromkeys(exits, plan[number - 1]))
                step = at.step(cache, chosen, torch.tensor(slots))
                for i, slot in enumerate(slots):
                    found[running[slot]].append(step.logits[i])
                    exits_of[running[slot]].append(int(step.exit_layers[i]))
        return found

    exits_of: dict[int, list[int]] = {row: [] for row in range(len(prompts))}
    together = decode(list(range(len(prompts))), data.draw(st.integers(2, 4), label="slots"))
    of_all, exits_of = exits_of, {row: [] for row in range(len(prompts))}
    for row in range(len(prompts)):
        alone = decode([row], 1)[row]
        assert torch.equal(torch.stack(together[row]), torch.stack(alone))
    assert of_all == exits_of


def test_long_prompts() -> None:
    """More tokens than are read at a time, beside short ones."""
    decoder = {"max_position_embeddings": 2200}
    model = tiny_causal_lm(decoder=decoder)
    engine = engine_of(model, threshold=0.5)
    prompts = random_rows([2000, 1, 700, 1500, 3], seed=1)
    cache = engine.allocate(5, 2100)
    together = prefill(engine, cache, prompts, range(5))
    reference = ReferenceDecoder(model, prompts, 2100)
    torch.testing.assert_close(together, reference.logits, atol=1e-4, rtol=1e-4)
    chosen = reference.logits.argmax(-1)
    for _ in range(3):
        found = engine.step(cache, chosen, torch.arange(5))
        expected = reference.step(torch.arange(5), chosen, PolicyRule(0.5))
        assert torch.equal(found.exit_layers, expected.exit_layers)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
        chosen = expected.logits.argmax(-1)


def test_holes_are_filled_when_a_token_goes_deep_and_never_else() -> None:
    """What is filled, by hand: tokens that leave behind layers 1, 3 and 4, and prompts of 2."""
    model = tiny_causal_lm()
    engine = engine_of(model, threshold=1.0)
    cache = engine.allocate(1, 12)
    prefill(engine, cache, [[5, 7]], [0])
    lows = {1: {1: 1e-9, 2: 1.0, 3: 1.0}, 3: {1: 1.0, 2: 1.0, 3: 1e-9}, 4: {1: 1.0, 2: 1.0, 3: 1.0}}
    expected = {1: [3, 2, 2, 2], 3: [4, 4, 4, 2], 4: [5, 5, 5, 5]}
    for layer, filled in expected.items():
        found = engine.with_thresholds(lows[layer]).step(
            cache, torch.tensor([9]), torch.tensor([0])
        )
        assert found.exit_layers.tolist() == [layer]
        assert cache.filled[:, 0].tolist() == filled
    prefill(engine, cache, [[5, 7, 8]], [0])
    assert cache.filled[:, 0].tolist() == [3] * 4
    assert cache.lengths.tolist() == [3]


def test_weights_are_held_once() -> None:
    """A tied LM head is the embedding; a change of the caller's model does not reach the engine."""
    model = tiny_decoder("llama, biases and tied")
    engine = engine_of(model)
    words = engine.weights.stack.embedding.words
    assert engine.weights.head.weight.data_ptr() == words.data_ptr()
    ours = FastEarlyExitDecoder(model)
    before = ours.generate(**left_padded(PROMPTS), max_new_tokens=5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(ours.generate(**left_padded(PROMPTS), max_new_tokens=5), before)
    moved = copy.deepcopy(ours)._engine.weights
    assert moved.head.weight.data_ptr() == moved.stack.embedding.words.data_ptr()
    scaled = engine_of(tiny_decoder("gemma")).weights
    assert scaled.head.weight.data_ptr() != scaled.stack.embedding.words.data_ptr()


def test_what_has_no_room_is_refused() -> None:
    engine = engine_of(tiny_causal_lm())
    cache = engine.allocate(1, 4)
    with pytest.raises(ValueError, match=r"^tokens: expected at most 4 of a sequence, got 5$"):
        prefill(engine, cache, [[5] * 5], [0])
    prefill(engine, cache, [[5] * 4], [0])
    with pytest.raises(ValueError, match=r"^tokens: expected at most 4 of a sequence, got 5$"):
        engine.step(cache, torch.tensor([5]), torch.tensor([0]))
    message = (
        "^cache: expected 13,440,000,000,000,000 bytes for 1000000000 sequences of 10000 tokens"
    )
    with pytest.raises(RuntimeError, match=message):
        allocate_cache(1_000_000_000, 10_000, 4, 4, 32, torch.empty(1, 80))
    check_logits(torch.zeros(2, 3))
    with pytest.raises(ValueError, match=r"^model: expected finite logits, got nan$"):
        check_logits(torch.tensor([[0.0, float("nan")]]))
