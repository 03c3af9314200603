"""Threshold, criterion and alpha of an encoder, set and read between calls."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from support.models import random_batch, scramble, tiny_bert_config, tiny_model

from consistentee.measures.exit_scores import leave_at
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext import encoder as encoder_module
from consistentee_ext.configuration import ConsistentEEConfig


@pytest.mark.parametrize(
    "value",
    [
        np.float32(0.25),
        np.array(0.25),
        torch.tensor(0.25),
        np.full(3, 0.25),
        [torch.tensor(0.25)] * 3,
    ],
    ids=repr,
)
def test_thresholds_of_other_libraries(value: Any) -> None:
    encoder = FastEarlyExitEncoder(tiny_model())
    encoder.threshold = value
    assert encoder.threshold == 0.25


@pytest.mark.parametrize("value", [0, -0.1, 1.01, float("nan"), [0.5], [0.5, 0.5, 2], {1: 0.5}])
def test_bad_thresholds_change_nothing(value: Any) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), threshold=0.4)
    with pytest.raises(ValueError, match="threshold: expected"):
        encoder.threshold = value
    with pytest.raises(TypeError, match="threshold: expected a number in"):
        encoder.threshold = cast(Any, "0.5")
    assert encoder.threshold == 0.4


def test_alpha_is_for_models_trained_over_a_range() -> None:
    fixed = tiny_model()
    assert FastEarlyExitEncoder(fixed).alpha is None
    with pytest.raises(
        ValueError, match=r"^alpha: expected none, as the model was trained for one"
    ):
        FastEarlyExitEncoder(fixed, alpha=0.1)
    config = ConsistentEEConfig(tiny_bert_config(), alpha=0.1, alpha_range=[0.02, 0.5])
    adjustable = scramble(ConsistentEEForSequenceClassification(config), seed=5)
    encoder = FastEarlyExitEncoder(adjustable)
    assert encoder.alpha == 0.1
    with pytest.raises(ValueError, match=r"^alpha: expected a number in \[0.02, 0.5\], got 0.6$"):
        encoder.alpha = 0.6
    with pytest.raises(TypeError, match=r"^alpha: expected a number in .*, got str$"):
        encoder.alpha = cast(Any, "fast")


def test_every_backend_follows_alpha(backend: str) -> None:
    """Against the model itself, whose policies read alpha as a feature of their own."""
    config = ConsistentEEConfig(
        tiny_bert_config(), num_labels=3, alpha=0.1, alpha_range=[0.02, 0.5]
    )
    model = scramble(ConsistentEEForSequenceClassification(config), seed=5)
    inputs = random_batch([5, 2, 9, 30, 9, 1, 12, 7], seed=2)
    encoder = FastEarlyExitEncoder(model, backend=backend)
    seen = set()
    for alpha in (0.1, 0.02, 0.5):
        encoder.alpha = alpha
        with torch.no_grad():
            output = model(**inputs, alpha=alpha)
        scores = output.policy_logits.sigmoid()
        threshold = scores.median().item() + 1e-5
        encoder.threshold = threshold
        found = encoder(**inputs)
        assert encoder.threshold == threshold
        expected = leave_at(scores, threshold)
        assert found.exit_layers.tolist() == expected.tolist()
        seen.add(tuple(expected.tolist()))
    assert len(seen) > 1


def test_criterion_and_threshold_set_between_calls(backend: str) -> None:
    model, batch = tiny_model(), random_batch([5, 3, 9, 12])
    encoder = FastEarlyExitEncoder(model, threshold=0.6, backend=backend)
    encoder.criterion, encoder.threshold = "entropy", 0.3
    expected = FastEarlyExitEncoder(model, criterion="entropy", threshold=0.3, backend=backend)
    assert encoder.criterion == "entropy"
    assert torch.equal(encoder(**batch).exit_scores, expected(**batch).exit_scores)


def test_a_pass_keeps_the_threshold_it_began_with(
    monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """Another thread may set it in the middle."""
    batch = random_batch([5, 3, 9, 12])
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), threshold=0.6, backend=backend)
    expected = encoder(**batch)
    pack = encoder_module.pack_inputs

    def setting(*arguments: Any) -> object:
        encoder.threshold = 1.0  # after the call has begun
        return pack(*arguments)

    monkeypatch.setattr(encoder_module, "pack_inputs", setting)
    assert torch.equal(encoder(**batch).exit_layers, expected.exit_layers)
    assert encoder(**batch).exit_layers.tolist() == [4] * 4
    assert len(set(expected.exit_layers.tolist())) > 1
