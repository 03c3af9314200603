"""When two answers are the same, and the threshold that keeps them so: by hand, over many draws."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom
from support.models import tiny_bert_config

from consistentee.measures.agreement import agreement
from consistentee.measures.calibration import (
    GRID,
    rows_to_agree,
    threshold_for_agreement,
)
from consistentee.measures.exit_scores import at_exit, leave_at
from consistentee_ext.configuration import ConsistentEEConfig

MULTI_LABEL = "multi_label_classification"


@pytest.mark.parametrize(
    ("fields", "layers", "reference", "same"),
    [
        ({"num_labels": 3}, [[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]], [0.0, 9.0, 1.0], [True, False]),
        (
            {"num_labels": 2, "problem_type": MULTI_LABEL},
            [[0.1, -0.1], [0.1, 0.1]],
            [5.0, -5.0],
            [True, False],
        ),
        # A score by its sigmoid: 0.5 and 0.549, 0.5 and 0.562. A number as it is.
        ({"num_labels": 1}, [[0.2], [0.25]], [0.0], [True, False]),
        ({"num_labels": 1, "problem_type": "regression"}, [[3.04], [3.06]], [3.0], [True, False]),
    ],
)
def test_the_same_answer(
    fields: dict[str, Any], layers: list[Any], reference: list[float], same: list[bool]
) -> None:
    metric = "spearman" if fields["num_labels"] == 1 else "accuracy"
    config = ConsistentEEConfig(tiny_bert_config(), metric=metric, **fields)
    found = agreement(torch.tensor([layers]), torch.tensor([reference]), config, tolerance=0.05)
    assert found.tolist() == [same]


def population(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores that say how likely a layer agrees with the last, ``[N, 3]`` and ``[N, 4]``."""
    generator = torch.Generator().manual_seed(0)
    ease = torch.randn(rows, 1, generator=generator)
    chance = torch.sigmoid(2.0 * ease + torch.tensor([0.5, 1.5, 2.5]))
    agrees = torch.rand(rows, 3, generator=generator) < chance
    noise = 0.5 * torch.randn(rows, 3, generator=generator)
    return torch.sigmoid(chance.logit() + noise), torch.cat((agrees, agrees[:, :1] >= 0), dim=1)


@pytest.mark.parametrize(("share", "rows"), [(0.05, 300), (0.02, 500), (0.01, 1000)])
def test_the_guarantee_holds_over_many_draws(share: float, rows: int) -> None:
    scores, agrees = population(50_000)
    changed = {t: (~at_exit(agrees, leave_at(scores, t))).double().mean().item() for t in GRID}
    changed[1.0] = 0.0
    assert max(changed.values()) > 2 * share  # there are thresholds that break the promise
    generator, draws = np.random.default_rng(1), 300
    found = [
        threshold_for_agreement(scores[drawn], agrees[drawn], share, 0.95)
        for drawn in (torch.from_numpy(generator.choice(50_000, rows)) for _ in range(draws))
    ]
    broken = sum(changed[threshold] > share for threshold in found)
    # 5% broken promises are allowed; more than the 99.9% quantile of that is no chance.
    assert broken <= binom.ppf(0.999, draws, 0.05)
    assert sum(threshold < 1.0 for threshold in found) > 0.9 * draws


def test_by_hand() -> None:
    """100 rows of one early layer, of which those with scores up to 0.6 disagree, 3 in number."""
    scores = torch.linspace(0.5, 0.999, 100)[:, None]
    agrees = torch.ones(100, 2, dtype=torch.bool)
    agrees[:3, 0] = False
    # P(Binomial(100, 0.05) <= k) is 0.006, 0.037, 0.118 for k = 0, 1, 2: at most one may disagree.
    found = threshold_for_agreement(scores, agrees, 0.05, 0.95)
    left = leave_at(scores, found) == 1
    assert (~agrees[left, 0]).sum() <= 1
    following = GRID[GRID.index(found) + 1]
    assert (~agrees[leave_at(scores, following) == 1, 0]).sum() >= 2


def test_rows_needed() -> None:
    assert rows_to_agree(0.01, 0.95) == 299
    assert rows_to_agree(0.02, 0.95) == 149
    for share, confidence in ((0.01, 0.95), (0.2, 0.9), (0.05, 0.99)):
        rows = rows_to_agree(share, confidence)
        assert (1 - share) ** rows <= 1 - confidence < (1 - share) ** (rows - 1)
    scores, agrees = population(298)
    with pytest.raises(ValueError, match=r"^data: expected at least 299 rows .* got 298$"):
        threshold_for_agreement(scores, agrees, 0.01, 0.95)
    for name, numbers in (("max_disagreement", (0.0, 0.95)), ("confidence", (0.01, 1.0))):
        with pytest.raises(ValueError, match=rf"^{name}: expected a number above 0 and below 1"):
            threshold_for_agreement(scores, agrees, *numbers)
