"""The Memorized Layer of every pattern of right and wrong answers."""

from __future__ import annotations

import itertools

import pytest
import torch

from consistentee.measures.hardness import correct_layers, memorized_layer, oracle_layer


def brute_force(right: tuple[int, ...]) -> tuple[int, int]:
    """The definitions: the smallest l with layers l..L all right, and the first right one; L where
    there is none.
    """
    layers = len(right)
    each = range(1, layers + 1)
    memorized = min((layer for layer in each if all(right[layer - 1 :])), default=layers)
    return memorized, min((layer for layer in each if right[layer - 1]), default=layers)


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_every_pattern_of_right_and_wrong(layers):
    patterns = list(itertools.product((0, 1), repeat=layers))
    correct = torch.tensor(patterns)
    expected = [brute_force(pattern) for pattern in patterns]
    assert (
        list(zip(memorized_layer(correct).tolist(), oracle_layer(correct).tolist(), strict=True))
        == expected
    )


def test_a_right_answer_that_is_later_lost_is_not_memorized():
    # Right, wrong, right, right: memorized at 3. Right until the last, which is wrong: at L.
    correct = torch.tensor([[1, 0, 1, 1], [1, 1, 1, 0]])
    assert memorized_layer(correct).tolist() == [3, 4]
    assert oracle_layer(correct).tolist() == [1, 1]


def test_a_class_is_right_when_it_is_the_label():
    logits = torch.tensor([[[2.0, 1.0], [0.0, 1.0]], [[0.0, 3.0], [0.0, 1.0]]])
    assert correct_layers(logits, torch.tensor([0, 1])).tolist() == [[True, False], [True, True]]


def test_a_number_is_right_within_half_a_standard_deviation():
    logits = torch.tensor([[[1.0], [2.2], [2.9]]])
    found = correct_layers(logits, torch.tensor([2.0]), label_std=1.0)
    assert found.tolist() == [[False, True, False]]


def test_a_set_is_right_as_a_whole():
    logits = torch.tensor([[[1.0, -1.0], [1.0, 1.0]], [[-1.0, -0.1], [-1.0, 0.1]]])
    labels = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    assert correct_layers(logits, labels).tolist() == [[True, False], [True, False]]
