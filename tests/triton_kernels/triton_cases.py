"""The Triton kernels against `reference.py`, in Triton's interpreter; test_triton.py runs this.

The interpreter is chosen by TRITON_INTERPRET=1 before the kernels are imported, and an access out
of range ends the process: so a process of its own, in which pytest is told this file by name.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from support.exit_cases import (
    DTYPES,
    EXTREME_LOGITS,
    clone,
    compare_texts,
    decide_by,
    make_results,
    make_weights,
)
from torch import Tensor
from torch.nn.functional import layer_norm
from triton.runtime import interpreter

from consistentee_ext.criteria import CRITERIA, MULTI_LABEL_CRITERIA
from consistentee_ext.ops import reference
from consistentee_ext.ops import triton as kernels
from consistentee_ext.ops.schema import POLICY_CODES
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.segments import compare, pair_up, segment_offsets
from consistentee_ext.weights import STATE_ACTIVATIONS, HeadWeights

assert triton.knobs.runtime.interpret, "set TRITON_INTERPRET=1"

# numpy's, on the infinities and NaNs that some cases are about
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")
EPS = 1e-12
UNWRITTEN = 77
HIDDEN_SIZES = (1, 8, 19, 64, 111, 768)
slow = pytest.mark.slow  # one case a primitive is fast
WIDTHS = [size if size == 19 else pytest.param(size, marks=slow) for size in HIDDEN_SIZES]
INPUTS = [name if name == "both" else pytest.param(name, marks=slow) for name in POLICY_CODES]


@pytest.fixture(autouse=True)
def nearest_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter cuts float32 down to bfloat16; a device rounds to the nearest."""
    convert = interpreter._convert_float

    def rounded(data: np.ndarray, source: tl.dtype, target: tl.dtype, mode: object) -> np.ndarray:
        if source == tl.float32 and target == tl.bfloat16:
            nearest = torch.from_numpy(np.array(data)).bfloat16()
            return nearest.view(torch.int16).numpy().view(np.uint16)
        return convert(data, source, target, mode)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)


@pytest.fixture(autouse=True)
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no kernel writes shows."""
    monkeypatch.setattr(torch, "empty_like", lambda like: torch.full_like(like, UNWRITTEN))


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *lengths]).cumsum(0).int()


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype)


def exact_norm(hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    total = hidden.double() + residual.double()
    return layer_norm(total, weight.shape, weight.double(), bias.double(), EPS)


def check(found: Tensor, exact: Tensor, eager: Tensor) -> None:
    assert found.dtype == eager.dtype
    assert found.shape == exact.shape
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", WIDTHS)
def test_add_norm(size: int, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    hidden, residual = draw(41, size, dtype=dtype), draw(41, size, dtype=dtype) + 3
    weight, bias = draw(size, dtype=dtype), draw(size, dtype=dtype)
    exact = exact_norm(hidden, residual, weight, bias)
    eager = reference.add_norm(hidden, residual, weight, bias, EPS)
    kernels.add_norm(hidden, residual, weight, bias, EPS)
    check(hidden, exact, eager)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", WIDTHS)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_add_norm_pool(size: int, pooling: str, dtype: torch.dtype) -> None:
    torch.manual_seed(size)
    mean = pooling == "mean"
    lengths = [1, 31, 0, 33, 100] if mean else [1, 0, 33]
    tokens, present = sum(lengths), torch.tensor(lengths) > 0
    hidden, residual = draw(tokens, size, dtype=dtype), draw(tokens, size, dtype=dtype) + 3
    weight, bias = draw(size, dtype=dtype), draw(size, dtype=dtype)
    exact = exact_norm(hidden, residual, weight, bias)
    eager = reference.add_norm(hidden, residual, weight, bias, EPS)
    tickets = torch.zeros(len(lengths) + 2, dtype=torch.int32)
    offsets = offsets_of(lengths)
    pooled = kernels.add_norm_pool(
        hidden, residual, weight, bias, EPS, offsets, 128, pooling, tickets
    )
    check(hidden, exact, eager)
    assert not tickets.any()
    assert pooled.shape == (len(lengths), size)
    filled = offsets_of([length for length in lengths if length])
    if not mean:
        assert torch.equal(pooled[present], hidden[filled[:-1]])
        return
    # Of the rounded values, so that only the mean's own error is left.
    exact_mean = reference.pool(hidden.double(), filled, "mean").double()
    check(pooled[present], exact_mean, reference.pool(hidden, filled, "mean"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", WIDTHS)
def test_add_norm_pool_of_pairs(size: int, dtype: torch.dtype) -> None:
    """Of texts of less than a program's tokens and of more; of one text alone; of an absent row."""
    torch.manual_seed(size)
    lengths, firsts = [1, 31, 0, 33, 100, 64, 5], [1, 16, 0, 1, 63, 32, 99]
    rows, tokens = len(lengths), sum(lengths)
    present = torch.tensor(lengths) > 0
    row_ids = torch.where(present, torch.randperm(rows + 3)[:rows], -1)
    first_lengths = torch.full((rows + 3,), 7).int()
    first_lengths[row_ids[present]] = torch.tensor(firsts).int()[present]
    hidden, residual = draw(tokens, size, dtype=dtype), draw(tokens, size, dtype=dtype) + 3
    weight, bias = draw(size, dtype=dtype), draw(size, dtype=dtype)
    normed = hidden.clone()
    kernels.add_norm(normed, residual, weight, bias, EPS)
    tickets = torch.zeros(rows, dtype=torch.int32)
    where = (offsets_of(lengths), 100, "pair", tickets, row_ids, first_lengths)
    pooled = kernels.add_norm_pool(hidden, residual, weight, bias, EPS, *where)
    assert torch.equal(hidden, normed)
    assert not tickets.any()
    assert pooled.shape == (rows, 4 * size)
    pooled = pooled[present]
    u, v, difference, product = pooled.chunk(4, dim=1)
    assert torch.equal(difference, (u - v).abs())
    assert torch.equal(product, u * v)
    offsets = segment_offsets(
        offsets_of([length for length in lengths if length]), first_lengths[row_ids[present]]
    )
    means = pair_up(reference.pool(hidden, offsets, "mean"), offsets)
    exact = compare_texts(hidden, lengths, firsts)[present]
    check(pooled, exact, compare(*means.chunk(2, dim=1)))


def test_a_constant_token_is_the_bias() -> None:
    found, bias = torch.full((1, 8), 7.0), torch.arange(8.0)
    kernels.add_norm(found, torch.zeros(1, 8), torch.ones(8), bias, 1e-5)
    torch.testing.assert_close(found[0], bias)


def test_one_wide_token() -> None:
    torch.manual_seed(0)
    hidden, residual = torch.randn(2, 8192), torch.randn(2, 8192)
    weight, bias = torch.randn(8192), torch.randn(8192)
    exact = exact_norm(hidden, residual, weight, bias)
    eager = reference.add_norm(hidden, residual, weight, bias, EPS)
    tickets = torch.zeros(1, dtype=torch.int32)
    cu_seqlens = offsets_of([2])
    pooled = kernels.add_norm_pool(
        hidden, residual, weight, bias, EPS, cu_seqlens, 2, "mean", tickets
    )
    check(hidden, exact, eager)
    torch.testing.assert_close(pooled[0], hidden.mean(0))


def step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
) -> PackedBatch:
    """`exit_step_async`, whose tail is checked and cut off."""
    rows, tokens = len(batch.row_ids), len(batch.hidden)
    tickets = torch.zeros(max(rows, 1), dtype=torch.int32)
    totals = torch.full((2,), -7, dtype=torch.int32)
    out = PackedBatch(*map(torch.empty_like, batch))
    kernels.exit_step_async(batch, pooled, weights, decision, results, tickets, totals, out)
    hidden, cu_seqlens, row_ids = out
    assert not tickets.any()
    kept_rows, kept_tokens = totals.tolist()
    assert 0 <= kept_rows <= rows
    assert 0 <= kept_tokens <= tokens
    assert bool((hidden[kept_tokens:] == UNWRITTEN).all())  # those that leave are not copied
    assert bool((cu_seqlens[kept_rows:] == kept_tokens).all())
    assert bool((row_ids[kept_rows:] == -1).all())
    return PackedBatch(hidden[:kept_tokens], cu_seqlens[: kept_rows + 1], row_ids[:kept_rows])


def check_exit_step(
    rows: int,
    hidden_size: int,
    classes: int,
    policy_input: str | None,
    criterion: str,
    dtype: torch.dtype,
    last: bool = False,
    policy_size: int = 32,
    activation: str = "tanh",
    own_thresholds: bool = False,
    multi_label: bool = False,
) -> PackedBatch:
    """On a batch of which every third row, and the tail, are absent.

    With `own_thresholds` they are above or below every score, row by row.
    """
    lengths = [1 + (7 * row) % 5 for row in range(rows)]
    present = [row % 3 != 2 for row in range(rows)]
    row_ids = torch.randperm(rows + 3)[:rows]
    here = torch.tensor(present)
    batch = PackedBatch(
        draw(sum(lengths), hidden_size, dtype=dtype),
        offsets_of([*lengths, 0, 0]),
        torch.cat((row_ids.where(here, -1), torch.tensor([-1, -1]))),
    )
    pooled = draw(rows + 2, hidden_size, dtype=dtype)
    weights = make_weights(hidden_size, classes, policy_input, policy_size)
    weights = weights._replace(state_activation=activation, multi_label=multi_label)
    present_rows = reference.compact(PackedBatch(batch.hidden, offsets_of(lengths), row_ids), here)
    expected = make_results(rows + 3, classes, multi_label)
    # Between the scores, half-way in the widest gap: no row is so near that rounding decides.
    decision = decide_by(expected, criterion, 0.5, layer=2, max_streak=4, last=True)
    probe = clone(expected)
    reference.exit_step(present_rows, pooled[:rows][here], weights, decision, probe)
    if multi_label:  # else no set is that of the layer before
        expected.logits[::2] = probe.logits[::2]
        probe = clone(expected)
        reference.exit_step(present_rows, pooled[:rows][here], weights, decision, probe)
    found = clone(expected)
    scores = probe.exit_scores[present_rows.row_ids].unique()
    if len(scores) > 1:
        widest = scores.diff().argmax()
        middle = float(scores[widest : widest + 2].mean())
        decision = decision._replace(thresholds=torch.full((rows + 3,), middle))
    if own_thresholds:
        thresholds = torch.where(torch.arange(rows + 3) % 2 == 0, -1.0, 2.0)
        decision = decision._replace(thresholds=thresholds)
    decision = decision._replace(last=last)
    stay = reference.exit_step(present_rows, pooled[:rows][here], weights, decision, expected)
    got = step(batch, pooled, weights, decision, found)
    for a, b in zip(got, stay, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(found.exit_layers, expected.exit_layers)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.streaks, expected.streaks)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=1e-5)
    return stay


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("policy_input", INPUTS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_exit_step(criterion: str, policy_input: str | None, last: bool) -> None:
    torch.manual_seed(7)
    dtype = DTYPES[(CRITERIA.index(criterion) + POLICY_CODES[policy_input]) % 3]
    check_exit_step(7, 99, 5, policy_input, criterion, dtype, last)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 5, 77])
@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
def test_independent_labels(criterion: str, classes: int, last: bool) -> None:
    torch.manual_seed(7)
    check_exit_step(9, 19, classes, "both", criterion, torch.float32, last, multi_label=True)


@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
def test_independent_labels_that_are_not_finite(criterion: str) -> None:
    nan, inf = float("nan"), float("inf")
    for bias in ([nan, 1.0], [1.0, nan], [inf, 1.0], [-inf, inf], [nan, inf], [0.0, -1.0]):
        weights = HeadWeights(torch.zeros(2, 8), torch.tensor(bias), multi_label=True)
        found = make_results(4, 2, True)
        expected = clone(found)
        for results, ops in ((found, step), (expected, reference.exit_step)):
            decision = decide_by(results, criterion, 0.5, last=True)
            batch = PackedBatch(torch.zeros(2, 8), offsets_of([1, 1]), torch.tensor([3, 1]))
            ops(batch, torch.zeros(2, 8), weights, decision, results)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_row_has_its_own_threshold(criterion: str) -> None:
    torch.manual_seed(7)
    stay = check_exit_step(9, 19, 5, "both", criterion, torch.float32, own_thresholds=True)
    assert 0 < len(stay.row_ids) < 6
    assert bool((stay.row_ids % 2 == 1).all())


def test_one_threshold_of_all_rows() -> None:
    """Its neighbours in memory say the opposite, and are not read."""
    batch = PackedBatch(torch.zeros(3, 8), offsets_of([1, 1, 1]), torch.tensor([4, 0, 1]))
    weights, pooled = make_weights(8, 3, "both"), torch.randn(3, 8)
    alternating = torch.tensor([-1.0, 2.0] * 3)
    for place, stay in ((0, []), (1, [4, 0, 1])):
        results = make_results(5, 3)
        decision = decide_by(results, "policy", alternating[place])
        assert decision.thresholds.stride(0) == 0
        assert step(batch, pooled, weights, decision, results).row_ids.tolist() == stay


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_in_place_of_tanh(dtype: torch.dtype) -> None:
    torch.manual_seed(7)
    check_exit_step(7, 99, 5, "both", "policy", dtype, activation="relu")
    check_exit_step(7, 99, 5, "both", "policy", dtype, activation="none")


SIZES = [(hidden_size, classes) for hidden_size in HIDDEN_SIZES for classes in (1, 2, 3, 77)]


@slow
@pytest.mark.parametrize(("case", "size"), list(enumerate(SIZES)))
def test_exit_step_at_odd_sizes(case: int, size: tuple[int, int]) -> None:
    """Every hidden size with every number of classes; dtypes, rows and criteria alternate."""
    torch.manual_seed(case)
    criterion, rows = CRITERIA[case % len(CRITERIA)], (1, 2)[case % 2]
    check_exit_step(rows, *size, "both", criterion, DTYPES[(case // 4 + case) % 3])


@pytest.mark.parametrize(("rows", "dtype"), [(31, torch.float16), (70, torch.bfloat16)])
def test_exit_step_of_many_rows(rows: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    check_exit_step(rows, 64, 3, "both", "policy", dtype)


def test_plan_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistentee_ext.ops.triton.exit_step.PLAN_ROWS", 8)
    torch.manual_seed(3)
    check_exit_step(31, 19, 2, None, "confidence", torch.float32)


@pytest.mark.parametrize(("classes", "policy_size"), [(2, 1), (2, 99), (1024, 1024)])
def test_exit_step_at_other_widths(classes: int, policy_size: int) -> None:
    torch.manual_seed(1)
    check_exit_step(2, 19, classes, "both", "policy", torch.float32, policy_size=policy_size)


def test_long_rows_are_copied_in_parts() -> None:
    torch.manual_seed(2)
    batch = PackedBatch(torch.randn(90, 768), offsets_of([50, 3, 37]), torch.tensor([2, 0, 1]))
    weights = HeadWeights(torch.ones(2, 768), torch.zeros(2))
    results = make_results(3, 2)
    results.labels[:] = 1  # not what is predicted: every streak ends
    decision = decide_by(results, "patience", 0.5, max_streak=1)
    stay = step(batch, torch.randn(3, 768), weights, decision, results)
    for found, expected in zip(stay, batch, strict=True):
        assert torch.equal(found, expected)
    assert results.streaks.tolist() == [0, 0, 0]


def test_nothing_to_do() -> None:
    weights, results = make_weights(8, 2, "both"), make_results(3, 2)
    decision = decide_by(results, "policy", 0.5)
    before = clone(results)
    absent = torch.full((2,), -1)
    for row_ids in (torch.zeros(0, dtype=torch.int64), absent):
        empty = PackedBatch(torch.zeros(0, 8), offsets_of([0] * len(row_ids)), row_ids)
        left = step(empty, torch.randn(len(row_ids), 8), weights, decision, results)
        assert [len(part) for part in left] == [0, 1, 0]
    for after, untouched in zip(results, before, strict=True):
        assert torch.equal(after, untouched)
    none, norm, tickets = torch.zeros(0, 8), (torch.ones(8), torch.ones(8)), torch.zeros(2).int()
    kernels.add_norm(none, none, *norm, EPS)
    for rows in (0, 2):
        offsets = offsets_of([0] * rows)
        pooled = kernels.add_norm_pool(none, none, *norm, EPS, offsets, 1, "mean", tickets)
        assert pooled.shape == (rows, 8)


@pytest.mark.parametrize("criterion", ["policy", "confidence", "entropy", "energy"])
@pytest.mark.parametrize("activation", STATE_ACTIVATIONS)
def test_nan_goes_to_the_last_layer_and_shows(criterion: str, activation: str) -> None:
    torch.manual_seed(0)
    batch = PackedBatch(torch.randn(4, 8), offsets_of([2, 2]), torch.tensor([4, 1]))
    weights, pooled = make_weights(8, 3, "both"), torch.randn(2, 8)
    weights = weights._replace(state_activation=activation)
    pooled[0, 3] = float("nan")
    for last in (False, True):
        results = ExitResults.empty(5, 3)
        decision = decide_by(results, criterion, 1e-9, max_streak=1, last=last)
        left = step(batch, pooled, weights, decision, results)
        assert left.row_ids.tolist() == ([] if last else [4])
        assert bool(results.logits[4].isnan().all()) == last
        assert bool(results.exit_scores[4].isnan()) == last
        assert results.labels[4] == 0
        assert bool(results.exit_scores[1].isfinite())


def test_energy_of_extreme_logits() -> None:
    batch = PackedBatch(torch.zeros(1, 1), offsets_of([1]), torch.tensor([0]))
    for logits in EXTREME_LOGITS:
        results = ExitResults.empty(1, 2)
        decision = decide_by(results, "energy", 1.0, max_streak=1, last=True)
        step(batch, torch.zeros(1, 1), HeadWeights(torch.ones(2, 1), logits), decision, results)
        expected = logits.logsumexp(0).sigmoid()
        torch.testing.assert_close(results.exit_scores[0], expected, equal_nan=True)


def test_label_is_the_first_of_the_largest_and_nan_is_largest() -> None:
    nan, inf = float("nan"), float("inf")
    rows = [
        [1, 3, 3, 2],
        [5, nan, 7, nan],
        [inf, 0, nan, 0],
        [-inf] * 4,
        [0, 0, 0, 0],
        [2, 1, inf, 0],
    ]
    batch = PackedBatch(torch.zeros(1, 1), offsets_of([1]), torch.tensor([0]))
    for row in rows:
        results, bias = ExitResults.empty(1, 4), torch.tensor(row).float()
        decision = decide_by(results, "patience", 0.5, max_streak=1, last=True)
        step(batch, torch.zeros(1, 1), HeadWeights(torch.ones(4, 1), bias), decision, results)
        assert results.labels.item() == bias.argmax()
        assert torch.equal(results.logits[0].nan_to_num(99), bias.nan_to_num(99))


def test_a_score_equal_to_the_threshold_stays() -> None:
    """Every streak of up to 12 exits against itself: division is rounded as in PyTorch."""
    batch = PackedBatch(torch.zeros(1, 1), offsets_of([1]), torch.tensor([0]))
    weights = HeadWeights(torch.ones(1, 1), torch.zeros(1))
    for streak, most in ((1, 3), (2, 3), (5, 7), (9, 11), (11, 12)):
        results = ExitResults.empty(1, 1)
        results.labels[0], results.streaks[0] = 0, streak - 1
        decision = decide_by(results, "patience", streak / most, max_streak=most)
        assert len(step(batch, torch.zeros(1, 1), weights, decision, results).row_ids) == 1
        assert results.streaks.item() == streak


def test_tanh_is_accurate_over_its_range() -> None:
    """Through a classifier that passes each element of a row on."""
    ends = torch.tensor([0.0, 1e-6, -1e-6, 100, -100, 0.625, -0.625, 1e30, -float("inf")])
    x = torch.cat((torch.linspace(-12, 12, 247), ends))
    size = len(x)
    results = ExitResults.empty(1, size)
    batch = PackedBatch(torch.zeros(1, size), offsets_of([1]), torch.tensor([0]))
    decision = decide_by(results, "confidence", 1.0, max_streak=0, last=True)
    step(batch, x[None], HeadWeights(torch.eye(size), torch.zeros(size)), decision, results)
    exact = x.double().tanh()
    assert bool(((results.logits[0] - exact).abs() <= 3e-7 * exact.abs()).all())


def test_gelu_is_accurate_over_its_range() -> None:
    """Through a policy of one unit that reads a state of 1, and a score near zero."""
    batch = PackedBatch(torch.zeros(1, 1), offsets_of([1]), torch.tensor([0]))
    for x in (-6.0, -2.5, -1.0, -1e-3, 0.0, 0.3, 1.0, 3.0, 6.0):
        results = ExitResults.empty(1, 1)
        decision = decide_by(results, "policy", 1.0, max_streak=0, last=True)
        unit = (torch.tensor([[x]]), torch.zeros(1), torch.ones(1), torch.zeros(1))
        weights = HeadWeights(torch.ones(1, 1), torch.zeros(1), *unit, "state")
        step(batch, torch.full((1, 1), 20.0), weights, decision, results)
        exact = torch.nn.functional.gelu(torch.tensor(x, dtype=torch.float64)).sigmoid()
        assert abs(results.exit_scores.item() - exact) < 5e-7


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    pooled, weights = torch.randn(3, 111), make_weights(111, 7, "both")
    together, hidden = ExitResults.empty(3, 7), torch.zeros(3, 111)
    decision = decide_by(together, "policy", 0.5, last=True)
    batch = PackedBatch(hidden, offsets_of([1, 1, 1]), torch.tensor([2, 0, 1]))
    step(batch, pooled, weights, decision, together)
    alone = ExitResults.empty(3, 7)
    for row, row_id in enumerate(batch.row_ids):
        one = PackedBatch(hidden[:1], offsets_of([1]), row_id[None])
        step(one, pooled[row : row + 1], weights, decision, alone)
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a, b)
