"""Weights and activations of 8 bits, against sums of integers in int64."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.family_cases import CASES, classifier
from support.models import random_batch, tiny_classifier, tiny_model
from torch import Tensor
from torch.nn import functional as F

from consistentee_ext import FastEarlyExitEncoder, backend_report
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.native import NativeEngine
from consistentee_ext.ops import load_ops, onednn_int8
from consistentee_ext.weights import LinearWeights

ACTIVATIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
LEVELS = onednn_int8.activation_levels()[0]
NEEDS_INT8 = pytest.mark.skipif(LEVELS is None, reason="no int8 products of oneDNN here")
ALLOWED = [levels for levels in onednn_int8.LEVELS if LEVELS is not None and levels <= LEVELS]
DTYPES = onednn_int8.dtypes()
OPS = ["torch", pytest.param("cpu", marks=pytest.mark.needs_native)]
BATCH = random_batch([5, 1, 17, 9, 9, 30, 2], seed=3)


def quantized(x: Tensor, weight: Tensor, bias: Tensor, levels: int) -> Tensor:
    """The specification, apart from the code: every sum in int64, the rest in float64."""
    scale = weight.abs().amax(dim=1) / 127
    integers = torch.round(weight / scale[:, None]).long()
    low, high = x.float().amin(dim=1, keepdim=True), x.float().amax(dim=1, keepdim=True)
    step = (high - low) / (2 * levels + 1)
    rows = torch.round((x.float() - low) * ((2 * levels + 1) / (high - low))).long()
    sums = (rows @ integers.T).double() * step.double() + low.double() * integers.sum(dim=1)
    return sums * scale.double() + bias


@NEEDS_INT8
@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("levels", ALLOWED)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("rows", [0, 1, 19, 131])
def test_product_is_that_of_integers(
    ops: str, dtype: torch.dtype, levels: int, activation: str | None, rows: int
) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 99).to(dtype), torch.randn(65, 99) / 5, torch.randn(65)
    weights = onednn_int8.prepack(*onednn_int8.round_weight(weight), bias, activation, levels)
    assert weights.prepacked
    assert weights.shape == (65, 99)
    with torch.inference_mode():
        found = load_ops(ops).linear(x, weights)
    expected = ACTIVATIONS[activation](quantized(x, weight, bias, levels))
    assert found.shape == (rows, 65)
    assert found.dtype == dtype
    # In bfloat16 the sum is rounded before the bias is added, and once more behind it. In float32
    # an activation on the border of two integers may go either way.
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
    far = (found.double() - expected).abs() > tolerance * (1 + expected.abs())
    assert far.sum() <= rows * 65 // 500
    torch.testing.assert_close(found.double(), expected, atol=5e-2, rtol=5e-2)


def extremes(levels: int) -> tuple[Tensor, Tensor]:
    """Rows of integers at both ends of their range, and weights of 127 and -127: sums of pairs are
    as large as they can be.
    """
    rows = torch.full((67, 256), 2 * levels + 1)
    rows[1:, ::2] = 0
    rows[5::3, 100:] = levels
    rows[:, -1] = 0  # every row has both ends, and so a scale of 1
    weight = torch.full((48, 256), 127)
    weight[1::2] = -127
    weight[::3, ::2] = -127
    return rows, weight


def product_of_extremes(ops: str, levels: int) -> tuple[Tensor, Tensor]:
    """What a product gives of them, and what is right."""
    rows, weight = extremes(levels)
    weights = onednn_int8.prepack(weight.to(torch.int8), torch.ones(48), None, None, levels)
    assert weights.prepacked
    with torch.inference_mode():
        found = load_ops(ops).linear(rows.float(), weights)
    return found.long(), rows @ weight.T


@NEEDS_INT8
@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("levels", ALLOWED)
def test_extremes_do_not_saturate(ops: str, levels: int) -> None:
    found, expected = product_of_extremes(ops, levels)
    assert torch.equal(found, expected)


def added_in_16_bits(rows: Tensor, weight: Tensor) -> Tensor:
    """As processors without VNNI add: products of pairs in 16 bits, which are cut (vpmaddubsw)."""
    products = rows[:, None, :] * weight  # [T, O, I]
    pairs = products.unflatten(-1, (-1, 2)).sum(dim=-1).clamp(-(2**15), 2**15 - 1)
    return pairs.sum(dim=-1)


@pytest.mark.parametrize("levels", onednn_int8.LEVELS)
def test_what_fits_into_16_bits(levels: int) -> None:
    rows, weight = extremes(levels)
    right = torch.equal(added_in_16_bits(rows, weight), rows @ weight.T)
    assert right == (levels == 63)


@NEEDS_INT8
@pytest.mark.parametrize("isa", ["AVX2", "AVX512_CORE"])
def test_processors_without_vnni_get_7_bits(isa: str) -> None:
    """oneDNN takes such a one's path: 8 bits saturate there, and are not what is chosen."""
    script = (
        "import torch; from consistentee_ext.ops import onednn_int8; "
        "from ext.test_int8 import product_of_extremes; "
        "levels, _ = onednn_int8.activation_levels(); "
        "wrong = [not torch.equal(*product_of_extremes('torch', n)) for n in (127, 63)]; "
        "print(levels, *wrong)"
    )
    limits = {"ONEDNN_MAX_CPU_ISA": isa, "ATEN_CPU_CAPABILITY": "avx2"}
    tests = str(Path(__file__).parent.parent)
    path = os.pathsep.join([tests, *sys.path])
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | limits | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.split() == ["63", "True", "False"]


@NEEDS_INT8
@pytest.mark.parametrize("ops", OPS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_not_finite_stay_visible(ops: str, bad: float) -> None:
    torch.manual_seed(0)
    weights = onednn_int8.prepack(
        *onednn_int8.round_weight(torch.randn(24, 40)), torch.zeros(24), "gelu"
    )
    x = torch.randn(5, 40)
    x[2, 7] = bad
    x[3] = 0
    found = load_ops(ops).linear(x, weights)
    assert found[2].isnan().all()
    assert (found[3] == 0).all()
    assert found[[0, 1, 4]].isfinite().all()


def test_without_products_sums_are_exact_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn_int8, "activation_levels", lambda: (None, "none here"))
    rows, weight = extremes(127)
    weights = onednn_int8.prepack(weight.to(torch.int8), torch.ones(48), None, None)
    assert not weights.prepacked
    assert torch.equal(load_ops("torch").linear(rows.float(), weights).long(), rows @ weight.T)
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), weights="int8")
    assert isinstance(encoder._engine, EagerEngine)
    assert "int8 products: plain PyTorch, exact and slow: none here" in backend_report("cpu")


@pytest.mark.needs_native
@NEEDS_INT8
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("levels", ALLOWED)
def test_one_call_gives_what_the_specification_gives(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, pooling: str, levels: int
) -> None:
    monkeypatch.setattr(onednn_int8, "activation_levels", lambda: (levels, ""))
    options: dict[str, Any] = {"weights": "int8", "dtype": dtype}
    found = FastEarlyExitEncoder(tiny_model(pooling, seed=3), **options)
    expected = FastEarlyExitEncoder(tiny_model(pooling, seed=3), backend="torch", **options)
    assert isinstance(found._engine, NativeEngine)
    assert isinstance(expected._engine, EagerEngine)
    assert {linear.levels for linear in found._engine.stack.blocks[0].linears} == {levels}
    # The two round apart: a state on a border of two integers moves by a whole step.
    tolerance = 2e-2 if dtype == torch.float32 else 1e-1
    for row_max_layers in ([1] * 7, [2] * 7, [4, 3, 2, 1, 4, 3, 2]):
        limit = torch.tensor(row_max_layers)
        found.threshold = expected.threshold = 1.0
        a, b = (e(**BATCH, row_max_layers=limit) for e in (found, expected))
        assert a.exit_layers.tolist() == b.exit_layers.tolist() == row_max_layers
        torch.testing.assert_close(a.logits, b.logits, atol=tolerance, rtol=tolerance)


@NEEDS_INT8
@pytest.mark.parametrize("case", CASES)
def test_every_family(case: str) -> None:
    """Blocks of every order and form, by the engine there is, against the specification."""
    model = classifier(case)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 60, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        exact = FastEarlyExitEncoder(model)(ids, mask).logits
        found = FastEarlyExitEncoder(model, weights="int8")(ids, mask).logits
        expected = FastEarlyExitEncoder(model, weights="int8", backend="torch")(ids, mask).logits
    scale = exact.norm()
    # The weights are large: what is rounded grows from layer to layer.
    assert 0 < (found - exact).norm() / scale < 0.2
    assert (found - expected).norm() / scale < 0.03


@NEEDS_INT8
def test_logits_are_near_those_of_float32() -> None:
    """Nearer than with weights rounded to 6 bits, further than 0."""
    model = tiny_classifier(hidden_size=64, intermediate_size=256)
    with torch.inference_mode():
        exact = FastEarlyExitEncoder(model)(**BATCH).logits
        found = FastEarlyExitEncoder(model, weights="int8")(**BATCH).logits
    error = (found - exact).norm() / exact.norm()
    assert 0 < error < 0.03


@pytest.mark.needs_native
@NEEDS_INT8
def test_rows_do_not_depend_on_their_neighbours() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), weights="int8", threshold=0.6)
    together = encoder(**BATCH)
    order = torch.tensor([4, 0, 6, 2, 5, 1, 3])
    shuffled = encoder(**{name: values[order] for name, values in BATCH.items()})
    assert torch.equal(shuffled.logits, together.logits[order])
    assert torch.equal(shuffled.exit_layers, together.exit_layers[order])
    for row in range(len(order)):
        alone = encoder(**{name: values[row : row + 1] for name, values in BATCH.items()})
        assert torch.equal(alone.logits[0], together.logits[row])
        assert alone.exit_layers[0] == together.exit_layers[row]


@NEEDS_INT8
@pytest.mark.parametrize("one_query", [True, False])
def test_weights_are_held_once_as_integers(one_query: bool) -> None:
    pooling = "cls" if one_query else "mean"
    encoder = FastEarlyExitEncoder(tiny_model(pooling), weights="int8")
    for block in encoder._engine.stack.blocks:
        for linear in block.linears:
            assert linear.weight.dtype == torch.int8
            assert linear.scale is not None
            assert linear.scale.shape == (linear.shape[0],)
    for exit_ in encoder._engine.exits.by_layer.values():
        assert exit_.pooler is not None
        assert exit_.pooler.weight.dtype == torch.float32


@NEEDS_INT8
def test_reading_a_model_leaves_it_as_it_was() -> None:
    model = tiny_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    FastEarlyExitEncoder(model, weights="int8")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


@NEEDS_INT8
@pytest.mark.parametrize("levels", ALLOWED)
def test_weights_are_pickled(levels: int) -> None:
    torch.manual_seed(0)
    weight, scale = onednn_int8.round_weight(torch.randn(30, 20))
    weights = onednn_int8.prepack(weight, scale, torch.randn(30), "relu", levels)
    again = pickle.loads(pickle.dumps(weights))
    assert isinstance(again, LinearWeights)
    assert again.prepacked
    assert again.levels == levels
    assert torch.equal(onednn_int8.dense(again), weight)
    x = torch.randn(7, 20)
    ops = load_ops("torch")
    assert torch.equal(ops.linear(x, again), ops.linear(x, weights))


@NEEDS_INT8
def test_an_encoder_is_pickled() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), weights="int8", threshold=0.6)
    again = pickle.loads(pickle.dumps(encoder))
    assert torch.equal(again(**BATCH).logits, encoder(**BATCH).logits)


def test_a_channel_of_zeros() -> None:
    weight, scale = onednn_int8.round_weight(torch.tensor([[0.0, 0.0], [2.54, -1.0]]))
    assert weight.tolist() == [[0, 0], [127, -50]]
    assert scale.tolist() == [1.0, pytest.approx(0.02)]


def test_what_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"weights: expected None or one of \('int8',\), got 'i'"):
        FastEarlyExitEncoder(model, weights="i")
    with pytest.raises(ValueError, match=r"dtype: expected torch\.float32.*got torch\.float16"):
        FastEarlyExitEncoder(model, weights="int8", dtype=torch.float16)
    with pytest.raises(ValueError, match=r"weights: expected None on meta, as int8 ones run on"):
        FastEarlyExitEncoder(model, weights="int8", device="meta")
    encoder = FastEarlyExitEncoder(model, weights="int8")
    with pytest.raises(ValueError, match="device: expected cpu for int8 weights, got meta"):
        encoder.to("meta")
