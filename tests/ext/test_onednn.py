"""Products against float64, with and without oneDNN."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from consistentee_ext.ops import load_ops, onednn


@pytest.mark.parametrize("prepacked", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 19, 111])
@pytest.mark.parametrize("activation", [None, "gelu", "relu", "silu"])
def test_linear(
    monkeypatch: pytest.MonkeyPatch,
    prepacked: bool,
    dtype: torch.dtype,
    rows: int,
    activation: str | None,
) -> None:
    if not prepacked:
        monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    torch.manual_seed(0)
    x, weight, bias = torch.randn(rows, 99), torch.randn(65, 99) / 10, torch.randn(65)
    x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    weights = onednn.prepack(weight, bias, activation)
    assert prepacked or not weights.prepacked
    with torch.inference_mode():
        found = load_ops("torch").linear(x, weights)
    exact = F.linear(x.double(), weight.double(), bias.double())
    eager = F.linear(x, weight, bias)
    if activation:
        exact, eager = (getattr(F, activation)(y) for y in (exact, eager))
    assert found.shape == (rows, 65)
    assert found.dtype == dtype
    if rows:
        error, eager_error = (found - exact).abs().max(), (eager - exact).abs().max()
        assert error <= 2 * eager_error + 1e-6


@pytest.mark.needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 61, 65, 513, 1030])
@pytest.mark.parametrize("more", [0, 3, 40])
def test_rows_behind_x_in_memory_do_not_matter(dtype: torch.dtype, rows: int, more: int) -> None:
    """They may be computed, so that few numbers of rows need a product prepared for them."""
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 16).to(dtype), torch.randn(24).to(dtype)
    weights = onednn.prepack(weight, bias, "gelu")
    buffer = torch.randn(rows + more, 16).to(dtype)
    buffer[rows:] = torch.nan
    with torch.inference_mode():
        found = load_ops("cpu").linear(buffer[:rows], weights)
        alone = load_ops("torch").linear(buffer[:rows].clone(), weights)
    assert found.shape == (rows, 24)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.needs_native
@pytest.mark.parametrize("before", [1, 130])
def test_rows_amid_a_tensor(before: int) -> None:
    """Those from where x begins, not from the beginning of its memory."""
    torch.manual_seed(0)
    weights = onednn.prepack(torch.randn(24, 16), torch.randn(24), None)
    buffer = torch.randn(before + 200, 16)
    x = buffer[before : before + 129]
    with torch.inference_mode():
        found = load_ops("cpu").linear(x, weights)
        alone = load_ops("torch").linear(x.clone(), weights)
    torch.testing.assert_close(found, alone, rtol=1e-5, atol=1e-5)
