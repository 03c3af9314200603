"""On a GPU: each op against the reference. See support/gpu.py for where this runs."""

from __future__ import annotations

import pytest
import torch
from support.exit_cases import (
    DTYPES,
    clone,
    compare_texts,
    decide_by,
    make_batch,
    make_results,
    make_weights,
)
from support.gpu import CARD, DEVICE, REHEARSED, assert_near, on_device

from consistentee_ext.criteria import CRITERIA, MULTI_LABEL_CRITERIA
from consistentee_ext.inputs import pack_inputs
from consistentee_ext.ops import device_attention, load_device_ops, reference
from consistentee_ext.packed import InputLimits, PackedBatch
from consistentee_ext.segments import pair_up, segment_offsets
from consistentee_ext.weights import NormWeights

pytestmark = pytest.mark.needs_device
SHAPES = [(1, 8, 1), (7, 99, 5), (300, 768, 2), (33, 1024, 1024)]


def check_exit_step(
    backend: str,
    dtype: torch.dtype,
    policy_input: str | None,
    criterion: str,
    shape: tuple[int, int, int],
    activation: str = "tanh",
    own_thresholds: bool = False,
    multi_label: bool = False,
) -> None:
    """Of rows, hidden size and classes: decisions are equal, values near.

    With `own_thresholds` they are above or below every score, row by row.
    """
    rows, hidden_size, classes = shape
    torch.manual_seed(0)
    lengths = torch.randint(1, 20, (rows,)).tolist()
    batch = make_batch(lengths, hidden_size, dtype)
    weights = make_weights(hidden_size, classes, policy_input)
    weights = weights._replace(state_activation=activation, multi_label=multi_label)
    pooled = torch.randn(rows, hidden_size).to(dtype)
    expected = make_results(rows + 3, classes, multi_label)
    probe = clone(expected)
    decision = decide_by(probe, criterion, 0.5, layer=2, max_streak=4, last=True)
    reference.exit_step(batch, pooled, weights, decision, probe)
    if multi_label:  # else few sets are those of the layer before
        expected.logits[::2] = probe.logits[::2]
        probe = clone(expected)
        reference.exit_step(batch, pooled, weights, decision, probe)
    found = on_device(clone(expected))
    # A threshold in the widest gap between two scores near the middle: rounding does not decide.
    scores = probe.exit_scores[batch.row_ids].sort().values
    middle = scores[rows // 4 : rows - rows // 4]
    threshold = 0.5
    if len(middle) > 1:
        widest = int(middle.diff().argmax())
        threshold = min(max(middle[widest : widest + 2].mean().item(), 1e-6), 1.0)
    decision = decide_by(probe, criterion, threshold, layer=2, max_streak=4)
    if own_thresholds:
        thresholds = torch.where(torch.arange(rows + 3) % 2 == 0, -1.0, 2.0)
        decision = decision._replace(thresholds=thresholds)
    totals = torch.zeros(2, dtype=torch.int32)
    tickets = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
    stay = PackedBatch(*map(torch.empty_like, batch))
    reference.exit_step_async(
        batch, pooled, weights, decision, expected, tickets.cpu(), totals, stay
    )
    on_host = torch.zeros(2, dtype=torch.int32, pin_memory=CARD)
    got = PackedBatch(*map(torch.empty_like, on_device(batch)))
    load_device_ops(backend).exit_step_async(
        on_device(batch),
        pooled.to(DEVICE),
        on_device(weights),
        on_device(decision),
        found,
        tickets,
        on_host,
        got,
    )
    if CARD:
        torch.cuda.synchronize()
    assert on_host.tolist() == totals.tolist()
    assert torch.equal(got.row_ids.cpu(), stay.row_ids)
    assert torch.equal(got.cu_seqlens.cpu(), stay.cu_seqlens)
    tokens = int(totals[1])
    assert torch.equal(got.hidden[:tokens].cpu(), stay.hidden[:tokens])
    assert not tickets.any()
    for name in ("exit_layers", "labels", "streaks"):
        assert torch.equal(getattr(found, name).cpu(), getattr(expected, name))
    torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(found.exit_scores.cpu(), expected.exit_scores, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("policy_input", [None, "state", "prediction", "both"])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exit_step(
    gpu_backend: str,
    dtype: torch.dtype,
    policy_input: str | None,
    criterion: str,
    shape: tuple[int, int, int],
) -> None:
    check_exit_step(gpu_backend, dtype, policy_input, criterion, shape)


@pytest.mark.gpu_check
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("policy_input", "criterion", "shape"),
    [
        ("both", "policy", (40, 99, 2) if REHEARSED else (300, 768, 2)),
        ("state", "energy", (9, 64, 33) if REHEARSED else (33, 1024, 1024)),
        (None, "patience", (7, 99, 5)),
    ],
    ids=str,
)
def test_chosen_exit_steps(
    gpu_backend: str,
    dtype: torch.dtype,
    policy_input: str | None,
    criterion: str,
    shape: tuple[int, int, int],
) -> None:
    check_exit_step(gpu_backend, dtype, policy_input, criterion, shape)


@pytest.mark.gpu_check
@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
@pytest.mark.parametrize("shape", [(40, 99, 3), (7, 64, 33)], ids=str)
def test_independent_labels(gpu_backend: str, criterion: str, shape: tuple[int, int, int]) -> None:
    check_exit_step(gpu_backend, torch.float32, "both", criterion, shape, multi_label=True)


@pytest.mark.gpu_check
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_relu_and_thresholds_of_single_rows(gpu_backend: str, dtype: torch.dtype) -> None:
    what = ("both", "policy", (40, 99, 2))
    check_exit_step(gpu_backend, dtype, *what, activation="relu", own_thresholds=True)
    check_exit_step(gpu_backend, dtype, *what, activation="none", own_thresholds=True)


@pytest.mark.gpu_racecheck
@pytest.mark.needs_cuda
def test_exit_step_without_races() -> None:
    check_exit_step("cuda", torch.bfloat16, "both", "policy", (33, 768, 2))


def check_add_norm(backend: str, dtype: torch.dtype, hidden_size: int, pooling: str | None) -> None:
    """Layer norm of a sum, and the rows' pooling where one is named."""
    torch.manual_seed(0)
    lengths = [1, 31, 32, 33, 100, 512]
    batch = make_batch(lengths, hidden_size, dtype)
    other, weight, bias = (torch.randn(n, hidden_size).to(dtype) for n in (len(batch.hidden), 1, 1))
    norm = on_device(NormWeights(weight[0], bias[0], 1e-5))
    hidden, residual = batch.hidden.to(DEVICE), on_device(batch._replace(hidden=other))
    exact = reference.add_norm(
        hidden.double(), residual.hidden.double(), norm.weight.double(), norm.bias.double(), 1e-5
    )
    eager = reference.add_norm(hidden, residual.hidden, *norm)
    if pooling is None:
        assert load_device_ops(backend).add_norm(hidden, residual.hidden, *norm) is hidden
        assert_near(hidden, exact, eager)
        return
    tickets = torch.zeros(len(lengths), dtype=torch.int32, device=DEVICE)
    # Of first texts: one token, a part of a block, blocks with and without a rest, the whole row.
    firsts = torch.tensor([1, 5, 16, 33, 32, 333]).int()
    first_lengths = torch.zeros(len(lengths) + 3).int()
    first_lengths[batch.row_ids] = firsts
    where = (residual.cu_seqlens, 512, pooling, tickets, residual.row_ids, first_lengths.to(DEVICE))
    pooled = load_device_ops(backend).add_norm_pool(
        hidden, residual.hidden, norm.weight, norm.bias, norm.eps, *where
    )
    assert_near(hidden, exact, eager)
    assert not tickets.any()
    if pooling == "pair":
        check_comparison(pooled.cpu(), batch._replace(hidden=hidden.cpu()), firsts)
        return
    # The mean is of the rounded tokens, and rounded once; `reference.pool` sums in float32.
    wide = hidden.cpu().double()
    means = [rows.mean(dim=0) for rows in wide.split(lengths)]
    expected = torch.stack(means) if pooling == "mean" else wide[batch.cu_seqlens[:-1].long()]
    assert_near(pooled, expected, reference.pool(hidden.cpu(), batch.cu_seqlens, pooling))


def check_comparison(pooled: torch.Tensor, batch: PackedBatch, firsts: torch.Tensor) -> None:
    """The two means are near, and their difference and product are those of the rounded means."""
    offsets = segment_offsets(batch.cu_seqlens, firsts)
    means = pair_up(reference.pool(batch.hidden, offsets, "mean"), offsets)
    lengths = batch.cu_seqlens.diff().tolist()
    exact = compare_texts(batch.hidden, lengths, firsts.tolist()).chunk(2, dim=1)[0]
    texts, compared = pooled.chunk(2, dim=1)
    assert_near(texts, exact, means)
    u, v = texts.double().chunk(2, dim=1)
    # By a unit in the last place: an interpreter cuts where a device rounds to the nearest.
    rounding = torch.finfo(pooled.dtype).eps
    expected = torch.cat([(u - v).abs(), u * v], dim=1)
    torch.testing.assert_close(compared.double(), expected, rtol=rounding, atol=1e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hidden_size", [1, 19, 384, 1024, 8192])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair", None])
def test_add_norm(
    gpu_backend: str, dtype: torch.dtype, hidden_size: int, pooling: str | None
) -> None:
    check_add_norm(gpu_backend, dtype, hidden_size, pooling)


@pytest.mark.gpu_check
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair", None])
def test_chosen_add_norm(gpu_backend: str, dtype: torch.dtype, pooling: str | None) -> None:
    check_add_norm(gpu_backend, dtype, 768, pooling)


@pytest.mark.gpu_racecheck
@pytest.mark.needs_cuda
def test_pooling_of_pairs_without_races() -> None:
    check_add_norm("cuda", torch.bfloat16, 768, "pair")


@pytest.mark.gpu_check
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("first_tokens_alone", [False, True])
def test_attention(dtype: torch.dtype, first_tokens_alone: bool) -> None:
    """On packed tokens; absent rows and tokens behind the last row change nothing."""
    torch.manual_seed(0)
    lengths = [1, 2, 17, 64, 130, 512]
    heads, size, behind = 4, 128, 9
    keys = torch.tensor([0, *lengths]).cumsum(0).int()
    queries = torch.arange(len(lengths) + 1, dtype=torch.int32) if first_tokens_alone else keys
    query = torch.randn(int(queries[-1]), size).to(dtype)
    key, value = torch.randn(2, int(keys[-1]), size).to(dtype)
    exact = reference.attention(query.double(), key.double(), value.double(), queries, keys, heads)
    eager = reference.attention(query, key, value, queries, keys, heads)
    garbage = torch.full((behind, size), torch.nan, dtype=dtype)
    q, k, v = (torch.cat((tokens, garbage)).to(DEVICE) for tokens in (query, key, value))
    q_ends, k_ends = (torch.cat((o, o[-1:], o[-1:])).to(DEVICE) for o in (queries, keys))
    most = 1 if first_tokens_alone else 512
    found = device_attention.attention(q, k, v, q_ends, k_ends, heads, most, 512)
    assert_near(found[: len(query)], exact, eager)


@pytest.mark.gpu_check
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_inputs_arrive_as_they_were_packed(rows: int) -> None:
    torch.manual_seed(0)
    mask = torch.rand(rows, 40) < 0.5
    mask[:, 0] = True
    ids = torch.randint(0, 100, (rows, 40))
    packed = pack_inputs(ids, mask, None, InputLimits(100, 2, 64), DEVICE, "cuda")
    for sent, arrived in zip(packed, packed.to(DEVICE), strict=True):
        assert arrived.device.type == DEVICE.type
        assert arrived.dtype == sent.dtype
        assert torch.equal(arrived.cpu(), sent)
