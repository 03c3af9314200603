"""Norms of any class, read by what they give."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from consistentee_ext.families.measured_norm import measured_norm
from consistentee_ext.ops.norm import norm

SIZE = 24


class OneMore(nn.LayerNorm):
    """A kind of LayerNorm that is none."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.layer_norm(input, (SIZE,), self.weight + 1, self.bias, self.eps)


class Bare(nn.Module):
    """No weights, and an eps that is written nowhere."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.layer_norm(input, (SIZE,), eps=1e-5)


class Other(nn.RMSNorm):
    """Neither of the two norms."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.1


NORMS = {
    "layer norm": nn.LayerNorm(SIZE, eps=1e-3),
    "without bias": nn.LayerNorm(SIZE, bias=False),
    "root mean square": nn.RMSNorm(SIZE, eps=1e-6),
    "one more": OneMore(SIZE),
    "bare": Bare(),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_weights_compute_what_the_module_does(name: str, size: float) -> None:
    module = NORMS[name]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(SIZE, generator=generator))
    weights = measured_norm(module, SIZE)
    assert weights is not None
    x = size * torch.randn(5, SIZE, generator=generator)
    torch.testing.assert_close(norm(x, *weights), module(x))


@pytest.mark.parametrize("module", [nn.Identity(), nn.Linear(SIZE, SIZE), Other(SIZE, eps=1e-6)])
def test_what_is_none_of_them(module: nn.Module) -> None:
    assert measured_norm(module, SIZE) is None
