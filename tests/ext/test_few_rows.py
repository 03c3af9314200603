"""Products of few rows, against float64, and each row against itself in other company."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from consistentee_ext.ops import load_ops
from consistentee_ext.weights import LinearWeights

pytestmark = pytest.mark.needs_native
FUNCTIONS = {
    None: lambda x: x,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}
# Whole tiles and blocks, and what is left of them: outputs, inputs.
SHAPES = [(64, 96), (61, 33), (5, 7), (1, 1), (96, 576)]


def parts(dtype: torch.dtype, rows: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    outputs, inputs = shape
    x, weight, bias = (
        torch.randn(size, generator=generator).to(dtype)
        for size in ((rows, inputs), (outputs, inputs), (outputs,))
    )
    return x, weight / inputs**0.5, bias


def product(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None) -> Tensor:
    with torch.inference_mode():
        return (
            load_ops("cpu")
            .linear(x, LinearWeights(weight, bias, activation, few_rows=True))
            .clone()
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", FUNCTIONS)
def test_values(dtype: torch.dtype, shape: tuple[int, int], activation: str | None) -> None:
    """Also with so many rows that oneDNN multiplies."""
    for rows in (1, 6, 64, 65, 200):
        x, weight, bias = parts(dtype, rows, shape)
        for offset in (bias, None):
            exact = F.linear(
                x.double(), weight.double(), None if offset is None else offset.double()
            )
            exact = FUNCTIONS[activation](exact)
            found = product(x, weight, offset, activation)
            assert found.shape == (rows, shape[0])
            assert found.dtype == dtype
            # A rounding of the result, and those of the sum.
            rounding = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20
            error = (found - exact).abs()
            assert bool((error <= rounding * (exact.abs() + 1) + 3e-6).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_is_the_same_in_any_company(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """Bit for bit, with 1 to 64 rows and at every place."""
    x, weight, bias = parts(dtype, 64, shape)
    all_rows = product(x, weight, bias, "silu")
    for rows in range(1, 64):
        assert torch.equal(product(x[:rows], weight, bias, "silu"), all_rows[:rows])
    for row in range(64):
        assert torch.equal(product(x[row:][:1], weight, bias, "silu"), all_rows[row:][:1])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(product(x[order], weight, bias, "silu"), all_rows[order])


def test_rows_of_other_threads_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = parts(torch.float32, 32, (992, 33))
    alone = product(x, weight, bias, "gelu")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(product(x, weight, bias, "gelu"), alone)
    finally:
        torch.set_num_threads(threads)


def test_not_finite_numbers_stay_so() -> None:
    x, weight, _ = parts(torch.float32, 3, (64, 96))
    x[1, 5] = torch.nan
    x[2, 7] = torch.inf
    for dtype in (torch.float32, torch.bfloat16):
        found = product(x.to(dtype), weight.to(dtype), None, None)
        assert bool(found[0].isfinite().all())
        assert bool(found[1].isnan().all())
        assert not bool(found[2].isfinite().any())


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 5), None, "weight: expected a contiguous tensor"),
        (torch.zeros(2, 3), torch.zeros(4, 3).bfloat16(), None, "x: expected a contiguous tensor"),
        (torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(5), "bias: expected a contiguous"),
        (torch.zeros(2, 6)[:, ::2], torch.zeros(4, 3), None, "x: expected a contiguous tensor"),
        (torch.zeros(3), torch.zeros(4, 3), None, "x: expected a tensor of shape"),
    ],
)
def test_a_direct_call_out_of_bounds_raises(
    x: Tensor, weight: Tensor, bias: Tensor | None, message: str
) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.consistentee.linear(x, weight, bias, activation="none")
