"""Settings outside their range."""

from __future__ import annotations

from typing import Any

import pytest

from consistentee.generation.settings import GenerationSettings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens: expected a number above 0, got 0"),
        ({"policy_tokens": -1}, "policy_tokens: expected a number above 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected a number above 0, got 0"),
        ({"learning_rate": 0.0}, "learning_rate: expected a number above 0, got 0.0"),
        (
            {"exit_learning_rate": float("nan")},
            "exit_learning_rate: expected a number above 0, got nan",
        ),
        ({"max_new_tokens": 1}, "max_new_tokens: expected at least 2, got 1"),
        ({"joint_tokens": -1}, "joint_tokens: expected at least 0, got -1"),
        ({"entropy_bonus": -0.1}, "entropy_bonus: expected at least 0, got -0.1"),
        ({"seed": -1}, "seed: expected at least 0, got -1"),
        ({"held_out": 1.0}, r"held_out: expected a share in \[0, 1\), got 1.0"),
        ({"target": "silver"}, "target: expected one of .*, got 'silver'"),
        ({"policy_loss": "hinge"}, "policy_loss: expected one of .*, got 'hinge'"),
        ({"estimator": "guess"}, "estimator: expected one of .*, got 'guess'"),
        ({"samples": 0}, "samples: expected at least 1, got 0"),
    ],
)
def test_fields_outside_their_range_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        GenerationSettings(**fields)
