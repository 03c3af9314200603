"""The compiled ops against `reference.py`, in every dtype and at odd sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.exit_cases import (
    DTYPES,
    EXTREME_LOGITS,
    clone,
    decide_by,
    make_batch,
    make_results,
    make_weights,
)

from consistentee_ext.criteria import CRITERIA
from consistentee_ext.ops import load_ops, reference
from consistentee_ext.ops.schema import exit_arguments
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

native = pytest.mark.needs_native


def check_exit_step(
    lengths: list[int],
    hidden_size: int,
    classes: int,
    policy_input: str | None,
    criterion: str,
    threshold: float | torch.Tensor,
    dtype: torch.dtype,
    last: bool = False,
    activation: str = "tanh",
) -> PackedBatch:
    batch = make_batch(lengths, hidden_size, dtype)
    weights = make_weights(hidden_size, classes, policy_input)
    weights = weights._replace(state_activation=activation)
    pooled = torch.randn(len(lengths), hidden_size).to(dtype)
    expected = make_results(len(lengths) + 3, classes)
    found = clone(expected)
    decision = decide_by(expected, criterion, threshold, layer=2, max_streak=4, last=last)
    # Thresholds between two scores: no row is so near that rounding decides.
    probe = clone(expected)
    reference.exit_step(batch, pooled, weights, decision._replace(last=True), probe)
    near = (probe.exit_scores - decision.thresholds).abs() < 1e-5
    if bool(near[batch.row_ids].any()):
        decision = decision._replace(thresholds=decision.thresholds + 3.3e-5)
    stay = reference.exit_step(batch, pooled, weights, decision, expected)
    got = load_ops("cpu").exit_step(batch, pooled, weights, decision, found)
    assert torch.equal(got.row_ids, stay.row_ids)
    assert torch.equal(got.cu_seqlens, stay.cu_seqlens)
    assert torch.equal(got.hidden, stay.hidden)
    assert torch.equal(found.exit_layers, expected.exit_layers)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.streaks, expected.streaks)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=1e-5)
    return got


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy_input", [None, "state", "prediction", "both"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_exit_step_matches_reference(
    dtype: torch.dtype, policy_input: str | None, criterion: str
) -> None:
    torch.manual_seed(7)
    check_exit_step([3, 1, 19, 2, 7, 99, 5], 99, 5, policy_input, criterion, 0.5, dtype)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy_input", [None, "both"])
def test_relu_matches_reference(dtype: torch.dtype, policy_input: str | None) -> None:
    torch.manual_seed(7)
    check_exit_step([3, 1, 19, 2], 99, 5, policy_input, "policy", 0.5, dtype, activation="relu")
    check_exit_step([3, 1, 19, 2], 99, 5, policy_input, "policy", 0.5, dtype, activation="none")


@native
@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_row_has_its_own_threshold(criterion: str) -> None:
    torch.manual_seed(7)
    lengths = [3, 1, 19, 2, 7, 99, 5, 4, 4, 1]
    thresholds = torch.linspace(0.05, 0.95, len(lengths) + 3)
    check_exit_step(lengths, 99, 5, "both", criterion, thresholds, torch.float32)


@native
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=37),
    hidden_size=st.sampled_from([1, 5, 8, 19, 64, 111, 384]),
    classes=st.sampled_from([1, 2, 3, 16, 77]),
    criterion=st.sampled_from(CRITERIA),
    threshold=st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]),
    last=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_exit_step_at_odd_sizes(
    lengths: list[int],
    hidden_size: int,
    classes: int,
    criterion: str,
    threshold: float,
    last: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    left = check_exit_step(
        lengths, hidden_size, classes, "both", criterion, threshold, torch.float32, last
    )
    if last:
        assert len(left.row_ids) == 0


@native
def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    batch = make_batch([4] * 11, 111, torch.float32)
    weights = make_weights(111, 7, "both")
    pooled = torch.randn(11, 111)
    together = ExitResults.empty(14, 7)
    decision = decide_by(together, "policy", 0.5, last=True)
    load_ops("cpu").exit_step(batch, pooled, weights, decision, together)
    for row in range(11):
        alone = ExitResults.empty(14, 7)
        cu_seqlens = torch.tensor([0, 4], dtype=torch.int32)
        one = PackedBatch(batch.hidden[:4], cu_seqlens, batch.row_ids[row : row + 1])
        load_ops("cpu").exit_step(one, pooled[row : row + 1], weights, decision, alone)
        where = batch.row_ids[row]
        assert torch.equal(alone.logits[where], together.logits[where])
        assert torch.equal(alone.exit_scores[where], together.exit_scores[where])


@native
def test_nan_goes_to_the_last_layer_and_shows() -> None:
    batch = make_batch([2, 2], 8, torch.float32)
    weights = make_weights(8, 3, "both")
    pooled = torch.randn(2, 8)
    pooled[0] = float("nan")
    for last in (False, True):
        for backend in ("cpu", "torch"):
            results = ExitResults.empty(5, 3)
            decision = decide_by(results, "policy", 1e-9, max_streak=1, last=last)
            left = load_ops(backend).exit_step(batch, pooled, weights, decision, results)
            assert left.row_ids.tolist() == ([] if last else [batch.row_ids[0].item()])
            assert bool(results.logits[batch.row_ids[0]].isnan().all()) == last


def test_nan_of_a_single_class(backend: str) -> None:
    batch = make_batch([2, 2], 8, torch.float32)
    pooled = torch.randn(2, 8)
    pooled[0] = float("nan")
    results = ExitResults.empty(5, 1)
    decision = decide_by(results, "confidence", 0.5, layer=1, max_streak=1, last=False)
    left = load_ops(backend).exit_step(batch, pooled, make_weights(8, 1, None), decision, results)
    assert left.row_ids.tolist() == [batch.row_ids[0].item()]


@pytest.mark.parametrize("logits", EXTREME_LOGITS, ids=str)
def test_energy_of_extreme_logits(logits: torch.Tensor, backend: str) -> None:
    results = ExitResults.empty(4, 2)
    weights = HeadWeights(torch.zeros(2, 8), logits)
    decision = decide_by(results, "energy", 1.0, layer=1, max_streak=1, last=True)
    batch = make_batch([2], 8, torch.float32)
    load_ops(backend).exit_step(batch, torch.randn(1, 8), weights, decision, results)
    expected = logits.logsumexp(0, keepdim=True).sigmoid()
    torch.testing.assert_close(results.exit_scores[batch.row_ids], expected, equal_nan=True)


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_tanh_is_accurate_over_its_range(dtype: torch.dtype) -> None:
    """The vectorised tanh against float64, through a classifier that passes one element on."""
    x = torch.cat((torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e-6, -1e-6, 100, -100])))
    pooled = x[:, None].to(dtype)
    rows = len(x)
    batch = make_batch([1] * rows, 1, dtype)._replace(row_ids=torch.arange(rows))
    weights = HeadWeights(torch.ones(1, 1), torch.zeros(1))
    results = ExitResults.empty(rows, 1)
    decision = decide_by(results, "confidence", 1.0, last=True)
    load_ops("cpu").exit_step(batch, pooled, weights, decision, results)
    expected = pooled[:, 0].double().tanh()
    assert (results.logits[:, 0] - expected).abs().max() < 3e-7


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 19, 384])
def test_mean_pool_matches_reference(dtype: torch.dtype, hidden_size: int) -> None:
    torch.manual_seed(1)
    batch = make_batch([1, 512, 7, 30], hidden_size, dtype)
    exact = reference.pool(batch.hidden.double(), batch.cu_seqlens, "mean").double()
    eager_error = (reference.pool(batch.hidden, batch.cu_seqlens, "mean") - exact).abs().max()
    error = (load_ops("cpu").pool(batch.hidden, batch.cu_seqlens, "mean") - exact).abs().max()
    assert error <= 2 * eager_error + 1e-7


@native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_of_special_values(dtype: torch.dtype) -> None:
    """Conversions to and from 16 bits: subnormals, the largest numbers, infinity, NaN, ties."""
    info = torch.finfo(dtype)
    values = [info.max, -info.max, info.tiny, info.tiny / 4, -0.0, float("inf"), 1 + info.eps]
    hidden = torch.tensor(values, dtype=dtype)[:, None]
    batch = make_batch([1] * len(values), 1, dtype)._replace(hidden=hidden)
    assert torch.equal(load_ops("cpu").pool(batch.hidden, batch.cu_seqlens, "mean"), hidden)
    nan = hidden[:1] * float("nan")
    single = PackedBatch(nan, torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0]))
    assert load_ops("cpu").pool(single.hidden, single.cu_seqlens, "mean").isnan().all()
    # 1 and 1 + eps have their mean half-way between two numbers: the even one, 1.
    pair = PackedBatch(
        torch.tensor([1, 1 + info.eps], dtype=dtype)[:, None],
        torch.tensor([0, 2], dtype=torch.int32),
        torch.tensor([0]),
    )
    expected = ((1.0 + (1.0 + info.eps)) / 2) if dtype == torch.float32 else 1.0
    assert (
        load_ops("cpu").pool(pair.hidden, pair.cu_seqlens, "mean").item()
        == torch.tensor(expected, dtype=dtype).item()
    )


def op_arguments(policy_input: str | None = "both") -> dict[str, Any]:
    batch = make_batch([3, 1, 4], 16, torch.float32)
    weights, results = make_weights(16, 2, policy_input), make_results(6, 2)
    decision = decide_by(results, "policy", torch.full((6,), 0.5))
    return {
        **batch._asdict(),
        "pooled": torch.randn(3, 16),
        **exit_arguments(weights, decision, results),
    }


@native
def test_opcheck() -> None:
    torch.manual_seed(0)
    library = torch.ops.consistentee
    batch = make_batch([3, 1, 4], 16, torch.float32)
    torch.library.opcheck(library.mean_pool.default, batch[:2])
    torch.library.opcheck(library.exit_step.default, (), op_arguments())
    torch.library.opcheck(library.exit_step.default, (), op_arguments(policy_input=None))


@native
def test_exit_step_under_torch_compile() -> None:
    torch.manual_seed(0)
    arguments = op_arguments()
    again = {
        name: value.clone() if isinstance(value, torch.Tensor) else value
        for name, value in arguments.items()
    }

    def step(values: dict[str, Any]) -> tuple[torch.Tensor, ...]:
        hidden, cu_seqlens, row_ids = torch.ops.consistentee.exit_step(**values)
        return hidden * 2, cu_seqlens, row_ids

    expected = step(arguments)
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(again)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    for name in ExitResults._fields:
        assert torch.equal(again[name], arguments[name])


@native
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("cu_seqlens", torch.tensor([0, 9, 4, 8], dtype=torch.int32), "offsets that rise"),
        ("row_ids", torch.tensor([0, 1, 6]), "row_ids: expected numbers from 0 to N - 1"),
        ("pooled", torch.randn(3, 15), "pooled: expected a contiguous tensor of shape"),
        ("classifier_weight", torch.randn(2, 16).double(), "classifier_weight"),
        ("dense_weight", None, "policy_input: expected 0"),
        ("policy_input", 7, "policy_input: expected a number from 0 to 3"),
        ("state_activation", 3, "state_activation: expected a number from 0 to 2"),
        ("criterion", len(CRITERIA), f"criterion: expected a number from 0 to {len(CRITERIA) - 1}"),
        ("thresholds", torch.zeros(5), "thresholds: expected float32, one for each row"),
        ("thresholds", torch.zeros(6).double(), "thresholds: expected float32, one for each row"),
        ("thresholds", torch.zeros(12)[::2], "thresholds: expected neighbours, or one"),
    ],
)
def test_direct_call_out_of_bounds_raises(name: str, value: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.exit_step(**(op_arguments() | {name: value}))


def test_bad_arguments_name_themselves(backend: str) -> None:
    batch = make_batch([3, 1], 16, torch.float32)
    weights, results = make_weights(16, 2, "both"), make_results(5, 2)
    decision = decide_by(results, "policy", 0.5)
    before = clone(results)

    def step(**changes: object) -> None:
        given: dict[str, Any] = {"batch": batch, "pooled": torch.randn(2, 16), "weights": weights}
        given |= {"decision": decision, "results": results} | changes
        load_ops(backend).exit_step(**given)

    with pytest.raises(TypeError, match="pooled: expected float32, got bfloat16"):
        step(pooled=torch.randn(2, 16).bfloat16())
    with pytest.raises(ValueError, match=r"pooled: expected shape \(2, 16\), got \(2, 15\)"):
        step(pooled=torch.randn(2, 15))
    with pytest.raises(TypeError, match="cu_seqlens: expected int32, got int64"):
        step(batch=batch._replace(cu_seqlens=batch.cu_seqlens.long()))
    with pytest.raises(ValueError, match=r"classifier_weight: expected shape \(2, 16\)"):
        step(weights=weights._replace(classifier_weight=torch.randn(3, 16)))
    with pytest.raises(ValueError, match=r"criterion: expected one of .*, got 'mood'"):
        step(decision=decision._replace(criterion="mood"))
    with pytest.raises(ValueError, match=r"thresholds: expected shape \(5,\), got \(2,\)"):
        step(decision=decision._replace(thresholds=torch.zeros(2)))
    for after, untouched in zip(results, before, strict=True):
        assert torch.equal(after, untouched)
