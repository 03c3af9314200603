from __future__ import annotations

import itertools

import pytest
import torch

from consistentee.hardness import memorized_layer


def brute_force(right: tuple[int, ...]) -> int:
    """The definition: the smallest l with layers l..L all right, L if the last is wrong."""
    layers = len(right)
    return min((l for l in range(1, layers + 1) if all(right[l - 1 :])), default=layers)  # noqa: E741


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_pattern_of_right_and_wrong(layers):
    patterns = list(itertools.product((0, 1), repeat=layers))
    labels = torch.arange(len(patterns)) % 3
    logits = torch.zeros(len(patterns), layers, 3)
    for row, pattern in enumerate(patterns):
        for layer, right in enumerate(pattern):
            logits[row, layer, (labels[row] + (0 if right else 1)) % 3] = 1.0
    expected = [brute_force(pattern) for pattern in patterns]
    assert memorized_layer(logits, labels).tolist() == expected


def test_a_right_answer_that_is_later_lost_does_not_count():
    # Right, wrong, right, right: memorized at 3. Right until the last, which is wrong: at L.
    right = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])
    logits = torch.stack((1.0 - right, right.float()), dim=-1)
    assert memorized_layer(logits, torch.tensor([1, 1])).tolist() == [3, 4]
