"""Rows with thresholds of their own, rows as they leave, thresholds by name."""

from __future__ import annotations

import pickle
from typing import Any, cast

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.backends import BACKENDS
from support.models import as_pairs, random_batch, tiny_classifier, tiny_model

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.stepwise import StepwisePass
from consistentee_ext.exits.rows import row_thresholds
from consistentee_ext.output import EarlyExitOutput

LENGTHS = [5, 30, 1, 17, 64, 2, 90, 9, 33, 12] * 2


def check_same(found: EarlyExitOutput, expected: EarlyExitOutput) -> None:
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=0)


def gathered(encoder: FastEarlyExitEncoder, rows: int, **inputs: Any) -> EarlyExitOutput:
    """The parts of a stream, put together; each row must be in one part."""
    parts = list(encoder.stream(**inputs))
    numbers = torch.cat([left for left, _ in parts])
    assert sorted(numbers.tolist()) == list(range(rows))
    layers = [output.exit_layers.unique().tolist() for _, output in parts]
    assert all(len(unique) == 1 for unique in layers)
    assert layers == sorted(layers)
    order = numbers.argsort()
    return EarlyExitOutput(
        logits=torch.cat([output.logits for _, output in parts])[order],
        exit_layers=torch.cat([output.exit_layers for _, output in parts])[order],
        exit_scores=torch.cat([output.exit_scores for _, output in parts])[order],
    )


def test_each_row_leaves_as_in_a_call_at_its_threshold(backend: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), backend=backend)
    inputs = random_batch(LENGTHS, seed=1)
    chosen = torch.tensor([0.3, 0.5, 0.7, 1.0]).repeat(5)
    found = encoder(**inputs, row_threshold=chosen)
    for threshold in chosen.unique():
        encoder.threshold = threshold
        expected, rows = encoder(**inputs), chosen == threshold
        assert torch.equal(found.exit_layers[rows], expected.exit_layers[rows])
        torch.testing.assert_close(found.logits[rows], expected.logits[rows], atol=1e-5, rtol=0)
    assert len(found.exit_layers.unique()) == 4


@pytest.mark.parametrize("criterion", ["policy", "confidence", "entropy", "patience", "energy"])
def test_a_row_leaves_at_its_bound(backend: str, criterion: str) -> None:
    """Also where its score is the lowest there is: patience gives 0 at the first exit layer."""
    encoder = FastEarlyExitEncoder(tiny_model(), backend=backend, criterion=criterion)
    encoder.threshold = 0.6
    inputs = random_batch(LENGTHS, seed=1)
    free = encoder(**inputs)
    bounds = torch.arange(1, 5).repeat(5)
    found = encoder(**inputs, row_max_layers=bounds)
    assert torch.equal(found.exit_layers, torch.minimum(free.exit_layers, bounds))
    same = free.exit_layers <= bounds
    torch.testing.assert_close(found.logits[same], free.logits[same], atol=1e-5, rtol=0)
    encoder.threshold = 1.0
    assert torch.equal(encoder(**inputs, row_max_layers=bounds).exit_layers, bounds)


def test_a_bound_between_exit_layers_is_the_one_below() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), exit_layers=[2], threshold=1.0)
    inputs = random_batch([4, 9, 30], seed=6)
    found = encoder(**inputs, row_max_layers=torch.tensor([2, 3, 4], dtype=torch.int32))
    assert found.exit_layers.tolist() == [2, 2, 4]
    with pytest.raises(ValueError, match=r"^row_max_layers: .* first exit's, 2, .* 4, got 1$"):
        encoder(**inputs, row_max_layers=torch.tensor([2, 1, 4]))


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("row_threshold", 0.5, TypeError, r"a floating-point tensor of shape \[3\], .* got float"),
        ("row_threshold", torch.ones(3).long(), TypeError, "got torch.int64"),
        ("row_threshold", torch.ones(4), ValueError, r"got shape \(4,\)"),
        ("row_threshold", torch.tensor([0.5, 0.0, 1.0]), ValueError, r"\(0, 1\], got 0.0"),
        ("row_threshold", torch.tensor([0.5, float("nan"), 1]), ValueError, "got nan"),
        ("row_max_layers", torch.ones(3), TypeError, "int64 or int32 .* got torch.float32"),
        ("row_max_layers", torch.tensor([1, 5, 1]), ValueError, "got 5"),
        ("row_max_layers", torch.tensor([0, 5, 1]), ValueError, "got 0"),
    ],
)
def test_wrong_rows_are_named(name: str, value: Any, error: type, message: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model())
    inputs = random_batch([4, 9, 30])
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        encoder(**inputs, **{name: value})
    with pytest.raises(error, match=f"^{name}: .*{message}"):
        encoder.stream(**inputs, **{name: value})


ENCODERS = {
    (pooling, backend): FastEarlyExitEncoder(tiny_model(pooling), backend=backend)
    for pooling in ("mean", "pair")
    for backend in BACKENDS
}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), pooling=st.sampled_from(["mean", "pair"]), which=st.sampled_from(BACKENDS))
def test_a_stream_gives_what_a_call_gives(data: st.DataObject, pooling: str, which: str) -> None:
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=9))
    rows = len(lengths)
    inputs = random_batch(lengths, data.draw(st.integers(0, 1000)))
    if pooling == "pair":
        inputs = as_pairs(inputs)
    encoder = ENCODERS[pooling, which]
    thresholds = data.draw(st.lists(st.sampled_from([0.2, 0.5, 1.0]), min_size=rows, max_size=rows))
    bounds = data.draw(st.lists(st.integers(1, 4), min_size=rows, max_size=rows))
    own: dict[str, Any] = {"row_threshold": torch.tensor(thresholds)}
    if data.draw(st.booleans()):
        own["row_max_layers"] = torch.tensor(bounds)
    check_same(gathered(encoder, rows, **inputs, **own), encoder(**inputs, **own))


def test_a_stream_of_nothing_and_of_a_plain_classifier() -> None:
    assert list(FastEarlyExitEncoder(tiny_model()).stream(torch.zeros(0, 3).long())) == []
    encoder, inputs = FastEarlyExitEncoder(tiny_classifier()), random_batch([3, 40, 1])
    check_same(gathered(encoder, 3, **inputs), encoder(**inputs))


def test_released_rows_leave_at_the_next_exit() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), threshold=1.0)
    inputs = random_batch([4, 9, 30, 12])
    from support.models import pack

    engine = encoder._engine
    packed = pack(inputs, encoder._limits)
    steps = StepwisePass(engine, packed, row_thresholds(engine.exits, 4))
    assert steps.work(1) == 55
    assert steps.work(9) == 4 * 55
    assert steps.step().tolist() == []
    steps.release([1, 3])
    assert sorted(steps.step().tolist()) == [1, 3]
    assert sorted(steps.rows.tolist()) == [0, 2]
    assert steps.work(9) == 2 * 34
    assert sorted(steps.step(whole=True).tolist()) == [0, 2]
    bounded = encoder(**inputs, row_max_layers=torch.tensor([4, 2, 4, 2]))
    torch.testing.assert_close(steps.results.logits, bounded.logits, atol=1e-5, rtol=0)
    assert steps.results.exit_layers.tolist() == [4, 2, 4, 2]
    assert encoder(**inputs).exit_layers.tolist() == [4] * 4


LEVELS = {
    "exact": {"threshold": 1.0, "guarantee": {"max_disagreement": 0.01}},
    "fast": {"threshold": 0.25, "guarantee": {"max_disagreement": 0.05}},
}


def test_levels_are_thresholds_by_name() -> None:
    model = tiny_model()
    model.config.levels = LEVELS
    encoder = FastEarlyExitEncoder(model)
    assert encoder.level is None
    encoder.level = "fast"
    assert (encoder.level, encoder.threshold) == ("fast", 0.25)
    copied = pickle.loads(pickle.dumps(encoder))
    assert copied.level == "fast"
    encoder.threshold = 0.25
    assert encoder.level is None
    with pytest.raises(ValueError, match=r"^level: expected one of .*'exact', 'fast'\), got 'x'$"):
        encoder.level = "x"
    encoder.criterion = "entropy"
    with pytest.raises(ValueError, match=r"^level: expected criterion policy, .* got entropy$"):
        encoder.level = "fast"
    some = FastEarlyExitEncoder(model, exit_layers=[2])
    with pytest.raises(ValueError, match=r"^level: expected exit_layers \(1, 2, 3, 4\), "):
        some.level = "fast"
    with pytest.raises(ValueError, match=r"^level: .*\(none; consistentee calibrate --level"):
        FastEarlyExitEncoder(tiny_classifier()).level = "fast"


@pytest.mark.parametrize(
    "levels", [[], {"fast": 0.5}, {"fast": {"rows": 3}}, {"fast": {"threshold": 1.5}}]
)
def test_levels_of_a_configuration_are_checked(levels: object) -> None:
    with pytest.raises(ValueError, match=r"^(levels|threshold): expected "):
        ConsistentEEConfig(levels=cast(Any, levels))
