"""Norms of other classes, whose arithmetic is told by what they give of random numbers."""

from __future__ import annotations

import copy
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.ops.norm import norm
from consistentee_ext.weights import NormWeights


def measured_norm(module: nn.Module, hidden_size: int) -> NormWeights | None:
    """A norm's weights in float32, as they are or as one more than those, with bias or without.

    None where no layer norm and no root-mean-square norm gives what the module does.
    """
    exact: Any = copy.deepcopy(module).float().cpu()
    x = torch.randn(4, hidden_size, generator=torch.Generator().manual_seed(0))
    x[2:] *= 1e-3  # so small that eps matters
    with torch.no_grad():
        wanted = exact(x)
    ones = torch.ones(hidden_size)
    weight, bias = getattr(exact, "weight", None), getattr(exact, "bias", None)
    if any(part is not None and part.shape != ones.shape for part in (weight, bias)):
        return None
    weights = [ones] if weight is None else [weight.detach(), weight.detach() + 1]
    biases: list[Tensor | None] = [None, torch.zeros_like(ones) if bias is None else bias.detach()]
    named = (getattr(exact, name, None) for name in ("variance_epsilon", "eps", "epsilon"))
    epsilons = [eps for eps in named if eps is not None] or [1e-5]
    for weight, bias, eps in product(weights, biases, epsilons):
        if torch.allclose(norm(x, weight, bias, eps), wanted, rtol=1e-4, atol=1e-6):
            return NormWeights(weight, bias, eps)
    return None
