"""The list of criteria: its formulas by hand, its numbers in C++, its checks."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from consistentee_ext.criteria import (
    CRITERIA,
    PLAIN_CRITERIA,
    SCORES,
    Prediction,
    check_criterion,
    check_threshold,
)
from consistentee_ext.names import POLICY_INPUTS
from consistentee_ext.ops.prediction import prediction_statistics
from consistentee_ext.weights import STATE_ACTIVATIONS

KERNELS = Path(__file__).parents[2] / "csrc" / "kernels"


def numbers_of(enum: str) -> dict[str, int]:
    """The enumerators of the kernels, lower case, without their k."""
    text = "".join((KERNELS / name).read_text() for name in ("score.h", "exit_head.h"))
    body = re.findall(rf"enum class {enum} : int64_t {{([^}}]*)}}", text)[0]
    return {name.lower(): int(number) for name, number in re.findall(r"k(\w+) = (\d+)", body)}


def test_the_kernels_number_them_alike() -> None:
    assert numbers_of("Criterion") == {name: number for number, name in enumerate(CRITERIA)}
    inputs = ("none", *POLICY_INPUTS)
    assert numbers_of("PolicyInput") == {name: number for number, name in enumerate(inputs)}
    activations = {name: number for number, name in enumerate(STATE_ACTIVATIONS)}
    assert numbers_of("StateActivation") == activations
    assert {"policy", *PLAIN_CRITERIA} == set(CRITERIA)


def test_scores_by_hand() -> None:
    """Two classes at odds of 3 to 1, twice in a row the same of three times at most."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    prediction = Prediction(
        logits,
        prediction_statistics(logits, torch.tensor([0])),
        streak=torch.tensor([2]),
        max_streak=3,
        exit_probability=lambda: torch.tensor([0.4]),
    )
    entropy = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    expected = {
        "policy": 0.4,
        "confidence": 0.75,
        "entropy": 1.0 - entropy,
        "patience": 2 / 3,
        "energy": 4 / 5,  # Z = 3 + 1
    }
    found = {name: score(prediction).item() for name, score in SCORES.items()}
    assert found == pytest.approx(expected, rel=1e-6)


def test_checks() -> None:
    assert check_criterion("entropy") == "entropy"
    with pytest.raises(ValueError, match=r"criterion: expected one of .*, got 'mood'"):
        check_criterion("mood")
    with pytest.raises(ValueError, match=r"criterion: expected one of .*, got \['entropy'\]"):
        check_criterion(["entropy"])
    assert check_threshold(1) == 1.0
    for value in (0, 1.5, -1.0, float("nan")):
        with pytest.raises(ValueError, match=r"threshold: expected a number in \(0, 1\], got"):
            check_threshold(value)
    for no_number in ("0.5", True, None):
        with pytest.raises(TypeError, match=r"threshold: expected a number in \(0, 1\], got"):
            check_threshold(no_number)
