"""The affine map between the states of two trunks."""

from __future__ import annotations

import pytest
import torch

from consistentee.training.alignment import fit_alignment

N, L, H = 400, 3, 16


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_affine_map_is_found_again():
    """With another map on each layer; the penalty shrinks it by a thousandth."""
    states, weight, bias = draw(N, L, H, seed=0), draw(L, H, H, seed=1), draw(L, H, seed=2)
    targets = torch.stack([states[:, i] @ weight[i].T + bias[i] for i in range(L)], dim=1)
    alignment = fit_alignment(states, targets)
    torch.testing.assert_close(alignment.weight, weight, atol=1e-2, rtol=1e-2)
    unseen = draw(50, L, H, seed=3)
    expected = torch.stack([unseen[:, i] @ weight[i].T + bias[i] for i in range(L)], dim=1)
    torch.testing.assert_close(alignment(unseen), expected, atol=5e-2, rtol=0)


def test_the_fit_is_the_minimum_of_the_penalised_error():
    """No gradient is left at the solution, in any unit that states come in."""
    states, targets = draw(30, L, H, seed=4), draw(30, L, H, seed=5)
    for unit in (1.0, 1e-2, 100.0):
        s = unit * states.double()
        weight, bias = (
            part.double().requires_grad_() for part in fit_alignment(s.float(), targets)
        )
        error = (torch.einsum("nli,loi->nlo", s, weight) + bias - targets).square().sum((0, 2))
        penalty = 1e-3 * s.var(dim=0, unbiased=False).mean(dim=1) * weight.square().sum((1, 2))
        (error / 30 + penalty).sum().backward()
        assert weight.grad.abs().max() < 1e-4 * unit
        assert bias.grad.abs().max() < 1e-4


@pytest.mark.parametrize("rows", [2, 5])
def test_fewer_rows_than_features_leave_the_map_small(rows):
    """What the rows do not show is not made up: other states map to what the known ones do."""
    states, targets = draw(rows, L, H, seed=6), draw(rows, L, H, seed=7)
    found = fit_alignment(states, targets)(draw(100, L, H, seed=8))
    assert torch.isfinite(found).all()
    assert found.abs().max() < 20
