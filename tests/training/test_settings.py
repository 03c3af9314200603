"""Settings outside their range are refused by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from consistentee.training.settings import TrainingSettings


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs: expected a number above 0, got 0"),
        ("joint_epochs", -1, "joint_epochs: expected at least 0, got -1"),
        ("batch_size", 0, "batch_size: expected a number above 0, got 0"),
        ("learning_rate", float("nan"), "learning_rate: expected a number above 0, got nan"),
        ("held_out", -0.1, r"held_out: expected a share in \[0, 1\), got -0.1"),
        ("held_out", 1.0, r"held_out: expected a share in \[0, 1\), got 1.0"),
        ("folds", 1, "folds: expected 0 or at least 2, got 1"),
        ("spread", 1.5, r"spread: expected a share in \[0, 1\], got 1.5"),
        ("iterations", 0, "iterations: expected a number above 0, got 0"),
        ("samples", 0, "samples: expected at least 1, got 0"),
        ("reward", "money", "reward: expected one of .*, got 'money'"),
        ("estimator", "magic", "estimator: expected one of .*, got 'magic'"),
        ("epsilon", -0.1, r"epsilon: expected a share in \[0, 1\), got -0.1"),
        ("entropy_bonus", -0.1, "entropy_bonus: expected at least 0, got -0.1"),
        ("distillation", -0.1, "distillation: expected at least 0, got -0.1"),
        ("seed", -1, "seed: expected at least 0, got -1"),
    ],
)
def test_a_setting_outside_its_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        TrainingSettings(**{field: value})


def test_every_number_has_a_range() -> None:
    defaults = TrainingSettings()
    for name in (field.name for field in fields(TrainingSettings)):
        if type(getattr(defaults, name)) in (int, float):
            below: dict[str, Any] = {name: -1}
            with pytest.raises(ValueError, match=f"^{name}: expected "):
                TrainingSettings(**below)


def test_without_phase_3_there_is_nothing_to_alternate() -> None:
    with pytest.raises(ValueError, match=r"iterations: expected 1 without phase 3 .* got 2"):
        TrainingSettings(joint_epochs=0, iterations=2)
