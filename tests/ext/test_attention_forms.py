"""Attention in other forms than BERT's: the C++ kernel, and the path of a device, beside plain
PyTorch in double precision, over rows of several tiles of keys.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from consistentee_ext.ops import device_attention, load_ops
from consistentee_ext.weights import AttentionForm, NormWeights, RelativeTerms, Rotation

HEADS, SIZE, LONGEST = 4, 24, 150
LENGTHS = [1, 3, 64, 65, 150, 33, 97]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rotation(rotated: int = SIZE) -> Rotation:
    angles = torch.arange(LONGEST)[:, None] * 100.0 ** -(torch.arange(rotated // 2) / rotated)
    return Rotation(angles.cos(), angles.sin())


def relative(keys: bool = True, queries: bool = True, span: int = 20) -> RelativeTerms:
    count = 2 * span + 8
    distances = torch.arange(1 - LONGEST, LONGEST)
    # the identity near 0, ever wider buckets beyond, as DeBERTa's
    far = distances.sign() * (span // 2 + (distances.abs() / (span // 2)).log() * 4).int()
    buckets = torch.where(distances.abs() <= span // 2, distances, far).clamp(-span, span - 1)
    return RelativeTerms(
        torch.randn(HEADS, count, SIZE, generator=generator(1)) if keys else None,
        torch.randn(HEADS, SIZE, count, generator=generator(2)) if queries else None,
        (buckets + span).int(),
    )


def head_norm(seed: int) -> NormWeights:
    return NormWeights(1 + 0.3 * torch.randn(SIZE, generator=generator(seed)), None, 1e-6)


FORMS: dict[str, AttentionForm] = {
    "plain": AttentionForm(),
    "scale": AttentionForm(scale=0.3),
    "causal": AttentionForm(low=0),
    "window": AttentionForm(low=-7, high=7),
    "causal window": AttentionForm(low=0, high=40),
    "wide window": AttentionForm(low=-70, high=70),
    "shared keys": AttentionForm(num_kv_heads=2),
    "one key": AttentionForm(num_kv_heads=1, low=0),
    "rotary": AttentionForm(rotation=rotation()),
    "partly rotary": AttentionForm(rotation=rotation(8)),
    "bias": AttentionForm(bias=torch.randn(HEADS, 2 * LONGEST - 1, generator=generator())),
    "content and distance": AttentionForm(scale=0.1, relative=relative()),
    "content alone": AttentionForm(scale=0.1, relative=relative(queries=False)),
    "distance alone": AttentionForm(scale=0.1, relative=relative(keys=False)),
    "capped": AttentionForm(cap=1.5),
    "capped causal window": AttentionForm(num_kv_heads=2, scale=0.3, low=0, high=40, cap=1.5),
    "norms": AttentionForm(query_norm=head_norm(3), key_norm=head_norm(4), rotation=rotation()),
    "all": AttentionForm(
        num_kv_heads=2,
        scale=0.2,
        low=-50,
        high=20,
        rotation=rotation(),
        bias=torch.randn(HEADS, 2 * LONGEST - 1, generator=generator(5)),
        relative=relative(),
        query_norm=head_norm(6),
        key_norm=head_norm(7),
    ),
}
each_form = pytest.mark.parametrize("name", FORMS)


def inputs(form: AttentionForm, one_query: bool, dtype: torch.dtype) -> tuple[Any, ...]:
    """Query, key, value, and the offsets of queries and keys."""
    tokens, kv = sum(LENGTHS), (form.num_kv_heads or HEADS) * SIZE
    queries = len(LENGTHS) if one_query else tokens
    parts = [
        torch.randn(count, width, generator=generator(8 + number)).to(dtype)
        for number, (count, width) in enumerate(
            [(queries, HEADS * SIZE), (tokens, kv), (tokens, kv)]
        )
    ]
    keys = torch.tensor([0, *LENGTHS]).cumsum(0).int()
    of_queries = torch.arange(len(LENGTHS) + 1).int() if one_query else keys
    return (*parts, of_queries, keys)


def exact(form: AttentionForm, given: tuple[Any, ...]) -> Tensor:
    """Row by row and head by head, from the definition."""
    query, key, value, of_queries, of_keys = given
    shared = HEADS // (form.num_kv_heads or HEADS)
    out = torch.empty(query.shape, dtype=torch.float64)
    for row in range(len(LENGTHS)):
        q_rows, k_rows = slice(*of_queries[row : row + 2]), slice(*of_keys[row : row + 2])
        keys = int(of_keys[row + 1] - of_keys[row])
        queries = int(of_queries[row + 1] - of_queries[row])
        places = torch.arange(queries) + (keys - queries if form.last_queries else 0)
        distance = places[:, None] - torch.arange(keys)
        for head in range(HEADS):
            mine = slice(head * SIZE, (head + 1) * SIZE)
            theirs = slice(head // shared * SIZE, (head // shared + 1) * SIZE)
            q = at_places(query[q_rows, mine].double(), places, form.query_norm, form.rotation)
            k = at_places(
                key[k_rows, theirs].double(), torch.arange(keys), form.key_norm, form.rotation
            )
            scores = q @ k.T
            if form.relative is not None:
                bucket = form.relative.buckets[distance + LONGEST - 1].long()
                if form.relative.keys is not None:
                    scores += (q[:, None] * form.relative.keys[head].double()[bucket]).sum(-1)
                if form.relative.queries is not None:
                    table = form.relative.queries[head].double().T
                    scores += (k[None] * table[bucket]).sum(-1)
            scores *= SIZE**-0.5 if form.scale is None else form.scale
            if form.cap is not None:
                scores = form.cap * (scores / form.cap).tanh()
            if form.bias is not None:
                scores += form.bias[head][distance + LONGEST - 1]
            if form.low is not None:
                scores[distance < form.low] = -torch.inf
            if form.high is not None:
                scores[distance > form.high] = -torch.inf
            out[q_rows, mine] = scores.softmax(-1) @ value[k_rows, theirs].double()
    return out


def at_places(
    x: Tensor, places: Tensor, norm: NormWeights | None, turned: Rotation | None
) -> Tensor:
    """Normed, and turned as complex numbers."""
    if norm is not None:
        x = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight
    if turned is None:
        return x
    half = turned.cos.shape[1]
    angles = torch.complex(turned.cos.double(), turned.sin.double())[places]
    numbers = torch.complex(x[:, :half], x[:, half : 2 * half]) * angles
    return torch.cat([numbers.real, numbers.imag, x[:, 2 * half :]], dim=-1)


@each_form
@pytest.mark.parametrize("queries", ["all", "first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_forms(name: str, queries: str, dtype: torch.dtype, backend: str) -> None:
    form = FORMS[name]._replace(last_queries=queries == "last")
    given = inputs(form, queries != "all", dtype)
    expected = exact(form, given)
    attention: Any = load_ops(backend).attention
    found = attention(*given, HEADS, form=form)
    assert found.dtype == dtype
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@each_form
@pytest.mark.parametrize("queries", ["all", "first", "last"])
def test_forms_on_the_path_of_a_device(name: str, queries: str) -> None:
    form = FORMS[name]._replace(last_queries=queries == "last")
    given = inputs(form, queries != "all", torch.float32)
    bounds = (LONGEST if queries == "all" else 1, LONGEST)
    attention: Any = device_attention.attention
    found = attention(*given, HEADS, *bounds, form)
    torch.testing.assert_close(found.double(), exact(form, given), atol=2e-5, rtol=2e-5)


@pytest.mark.needs_native
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_kv_heads: expected a divisor of num_heads"),
        ({"low": 1}, "low, high: expected 0 between them"),
        ({"cos": torch.zeros(200, 4)}, "cos, sin: expected both or none"),
        ({"cos": torch.zeros(9, 4), "sin": torch.zeros(9, 4)}, "cos: expected shape"),
        ({"cos": torch.zeros(200, 13), "sin": torch.zeros(200, 13)}, "cos: expected shape"),
        ({"bias": torch.zeros(HEADS, 7)}, "bias: expected shape"),
        ({"bias": torch.zeros(HEADS + 1, 301)}, "bias: expected a contiguous tensor of shape"),
        ({"buckets": torch.zeros(301).int()}, "buckets: expected them with"),
        (
            {"relative_keys": torch.zeros(HEADS, 16, SIZE), "buckets": torch.zeros(9).int()},
            "buckets: expected shape",
        ),
        (
            {"relative_keys": torch.zeros(HEADS, 17, SIZE), "buckets": torch.zeros(301).int()},
            "buckets: expected rising numbers",
        ),
        (
            {"relative_keys": torch.zeros(HEADS, 16, SIZE), "buckets": -torch.arange(301).int()},
            "buckets: expected rising numbers",
        ),
        ({"key_norm": torch.zeros(SIZE + 1)}, "query_norm, key_norm: expected a contiguous"),
    ],
)
def test_a_wrong_form_raises(changes: dict[str, Any], message: str) -> None:
    query, key, value, of_queries, of_keys = inputs(FORMS["plain"], False, torch.float32)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.attention.default(
            query,
            key,
            value,
            query_offsets=of_queries,
            key_offsets=of_keys,
            num_heads=HEADS,
            **changes,
        )
