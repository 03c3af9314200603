"""Every operation of the engine in plain PyTorch: specification, oracle of the tests, fallback.

Letters: B rows, S padded length, T packed tokens, H hidden size, C classes, N rows the caller gave.
"""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.functional import gelu, layer_norm
from transformers.activations import ACT2FN

from consistentee_ext.criteria import SCORES, Prediction
from consistentee_ext.ops import onednn, onednn_int8
from consistentee_ext.ops.attention_form import attend
from consistentee_ext.ops.checks import check_exit_step
from consistentee_ext.ops.norm import norm
from consistentee_ext.ops.prediction import answers, prediction_statistics
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import PLAIN, AttentionForm, HeadWeights, LinearWeights


def pack(hidden: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the padding of ``[B, S, ...]`` by a 0/1 mask ``[B, S]``.

    Returns ``[T, ...]`` and ``cu_seqlens [B+1]`` int32: ``cu_seqlens[i]`` is the offset of row i's
    first token; the last element is T.
    """
    keep = mask.bool()
    cu_seqlens = torch.zeros(mask.shape[0] + 1, dtype=torch.int32, device=mask.device)
    torch.cumsum(keep.sum(dim=1), dim=0, out=cu_seqlens[1:])
    return hidden[keep], cu_seqlens


def pool(hidden: Tensor, cu_seqlens: Tensor, pooling: str) -> Tensor:
    """One vector a row, ``[T, H]`` to ``[B, H]``: its first token (cls), its last (last), or the
    mean of all (mean).

    The mean is taken in float32 and rounded once.
    """
    if pooling == "cls":
        return hidden[cu_seqlens[:-1].long()]
    if pooling == "last":
        return hidden[cu_seqlens[1:].long() - 1]
    lengths = cu_seqlens.diff().long()
    rows = torch.repeat_interleave(lengths, output_size=hidden.shape[0])
    total = hidden.new_zeros(lengths.shape[0], hidden.shape[1], dtype=torch.float32)
    total.index_add_(0, rows, hidden.float())
    return (total / lengths[:, None]).to(hidden.dtype)


def embed(
    ids: Tensor,
    types: Tensor,
    positions: Tensor,
    word_table: Tensor,
    type_table: Tensor,
    position_table: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
) -> Tensor:
    """Layer norm of word, segment and position embedding added up: ``[T, H]``.

    Args:
        ids: ``[T]`` int64, and so `types` and `positions`.
        word_table: ``[entries, H]``, and so `type_table` and `position_table`.
        weight: ``[H]``, and so `bias`, of the layer norm.
        eps: added to the variance.
    """
    total = word_table[ids] + type_table[types] + position_table[positions]
    return layer_norm(total, weight.shape, weight, bias, eps)


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """``f(x W^T + b)``, ``[T, O]``, for ``x [T, I]``; prepacked weights by oneDNN."""
    if weights.scale is not None:
        return onednn_int8.linear(x, weights)
    if weights.prepacked:
        return onednn.linear(x, weights)
    y = F.linear(x, weights.weight, weights.bias)
    return y if weights.activation is None else ACT2FN[weights.activation](y)


def activate(x: Tensor, activation: str) -> Tensor:
    """One of `consistentee_ext.weights.STATE_ACTIVATIONS`."""
    return x if activation == "none" else ACT2FN[activation](x)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_offsets: Tensor,
    key_offsets: Tensor,
    num_heads: int,
    max_queries: int | None = None,
    max_keys: int | None = None,
    form: AttentionForm = PLAIN,
) -> Tensor:
    """``softmax(Q K^T / sqrt(d)) V`` within each row, or what `form` makes of it.

    Neighbouring rows of one shape run as a batch: callers that sort by length get larger calls.

    Args:
        query: ``[Tq, heads * d]``.
        key: ``[T, K * d]`` with K heads, by default as many as the queries have; and so `value`.
        query_offsets: ``[B+1]`` int32: row i has the queries from its i-th to its next element.
        key_offsets: ``[B+1]`` int32, of keys and values.
        num_heads: of the queries.
        max_queries: no row has more; for devices, whose host does not know the offsets.
        max_keys: no row has more; likewise.
        form: what differs from BERT's attention.

    Returns:
        ``[Tq, heads * d]``.
    """
    kv_heads = form.num_kv_heads or num_heads
    lengths = zip(query_offsets.diff().tolist(), key_offsets.diff().tolist(), strict=True)
    context = torch.empty_like(query, memory_format=torch.contiguous_format)
    first_query = first_key = 0
    for (queries, keys), group in groupby(lengths):
        rows = sum(1 for _ in group)
        next_query, next_key = first_query + rows * queries, first_key + rows * keys
        first_place = keys - queries if form.last_queries else 0
        attended = attend(
            _split_heads(query[first_query:next_query], rows, num_heads),
            _split_heads(key[first_key:next_key], rows, kv_heads),
            _split_heads(value[first_key:next_key], rows, kv_heads),
            torch.arange(first_place, first_place + queries, device=query.device),
            form,
        )
        context[first_query:next_query] = attended.transpose(1, 2).reshape(-1, query.shape[1])
        first_query, first_key = next_query, next_key
    return context


def _split_heads(tokens: Tensor, rows: int, num_heads: int) -> Tensor:
    """``[rows * S, H]`` to ``[rows, num_heads, S, d]``."""
    size = tokens.shape[1] // num_heads
    length = len(tokens) // rows
    return tokens.reshape(rows, length, num_heads, size).transpose(1, 2)


def add_norm(
    hidden: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """The norm of ``hidden + residual``, both ``[T, H]``; `weight` and `bias` are ``[H]``."""
    return norm(hidden + residual, weight, bias, eps)


def policy_probability(state: Tensor, statistics: Tensor, weights: HeadWeights) -> Tensor:
    """``p = sigmoid(w2 . gelu(W1 x + b1) + b2)``, ``[B]`` float32; 1 for a head without policy
    (``p_L := 1``).
    """
    if weights.policy_input is None:
        return torch.ones_like(statistics[:, 0])
    parts = {"state": (state,), "prediction": (statistics,), "both": (state, statistics)}
    features = torch.cat(parts[weights.policy_input], dim=-1)
    _, _, dense_weight, dense_bias, score_weight, score_bias, *_ = weights
    assert dense_weight is not None
    assert score_weight is not None
    inner = gelu(F.linear(features, dense_weight, dense_bias))
    return torch.sigmoid(F.linear(inner, score_weight[None], score_bias)).squeeze(-1)


def exit_step(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
) -> PackedBatch:
    """Classify B rows, decide which leave, write their results, and return the batch of those that
    stay.

    ``state = f(pooled)``, ``logits = C state + c``; the score by the criterion; a row leaves where
    ``score > threshold``, or at the last layer. All arithmetic is float32.

    Args:
        batch: the rows that arrived at this layer; ``row_ids`` index ``results``.
        pooled: ``[B, H]`` in the dtype of ``batch.hidden``, the pooler's product ``W x + b`` before
            the activation f, which is one of `consistentee_ext.weights.STATE_ACTIVATIONS`.
        results: of the N rows, written in place: labels and streaks of all B rows, and logits where
            labels are independent; the rest for those that leave.

    Raises:
        TypeError, ValueError: a tensor of another dtype, shape or device than stated.
    """
    check_exit_step(batch, pooled, weights, decision, results)
    state = activate(pooled.float(), weights.state_activation)
    logits = state @ weights.classifier_weight.T + weights.classifier_bias
    rows, multi_label = batch.row_ids, weights.multi_label
    previous = results.labels[rows]
    if multi_label:
        previous = torch.where(previous[:, None] < 0, -1, answers(results.logits[rows], True))
    statistics = prediction_statistics(logits, previous, multi_label)
    agreement = statistics[:, 4].int()
    streaks = (results.streaks[rows] + 1) * agreement
    results.streaks[rows] = streaks
    results.labels[rows] = 0 if multi_label else answers(logits).int()
    prediction = Prediction(
        logits,
        statistics,
        streaks,
        decision.max_streak,
        lambda: policy_probability(state, statistics, weights),
    )
    scores = SCORES[decision.criterion](prediction)
    leave = torch.ones_like(scores, dtype=torch.bool)
    if not decision.last:
        leave = scores > decision.thresholds[rows]
    gone = rows[leave]
    shown = torch.ones_like(leave) if multi_label else leave
    results.logits[rows[shown]] = logits[shown]
    results.exit_layers[gone] = decision.layer
    results.exit_scores[gone] = scores[leave]
    return compact(batch, ~leave)


def exit_step_async(
    batch: PackedBatch,
    pooled: Tensor,
    weights: HeadWeights,
    decision: ExitDecision,
    results: ExitResults,
    tickets: Tensor,
    totals: Tensor,
    out: PackedBatch,
    removes: bool = True,
) -> None:
    """`exit_step`, whose survivors are written to memory that has room for all rows.

    Args:
        batch: rows with -1 as their id are absent, or have left and stayed in their places.
        tickets: ``[B]`` int32 or more, zeros before and after; kernels count on them.
        totals: ``[2]`` int32, becomes the numbers of rows and of tokens that stay, B' and T'.
        out: of the shapes of `batch`. Of ``hidden [T, H]``, T' tokens are written unless all rows
            leave; ``cu_seqlens [B+1]`` becomes the offsets of the B' rows that stay and then T';
            ``row_ids [B]``, theirs and then -1.
        removes: otherwise all rows keep their places: `out` has the ids of those that stay, and -1
            for the others; the rest of it is not written.
    """
    there = batch.row_ids >= 0
    present = compact(batch._replace(hidden=batch.hidden[: int(batch.cu_seqlens[-1])]), there)
    stay = exit_step(present, pooled[there], weights, decision, results)
    totals[0], totals[1] = len(stay.row_ids), len(stay.hidden)
    if not removes:
        gone = ~torch.isin(batch.row_ids, stay.row_ids)
        out.row_ids.copy_(batch.row_ids.masked_fill(gone, -1))
        return
    out.row_ids.fill_(-1)
    out.cu_seqlens.fill_(len(stay.hidden))
    for target, source in zip(out, stay, strict=True):
        target[: len(source)] = source


def compact(batch: PackedBatch, keep: Tensor) -> PackedBatch:
    """The rows where ``keep [B]`` is true, their tokens side by side, in the order they had."""
    lengths = batch.cu_seqlens.diff()
    tokens = torch.repeat_interleave(keep, lengths.long(), output_size=batch.hidden.shape[0])
    cu_seqlens = batch.cu_seqlens.new_zeros(int(keep.sum()) + 1)
    torch.cumsum(lengths[keep], dim=0, out=cu_seqlens[1:])
    return PackedBatch(batch.hidden[tokens], cu_seqlens, batch.row_ids[keep])
