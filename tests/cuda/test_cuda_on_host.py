"""The CUDA kernels, run on the host one fiber a thread, against `reference.py`."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from support.cuda_host import (
    DTYPES,
    POLICY_INPUTS,
    CudaHost,
    Planned,
    compile_host,
)
from support.exit_cases import (
    EXTREME_LOGITS,
    clone,
    compare_texts,
    decide_by,
    make_batch,
    make_results,
    make_weights,
    with_absent_rows,
)
from torch import Tensor
from torch.nn.functional import layer_norm

from consistentee_ext.criteria import CRITERIA, MULTI_LABEL_CRITERIA
from consistentee_ext.ops import reference
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.segments import compare, pair_up, segment_offsets
from consistentee_ext.weights import HeadWeights, NormWeights

pytestmark = pytest.mark.needs_compiler
ROWS = (1, 2, 31, 33, 257, 300, 600)


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> CudaHost:
    return CudaHost(compile_host(tmp_path_factory.mktemp("cuda") / "host.so"))


def check_plan(planned: Planned, batch: PackedBatch, stay: PackedBatch) -> None:
    rows, tokens = len(stay.row_ids), len(stay.hidden)
    absent = len(batch.row_ids) - rows
    assert planned.totals.tolist() == [rows, tokens]
    assert planned.row_ids.tolist() == stay.row_ids.tolist() + [-1] * absent
    assert planned.cu_seqlens.tolist() == stay.cu_seqlens.tolist() + [tokens] * absent
    begin = dict(zip(stay.row_ids.tolist(), stay.cu_seqlens.tolist(), strict=False))
    assert planned.offsets.tolist() == [begin.get(row, -1) for row in batch.row_ids.tolist()]


def check_copy(
    host: CudaHost, planned: Planned, batch: PackedBatch, stay: PackedBatch, splits: int
) -> None:
    out = torch.full_like(batch.hidden, 77)
    host.copy(batch, planned, splits, out)
    tokens = len(stay.hidden)
    assert torch.equal(out[:tokens], stay.hidden)
    assert bool((out[tokens:] == 77).all())


@pytest.mark.parametrize("rows", [0, *ROWS])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_plan(host: CudaHost, rows: int, share: float) -> None:
    torch.manual_seed(rows)
    batch = make_batch(torch.randint(1, 6, (rows,)).tolist(), 3, torch.float32)
    keep = torch.rand(rows) < share
    check_plan(host.plan(batch, keep), batch, reference.compact(batch, keep))


@pytest.mark.parametrize("rows", [0, *ROWS])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_rows_that_keep_their_places(host: CudaHost, rows: int, share: float) -> None:
    torch.manual_seed(rows)
    batch = make_batch(torch.randint(1, 6, (rows,)).tolist(), 3, torch.float32)
    keep = torch.rand(rows) < share
    planned = host.plan(batch, keep, seed=rows, removes=False)
    assert planned.row_ids.tolist() == torch.where(keep, batch.row_ids, -1).tolist()
    tokens = int(batch.cu_seqlens.diff()[keep].sum())
    assert planned.totals.tolist() == [int(keep.sum()), tokens]
    for untouched in (planned.offsets, planned.cu_seqlens):
        assert bool((untouched == -77).all())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 5, 8, 19, 64, 111, 768])
@pytest.mark.parametrize("splits", [1, 3])
def test_copy(host: CudaHost, dtype: torch.dtype, hidden_size: int, splits: int) -> None:
    torch.manual_seed(hidden_size)
    batch = make_batch([3, 1, 40, 2, 7], hidden_size, dtype)
    keep = torch.tensor([False, True, True, False, True])
    check_copy(host, host.plan(batch, keep), batch, reference.compact(batch, keep), splits)


def test_copy_of_wide_tokens(host: CudaHost) -> None:
    batch = make_batch([2, 1, 2], 8192, torch.bfloat16)
    keep = torch.tensor([False, True, True])
    check_copy(host, host.plan(batch, keep), batch, reference.compact(batch, keep), 2)


def between(scores: Tensor) -> float:
    """A threshold amid the scores, far enough from each that rounding does not decide."""
    known = scores[~scores.isnan()].unique()
    if len(known) < 2:
        return 0.5
    middle = known[len(known) // 4 : max(len(known) * 3 // 4, len(known) // 4 + 2)]
    gap, place = middle.diff().max(0)
    if gap < 1e-4:
        return float(known[0]) - 0.1
    return float(middle[place] + gap / 2)


def check_exit_rows(
    host: CudaHost,
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    criterion: str,
    last: bool = False,
    threshold: float | Tensor | None = None,
) -> PackedBatch:
    """The rows of `batch` whose id is -1 have to leave no trace."""
    there = batch.row_ids >= 0
    present = PackedBatch(
        batch.hidden,
        torch.cat((torch.zeros(1), batch.cu_seqlens.diff()[there].cumsum(0))).int(),
        batch.row_ids[there],
    )
    classes, multi_label = len(weights.classifier_bias), weights.multi_label
    expected = make_results(len(there) + 3, classes, multi_label)
    probe = clone(expected)
    decision = decide_by(expected, criterion, 0.0, layer=2, max_streak=4, last=True)
    reference.exit_step(present, pooled[there], weights, decision, probe)
    expected.labels[::2] = probe.labels[::2]  # else few rows agree with the layer before
    if multi_label:
        expected.logits[::2] = probe.logits[::2]
    if threshold is None:
        probe = clone(expected)
        reference.exit_step(present, pooled[there], weights, decision, probe)
        threshold = between(probe.exit_scores[present.row_ids])
    found, in_place = clone(expected), clone(expected)
    decision = decide_by(expected, criterion, threshold, layer=2, max_streak=4, last=last)
    stay = reference.exit_step(present, pooled[there], weights, decision, expected)

    tickets = torch.zeros(1, dtype=torch.int32)
    kept = host.exit_rows(batch, pooled, weights, decision, in_place, tickets, removes=False)
    assert torch.equal(
        kept.row_ids, batch.row_ids.where(torch.isin(batch.row_ids, stay.row_ids), -1)
    )
    assert kept.totals.tolist() == [len(stay.row_ids), len(stay.hidden)]
    check_results(in_place, expected)
    planned = host.exit_rows(batch, pooled, weights, decision, found, tickets)
    assert tickets.item() == 0
    assert torch.equal(planned.keep, torch.isin(batch.row_ids, stay.row_ids))
    check_plan(planned, batch, stay)
    check_copy(host, planned, batch, stay, splits=2)
    check_results(found, expected)
    return stay


def check_results(found: ExitResults, expected: ExitResults) -> None:
    assert torch.equal(found.exit_layers, expected.exit_layers)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.streaks, expected.streaks)
    close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-5, equal_nan=True)
    close(found.logits, expected.logits)
    close(found.exit_scores, expected.exit_scores)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy_input", POLICY_INPUTS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("last", [False, True])
def test_exit_rows(
    host: CudaHost, dtype: torch.dtype, policy_input: str | None, criterion: str, last: bool
) -> None:
    torch.manual_seed(7)
    batch = with_absent_rows(make_batch([3, 1, 19, 2, 7, 9, 5], 19, dtype), [2, 7, 7])
    weights = make_weights(19, 5, policy_input)
    stay = check_exit_rows(host, batch, torch.randn(10, 19).to(dtype), weights, criterion, last)
    policy_of_all = criterion == "policy" and policy_input is None
    assert (0 < len(stay.row_ids) < 7) == (not last and not policy_of_all)


@pytest.mark.parametrize("classes", [1, 2, 5, 77])
@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
@pytest.mark.parametrize("last", [False, True])
def test_independent_labels(host: CudaHost, classes: int, criterion: str, last: bool) -> None:
    torch.manual_seed(7)
    batch = with_absent_rows(make_batch([3, 1, 19, 2, 7, 9, 5], 19, torch.float32), [2, 7, 7])
    weights = make_weights(19, classes, "both")._replace(multi_label=True)
    pooled = torch.randn(10, 19)
    stay = check_exit_rows(host, batch, pooled, weights, criterion, last)
    if classes < 77:  # of so many labels one is near 0 in every row: all scores are alike
        assert (0 < len(stay.row_ids) < 7) == (not last)
    pooled[3] = torch.nan
    stay = check_exit_rows(host, batch, pooled, weights, criterion, last, threshold=-1.0)
    assert len(stay.row_ids) == (0 if last or criterion == "patience" else 1)
    weights.classifier_bias[0] = torch.inf  # alone it is not the least sure label
    check_exit_rows(host, batch, torch.randn(10, 19), weights, criterion, last)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_row_has_its_own_threshold(host: CudaHost, criterion: str) -> None:
    """Far from every score: no rounding decides."""
    torch.manual_seed(7)
    batch = with_absent_rows(make_batch([3, 1, 19, 2, 7, 9, 5], 19, torch.float32), [2, 7, 7])
    weights = make_weights(19, 5, "both")
    thresholds = torch.where(torch.arange(13) % 3 == 0, -1.0, 2.0)
    pooled = torch.randn(10, 19)
    stay = check_exit_rows(host, batch, pooled, weights, criterion, threshold=thresholds)
    there = batch.row_ids[batch.row_ids >= 0]
    assert stay.row_ids.tolist() == [row for row in there.tolist() if row % 3]


def test_one_threshold_of_all_rows(host: CudaHost) -> None:
    """Its neighbours in memory say the opposite, and are not read."""
    torch.manual_seed(7)
    batch = with_absent_rows(make_batch([3, 1, 19, 2, 7, 9, 5], 19, torch.float32), [2, 7, 7])
    weights, pooled = make_weights(19, 5, "both"), torch.randn(10, 19)
    alternating = torch.where(torch.arange(13) % 2 == 0, -1.0, 2.0)
    for place, stay in ((0, 0), (1, 7)):
        threshold = alternating[place].expand(13)
        assert threshold.stride(0) == 0
        found = check_exit_rows(host, batch, pooled, weights, "policy", threshold=threshold)
        assert len(found.row_ids) == stay


@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_others_in_place_of_tanh(host: CudaHost, dtype: torch.dtype, activation: str) -> None:
    torch.manual_seed(7)
    batch, pooled = make_batch([3, 1, 19, 2], 19, dtype), torch.randn(4, 19).to(dtype)
    pooled[1, 3] = torch.nan
    weights = make_weights(19, 5, "both")._replace(state_activation=activation)
    check_exit_rows(host, batch, pooled, weights, "policy")


@pytest.mark.parametrize("classes", [1, 2, 3, 16, 77])
@pytest.mark.parametrize("hidden_size", [1, 5, 8, 19, 64, 111, 768])
def test_exit_rows_at_odd_sizes(host: CudaHost, hidden_size: int, classes: int) -> None:
    torch.manual_seed(hidden_size)
    criterion = CRITERIA[(hidden_size + classes) % len(CRITERIA)]
    weights = make_weights(hidden_size, classes, "both", policy_size=classes + 2)
    batch = make_batch([3, 1, 4, 1, 5], hidden_size, torch.float32)
    for name in {"policy", criterion}:
        check_exit_rows(host, batch, torch.randn(5, hidden_size), weights, name)


@pytest.mark.parametrize(("hidden_size", "classes"), [(8192, 3), (64, 1024)])
def test_exit_rows_of_great_sizes(host: CudaHost, hidden_size: int, classes: int) -> None:
    torch.manual_seed(0)
    weights = make_weights(hidden_size, classes, "both", policy_size=64)
    batch = make_batch([1, 2, 1], hidden_size, torch.bfloat16)
    pooled = torch.randn(3, hidden_size).bfloat16()
    check_exit_rows(host, batch, pooled, weights, "policy")


@pytest.mark.parametrize("rows", ROWS)
def test_exit_rows_of_many_rows(host: CudaHost, rows: int) -> None:
    torch.manual_seed(rows)
    batch = make_batch(torch.randint(1, 6, (rows,)).tolist(), 8, torch.float32)
    absent = torch.randint(0, rows + 1, (rows // 10,)).tolist()
    batch = with_absent_rows(batch, absent)
    pooled = torch.randn(len(batch.row_ids), 8)
    check_exit_rows(host, batch, pooled, make_weights(8, 3, "prediction"), "policy")


def test_a_batch_of_absent_rows(host: CudaHost) -> None:
    batch = with_absent_rows(make_batch([], 8, torch.float32), [0] * 5)
    check_exit_rows(host, batch, torch.randn(5, 8), make_weights(8, 3, "both"), "policy")


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("last", [False, True])
def test_nan_logits(host: CudaHost, criterion: str, last: bool) -> None:
    """Of a whole row, or of single classes: the first NaN is the label, a NaN score never exits."""
    torch.manual_seed(1)
    batch, pooled = make_batch([2, 1, 3, 2], 19, torch.float32), torch.randn(4, 19)
    pooled[1] = torch.nan
    weights = make_weights(19, 77, "both")
    check_exit_rows(host, batch, pooled, weights, criterion, last)
    weights.classifier_bias[[40, 66]] = torch.nan
    stay = check_exit_rows(host, batch, pooled, weights, criterion, last, threshold=-1.0)
    assert len(stay.row_ids) == (0 if last or criterion == "patience" else 4)


def test_energy_of_extreme_logits(host: CudaHost) -> None:
    batch = make_batch([2], 8, torch.float32)
    for logits in EXTREME_LOGITS:
        weights = HeadWeights(torch.zeros(2, 8), logits)
        check_exit_rows(host, batch, torch.randn(1, 8), weights, "energy", last=True)


def test_equal_logits(host: CudaHost) -> None:
    """The first of equals is the label, as in torch, and the margins are 0."""
    batch, pooled = make_batch([2, 1], 8, torch.float32), torch.randn(2, 8)
    weights = make_weights(8, 70, "both")
    weights.classifier_weight.zero_()
    weights.classifier_bias.zero_()[[33, 35, 67]] = 1.0
    for criterion in CRITERIA:
        check_exit_rows(host, batch, pooled, weights, criterion)
        check_exit_rows(host, batch, pooled, weights, criterion, last=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_exit_rows_do_not_depend_on_the_order(host: CudaHost, dtype: torch.dtype) -> None:
    torch.manual_seed(3)
    batch = with_absent_rows(make_batch([3, 1, 4, 1, 5, 9], 111, dtype), [3])
    pooled, weights = torch.randn(7, 111).to(dtype), make_weights(111, 16, "both")
    tickets = torch.zeros(1, dtype=torch.int32)
    results = make_results(10, 16)
    decision = decide_by(results, "policy", 0.5)
    outcomes = []
    for seed in range(6):
        found = clone(results)
        planned = host.exit_rows(batch, pooled, weights, decision, found, tickets, seed)
        outcomes.append((*planned, *found))
    for other in outcomes[1:]:
        assert all(map(torch.equal, other, outcomes[0]))


def norm_weights(size: int, dtype: torch.dtype) -> Any:
    return NormWeights(torch.randn(size).to(dtype), torch.randn(size).to(dtype), 1e-12)


def check_norm(
    found: Tensor, hidden: Tensor, residual: Tensor, norm: Any, eps: float = 1e-6
) -> None:
    """Off float64 by at most twice what eager torch is."""
    exact = layer_norm(
        hidden.double() + residual.double(),
        norm.weight.shape,
        norm.weight.double(),
        norm.bias.double(),
        norm.eps,
    )
    eager = reference.add_norm(hidden, residual, *norm)
    assert (found - exact).abs().max() <= 2 * (eager - exact).abs().max() + eps


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("tokens", "size"), [(1, 5), (2, 8), (7, 19), (33, 64), (9, 111), (17, 768), (3, 8192)]
)
def test_add_norm_tokens(host: CudaHost, dtype: torch.dtype, tokens: int, size: int) -> None:
    torch.manual_seed(size)
    hidden, residual = torch.randn(2, tokens, size).to(dtype)
    residual = residual + 3
    norm = norm_weights(size, dtype)
    found, again = hidden.clone(), hidden.clone()
    host.add_norm_tokens(found, residual, norm, seed=1)
    host.add_norm_tokens(again, residual, norm, seed=2)
    assert torch.equal(found, again)
    check_norm(found, hidden, residual, norm)


def test_a_token_of_one_number_is_the_bias(host: CudaHost) -> None:
    found, norm = torch.full((3, 1), 7.0), NormWeights(torch.ones(1), torch.ones(1) * 2, 1e-5)
    host.add_norm_tokens(found, torch.zeros(3, 1), norm)
    assert found.tolist() == [[2.0]] * 3


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 19, 64, 768, 8192])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_add_norm_pool(host: CudaHost, dtype: torch.dtype, size: int, pooling: str) -> None:
    torch.manual_seed(size)
    lengths = [1, 31, 0, 32, 33, 100, 0] if size < 8192 else [1, 33, 0]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    rows, tokens = len(lengths), sum(lengths)
    hidden, residual = torch.randn(2, tokens, size).to(dtype)
    norm = norm_weights(size, dtype)
    tickets = torch.zeros(rows, dtype=torch.int32)
    outcomes = []
    for seed in range(3):
        found, pooled = hidden.clone(), torch.full((rows, size), 77.0).to(dtype)
        host.add_norm_pool(found, residual, norm, cu_seqlens, pooling, tickets, pooled, seed)
        assert not tickets.any()
        outcomes.append((found, pooled))
    for other in outcomes[1:]:
        assert all(map(torch.equal, other, outcomes[0]))

    found, pooled = outcomes[0]
    alone = hidden.clone()
    host.add_norm_tokens(alone, residual, norm)
    assert torch.equal(found, alone)
    there = torch.tensor(lengths) > 0
    assert bool((pooled[~there] == 77).all())  # nothing is written for a row without tokens
    present = torch.cat((cu_seqlens[:1], cu_seqlens[1:][there]))
    eager = reference.pool(found, present, pooling)
    if pooling == "cls":
        assert torch.equal(pooled[there], eager)
        return
    exact = torch.stack([row.double().mean(0) for row in found.split(lengths) if len(row)])
    assert (pooled[there] - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-7


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 19, 64, 768, 8192])
def test_add_norm_pool_of_pairs(host: CudaHost, dtype: torch.dtype, size: int) -> None:
    """Of texts of less than a block, of some blocks, with and without a rest; of one text alone; of
    rows that are absent, and have no number."""
    torch.manual_seed(size)
    lengths = [1, 31, 0, 32, 34, 100, 33, 5, 0] if size < 8192 else [1, 35, 0]
    firsts = [1, 16, 0, 1, 17, 63, 33, 99, 0] if size < 8192 else [1, 17, 0]
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int()
    rows, tokens = len(lengths), sum(lengths)
    there = torch.tensor(lengths) > 0
    row_ids = torch.where(there, torch.randperm(rows + 3)[:rows], -1)
    first_lengths = torch.full((rows + 3,), 7).int()
    first_lengths[row_ids[there]] = torch.tensor(firsts).int()[there]
    hidden, residual = torch.randn(2, tokens, size).to(dtype)
    norm, tickets = norm_weights(size, dtype), torch.zeros(rows, dtype=torch.int32)
    outcomes = []
    for seed in range(3):
        found, pooled = hidden.clone(), torch.full((rows, 4 * size), 77.0).to(dtype)
        where = (cu_seqlens, "pair", tickets, pooled, seed, row_ids, first_lengths)
        host.add_norm_pool(found, residual, norm, *where)
        assert not tickets.any()
        outcomes.append((found, pooled))
    for other in outcomes[1:]:
        assert all(map(torch.equal, other, outcomes[0]))

    found, pooled = outcomes[0]
    alone = hidden.clone()
    host.add_norm_tokens(alone, residual, norm)
    assert torch.equal(found, alone)
    assert bool((pooled[~there] == 77).all())
    pooled = pooled[there]
    u, v, difference, product = pooled.chunk(4, dim=1)
    assert torch.equal(difference, (u - v).abs())
    assert torch.equal(product, u * v)
    present = torch.cat((cu_seqlens[:1], cu_seqlens[1:][there]))
    offsets = segment_offsets(present, first_lengths[row_ids[there]])
    means = pair_up(reference.pool(found, offsets, "mean"), offsets)
    eager = compare(*means.chunk(2, dim=1))
    present_rows = [row for row in range(rows) if there[row]]
    exact = compare_texts(
        found, [lengths[row] for row in present_rows], [firsts[row] for row in present_rows]
    )
    assert (pooled - exact).abs().max() <= 2 * (eager - exact).abs().max() + 1e-6


def test_a_first_text_of_less_than_nothing_is_empty(host: CudaHost) -> None:
    """No token before the row is read; the mean of nothing is no number."""
    hidden, pooled = torch.randn(5, 8), torch.zeros(1, 32)
    norm = norm_weights(8, torch.float32)
    numbers = (torch.zeros(1).long(), torch.full((1,), -3).int())
    where = (torch.tensor([2, 5]).int(), "pair", torch.zeros(1).int(), pooled, 0, *numbers)
    host.add_norm_pool(hidden, torch.zeros(5, 8), norm, *where)
    u, v, difference, product = pooled.chunk(4, dim=1)
    assert all(bool(part.isnan().all()) for part in (u, difference, product))
    torch.testing.assert_close(v[0], hidden[2:].mean(0))


def test_a_row_that_has_left_is_one_text(host: CudaHost) -> None:
    """It has no number by which to know where its first one ends."""
    hidden, pooled = torch.randn(5, 8), torch.zeros(2, 32)
    norm = norm_weights(8, torch.float32)
    lengths = torch.tensor([1, 1, 2]).int()[1:]  # what lies before them is no row's
    numbers = (torch.tensor([-1, 0]), lengths)
    where = (torch.tensor([0, 2, 5]).int(), "pair", torch.zeros(2).int(), pooled, 0, *numbers)
    host.add_norm_pool(hidden, torch.zeros(5, 8), norm, *where)
    u, v, *_ = pooled.chunk(4, dim=1)
    assert torch.equal(u[0], v[0])
    torch.testing.assert_close(u[1], hidden[2])
    torch.testing.assert_close(v[1], hidden[3:].mean(0))


def test_a_launch_of_no_block_is_an_error(host: CudaHost) -> None:
    batch = make_batch([], 8, torch.float32)
    tickets, results = torch.zeros(1, dtype=torch.int32), make_results(3, 3)
    decision = decide_by(results, "policy", 0.5)
    arguments = (torch.randn(0, 8), make_weights(8, 3, None), decision, results)
    with pytest.raises(RuntimeError, match="invalid configuration argument"):
        host.exit_rows(batch, *arguments, tickets)
