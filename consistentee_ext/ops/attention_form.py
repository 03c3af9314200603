"""What an `AttentionForm` does to queries, keys and scores, in plain PyTorch on padded heads.

Letters: B rows, K heads of keys, Q queries, S keys, d head size; places are those in a row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from consistentee_ext.ops.norm import norm
from consistentee_ext.weights import AttentionForm, Rotation


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_places: Tensor,
    form: AttentionForm,
    present: Tensor | None = None,
) -> Tensor:
    """``softmax(scale * Q K^T + added) V``, ``[B, heads, Q, d]``.

    Args:
        query: ``[B, heads, Q, d]``.
        key: ``[B, K, S, d]``, at the places 0 to S - 1, and so `value`.
        query_places: ``[Q]`` or ``[B, Q]``, where the queries are in their row.
        form: of the attention.
        present: ``[B, S]``, which keys are tokens; None for all.
    """
    dtype, key_places = query.dtype, torch.arange(key.shape[2], device=key.device)
    if form.bias is not None or form.relative is not None:  # sums of scores: in float32
        query, key, value = query.float(), key.float(), value.float()
    query = _placed(query, query_places, form.query_norm, form.rotation)
    key = _placed(key, key_places, form.key_norm, form.rotation)
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (part.repeat_interleave(shared, dim=1) for part in (key, value))
    scale = query.shape[-1] ** -0.5 if form.scale is None else form.scale
    distance = query_places[..., :, None] - key_places  # [Q, S] or [B, Q, S]
    mask = _seen(distance, form, present)
    added = _added(query, key, distance, scale, form)
    if added is not None:
        mask = added if mask is None else added.masked_fill(~mask, -torch.inf)
    if form.cap is not None:
        context = _capped(query, key, value, mask, scale, form.cap)
    else:
        context = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    return context.to(dtype)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, cap: float
) -> Tensor:
    """Attention whose scores are ``cap * tanh(scale * Q K^T / cap)``, in float32."""
    scores = cap * torch.tanh(query.float() @ key.float().transpose(-1, -2) * (scale / cap))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1) @ value.float()


def _seen(distance: Tensor, form: AttentionForm, present: Tensor | None) -> Tensor | None:
    """Which keys a query attends to, ``[B or 1, 1, Q, S]``; None for all."""
    seen = torch.ones_like(distance, dtype=torch.bool)
    if form.low is not None:
        seen &= distance >= form.low
    if form.high is not None:
        seen &= distance <= form.high
    seen = seen[None, None] if distance.dim() == 2 else seen[:, None]
    if present is not None:
        return seen & present[:, None, None]
    return None if form.low is None and form.high is None else seen


def _placed(
    x: Tensor,
    places: Tensor,
    head_norm: tuple[Tensor, Tensor | None, float] | None,
    rotation: Rotation | None,
) -> Tensor:
    if head_norm is not None:
        x = norm(x, *head_norm)
    return x if rotation is None else rotate(x, places, rotation)


def rotate(x: Tensor, places: Tensor, rotation: Rotation) -> Tensor:
    """``[B, heads, n, d]`` turned by the angles of ``places [n]`` or ``[B, n]``, in float32."""
    cos, sin = (table[places] for table in rotation)
    if places.dim() == 2:
        cos, sin = cos[:, None], sin[:, None]
    half = cos.shape[-1]
    turned, rest = x.float().split([2 * half, x.shape[-1] - 2 * half], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    parts = (first * cos - second * sin, second * cos + first * sin, rest)
    return torch.cat(parts, dim=-1).to(x.dtype)


def _added(
    query: Tensor, key: Tensor, distance: Tensor, scale: float, form: AttentionForm
) -> Tensor | None:
    """What is added to the scores, ``[B or 1, heads, Q, S]``, None for nothing."""
    added = None
    if form.bias is not None:
        bias = form.bias[:, distance + form.bias.shape[1] // 2]
        # [heads, Q, S], or [heads, B, Q, S] where places are each row's own
        added = bias[None] if distance.dim() == 2 else bias.transpose(0, 1)
    if form.relative is not None:
        keys, queries, buckets = form.relative
        terms = buckets[distance + len(buckets) // 2].long()
        terms = terms[None, None] if distance.dim() == 2 else terms[:, None]
        terms = terms.expand(len(query), query.shape[1], -1, -1)
        if keys is not None:
            of_content = query @ keys.transpose(1, 2)
            added = _sum(added, scale * of_content.gather(-1, terms))
        if queries is not None:
            of_place = (key @ queries).transpose(-1, -2)
            added = _sum(added, scale * of_place.gather(-2, terms))
    return added


def _sum(total: Tensor | None, term: Tensor) -> Tensor:
    return term if total is None else total + term
