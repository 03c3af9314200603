"""Scores of all layers at once, against the engine's exit step, layer by layer and row by row."""

from __future__ import annotations

import pytest
import torch
from support.models import random_batch, tiny_model

from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.criteria import CRITERIA

LENGTHS = [5, 2, 9, 30, 9, 1, 12, 7, 3, 4, 4, 17]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_rows_leave_where_the_engine_lets_them(criterion):
    model, inputs = tiny_model(classes=3), random_batch(LENGTHS, seed=3)
    with torch.no_grad():
        output = model(**inputs)
    scores = exit_scores(criterion, output.exit_logits, output.policy_logits)
    assert scores.shape == (len(LENGTHS), 3)
    values = scores.flatten().unique()
    # Between two scores, so that the last bit of neither decides.
    thresholds = ((values[1:] + values[:-1]) / 2).tolist()
    seen = set()
    for threshold in [t for t in thresholds if 0 < t <= 1][:: max(len(thresholds) // 8, 1)]:
        encoder = FastEarlyExitEncoder(model, criterion=criterion, threshold=threshold)
        found = encoder(**inputs)
        exits = leave_at(scores, threshold)
        assert exits.tolist() == found.exit_layers.tolist()
        early = exits < 4
        left = at_exit(torch.cat((scores, scores[:, -1:]), dim=1), exits)
        torch.testing.assert_close(left[early], found.exit_scores[early], rtol=1e-4, atol=1e-5)
        seen |= set(exits.tolist())
    assert len(seen) >= 3


def test_patience_counts_agreements_in_a_row():
    labels = torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    logits = torch.nn.functional.one_hot(labels, 2).float()
    scores = exit_scores("patience", logits, torch.zeros(2, 4))
    expected = torch.tensor([[0, 1, 2, 0], [0, 0, 1, 2]]) / 4
    torch.testing.assert_close(scores, expected)


def test_one_layer_has_no_early_exit():
    for criterion in CRITERIA:
        scores = exit_scores(criterion, torch.zeros(3, 1, 2), torch.zeros(3, 0))
        assert scores.shape == (3, 0)
        assert leave_at(scores, 0.5).tolist() == [1, 1, 1]


def test_the_first_layer_above_the_threshold_counts():
    scores = torch.tensor([[0.2, 0.9, 0.1], [0.2, 0.5, 0.1], [0.6, 0.0, 0.9]])
    exits = leave_at(scores, 0.5)
    assert exits.tolist() == [2, 4, 1]
    values = torch.arange(12.0).view(3, 4)
    assert at_exit(values, exits).tolist() == [1.0, 7.0, 8.0]
