"""Packed attention against float64, row by row."""

from __future__ import annotations

import pytest
import torch

from consistentee_ext.attention import packed_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("lengths", [[1], [3, 3, 3], [5, 1, 19, 19, 64, 1, 1], [512, 7]], ids=str)
def test_each_row_attends_to_itself_alone(lengths: list[int], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    heads, size = 3, 16
    qkv = torch.randn(sum(lengths), 3 * heads * size).to(dtype)
    found = packed_attention(qkv, lengths, heads)

    def attend(row: torch.Tensor) -> torch.Tensor:
        q, k, v = row.view(len(row), 3, heads, size).permute(1, 2, 0, 3)
        weights = (q @ k.transpose(1, 2) / size**0.5).softmax(dim=-1)
        return (weights @ v).transpose(0, 1).reshape(len(row), -1)

    exact = torch.cat([attend(row) for row in qkv.double().split(lengths)])
    eager = torch.cat([attend(row) for row in qkv.split(lengths)])
    error, eager_error = (found - exact).abs().max(), (eager - exact).abs().max()
    assert error <= 2 * eager_error + 1e-6


def test_no_rows() -> None:
    assert packed_attention(torch.zeros(0, 48), [], 2).shape == (0, 16)
