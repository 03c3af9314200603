"""Temperatures that calibrate the classifiers of the layers."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_model

from consistentee.training.temperature import apply_temperatures, best_temperatures


def test_temperatures_undo_those_that_were_applied():
    """Labels drawn from honest logits, and layers that make 3 and 0.5 times as much of them."""
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 4, generator=generator)
    labels = torch.multinomial(honest.softmax(-1), 1, generator=generator)[:, 0]
    exit_logits = torch.stack((honest, 3 * honest, 0.5 * honest), dim=1)
    assert best_temperatures(exit_logits, labels).tolist() == pytest.approx([1, 3, 0.5], rel=0.05)


def test_a_classifier_that_is_always_right_stays_finite():
    exit_logits = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    assert best_temperatures(exit_logits, torch.tensor([0, 1])).tolist() == [0.25]


def test_temperatures_divide_the_logits_of_the_heads():
    model = tiny_model()
    states = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(0))
    temperatures = torch.tensor([1.0, 2.0, 0.5, 4.0])
    before = model(pooled_states=states).exit_logits
    apply_temperatures(model.heads, temperatures)
    after = model(pooled_states=states).exit_logits
    torch.testing.assert_close(after, before / temperatures[:, None])


def test_temperatures_of_independent_labels():
    generator = torch.Generator().manual_seed(0)
    honest = 2 * torch.randn(20_000, 3, generator=generator)
    labels = torch.bernoulli(honest.sigmoid(), generator=generator)
    exit_logits = torch.stack((honest, 3 * honest, 0.5 * honest), dim=1)
    assert best_temperatures(exit_logits, labels).tolist() == pytest.approx([1, 3, 0.5], rel=0.05)
