"""Temperatures and biases that calibrate the classifiers of the layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from support.models import tiny_model

from consistentee.training.scaling import BIAS_SD, TEMPERATURE_SD, Scaling, fit_scaling

BIASES = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.3, -0.3, 0.1, -0.1], [0.2, 0.2, -0.4, 0.0]])


def test_temperatures_and_biases_undo_those_that_were_applied():
    """Labels drawn from honest logits, and layers that change them."""
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    exit_logits = torch.tensor([1, 3, 0.5])[:, None] * (honest[:, None] - BIASES)
    scaling = fit_scaling(exit_logits, labels)
    assert scaling.temperatures.tolist() == pytest.approx([1, 3, 0.5], rel=0.05)
    torch.testing.assert_close(scaling.biases, BIASES, atol=0.06, rtol=0)
    torch.testing.assert_close(
        scaling(exit_logits).softmax(-1),
        honest[:, None].softmax(-1).expand(-1, 3, -1),
        atol=0.02,
        rtol=0,
    )


def test_the_scaling_of_a_few_rows_against_another_optimizer():
    """What is expected of temperatures and biases weighs more here than the rows do."""
    generator = torch.Generator().manual_seed(1)
    exit_logits = 2 * torch.randn(12, 1, 3, generator=generator)
    labels = torch.randint(0, 3, (12,), generator=generator)

    def loss(parameters: np.ndarray) -> float:
        log_t, biases = parameters[0], parameters[1:]
        logits = exit_logits[:, 0].double().numpy() / np.exp(log_t) + biases
        chosen = logits[np.arange(12), labels.numpy()]
        cross_entropy = (np.log(np.exp(logits).sum(axis=1)) - chosen).sum()
        expected = (log_t / TEMPERATURE_SD) ** 2 + ((biases / BIAS_SD) ** 2).sum()
        return float(cross_entropy + expected / 2)

    best = minimize(loss, np.zeros(4), method="Nelder-Mead", tol=1e-12, options={"maxiter": 10**5})
    scaling = fit_scaling(exit_logits, labels)
    assert scaling.temperatures.log().item() == pytest.approx(best.x[0], abs=1e-4)
    assert scaling.biases[0].tolist() == pytest.approx(best.x[1:], abs=1e-4)


def test_a_classifier_that_is_always_right_stays_finite():
    exit_logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    scaling = fit_scaling(exit_logits, torch.tensor([0, 1]))
    assert 0.25 < scaling.temperatures.item() < 1.0
    assert scaling.biases.abs().max() < 1e-6


def test_the_heads_compute_what_is_calibrated():
    model = tiny_model()
    states = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    before = model(pooled_states=states).exit_logits
    biases = torch.randn(4, before.shape[-1], generator=torch.Generator().manual_seed(1))
    scaling = Scaling(torch.tensor([1.0, 2.0, 0.5, 4.0]), biases)
    scaling.apply_to(model.heads)
    after = model(pooled_states=states).exit_logits
    torch.testing.assert_close(after, scaling(before))
    torch.testing.assert_close(after[:, 1], before[:, 1] / 2.0 + biases[1])


def test_independent_labels():
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.bernoulli(honest.sigmoid(), generator=generator)
    exit_logits = torch.tensor([1, 3, 0.5])[:, None] * (honest[:, None] - BIASES)
    scaling = fit_scaling(exit_logits, labels)
    assert scaling.temperatures.tolist() == pytest.approx([1, 3, 0.5], rel=0.05)
    torch.testing.assert_close(scaling.biases, BIASES, atol=0.06, rtol=0)
