"""Exit rules set to a cost, and what is measured of them, against sums by hand."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.decoders import random_rows, tiny_causal_lm

from consistentee.generation.data import answered_rows
from consistentee.generation.measure import cost_ratio, exit_scores, right_exits, teacher_forced
from consistentee.generation.rules import (
    THRESHOLD_RULES,
    THRESHOLDS,
    compare_rules,
    rules_at,
    truncations,
)
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import generate, head_runs
from consistentee_ext.generation.rules import (
    ConfidenceRule,
    DepthRule,
    ExitRule,
    PolicyRule,
    SaturationRule,
)


def own_answers(model: ConsistentEEForCausalLM, number: int = 12) -> Dataset:
    prompts = random_rows([2 + n % 4 for n in range(number)], seed=1)
    return answered_rows("", prompts, generate(model, prompts, 8, PolicyRule(1.0)).tokens)


def test_rules_are_measured_on_the_same_answers() -> None:
    """Confidence pays a head at each exit it passes, and at its own."""
    model = tiny_causal_lm()
    answers = own_answers(model, 3)
    found = compare_rules(model, answers, 8)
    assert list(found) == [
        *("policy", "confidence", "saturation", "truncation", "depth by position")
    ]
    assert [point["parameter"] for point in found["saturation"]] == [*THRESHOLDS["saturation"]]
    rules: dict[str, ExitRule] = {
        "policy": PolicyRule(0.5),
        "confidence": ConfidenceRule(0.35),
        "saturation": SaturationRule(0.9),
        "truncation": DepthRule(2, 2),
        "depth by position": DepthRule(4, 2, 8),
    }
    for name, rule in rules.items():
        parameter = {"policy": 0.5, "confidence": 0.35, "saturation": 0.9}.get(name, 2)
        (point,) = (p for p in found[name] if p["parameter"] == parameter)
        forced = teacher_forced(model, answers, rule)
        mean = forced.exit_layers.double().mean().item()
        # An exit behind every layer: as many heads as layers.
        heads = mean if name == "confidence" else 1.0
        assert point["agreement"] == pytest.approx(forced.right.double().mean().item())
        assert point["cost_ratio"] == pytest.approx(cost_ratio(model, mean, heads))
    assert {p["mean_exit_layer"] for p in found["truncation"]} == {1.0, 2.0, 3.0}


def test_the_scores_are_those_by_which_tokens_leave() -> None:
    """Where no token has left yet: at the first exit, whatever leaves later."""
    model = tiny_causal_lm(exit_layers=[2])
    answers = own_answers(model)
    scores, right = exit_scores(model, answers, THRESHOLD_RULES)
    assert torch.equal(right, right_exits(model, answers))
    for name, kind in THRESHOLD_RULES.items():
        assert scores[name].shape == (12 * 7, 1)
        # The first token that may leave has a past at full depth.
        first = scores[name][:, 0].view(12, 7)[:, 0]
        threshold = first.sort().values[5:7].mean().item()
        left = teacher_forced(model, answers, kind(threshold)).exit_layers.view(12, 7)[:, 0]
        assert (left == 2).tolist() == (first > threshold).tolist()
        assert int((left == 2).sum()) == 6


@pytest.mark.parametrize("ratio", [1.1, 1.4])
def test_rules_come_to_a_cost_ratio(ratio: float) -> None:
    """On scores at full depth, from which those of a past with exits differ a little."""
    model = tiny_causal_lm()
    answers = own_answers(model, 20)
    found = rules_at(model, answers, ratio)
    assert list(found) == ["policy", "saturation", "confidence", "depth by position"]
    scores, right = exit_scores(model, answers, THRESHOLD_RULES)

    def figures(name: str, threshold: float, read: tuple[int, ...]) -> tuple[float, float]:
        """Cost ratio and agreement, token by token."""
        total, heads, same = 0, 0, 0
        for of_token, of_right in zip(scores[name].tolist(), right.tolist(), strict=True):
            place = next((n for n in range(3) if n + 1 in read and of_token[n] > threshold), 3)
            total += place + 1
            passed = sum(layer <= place for layer in read)
            heads += 1 + (passed if name == "confidence" else 0)
            same += of_right[place]
        count = len(right)
        return cost_ratio(model, total / count, heads / count), same / count

    for name in ("policy", "saturation"):
        rule = found[name]
        assert isinstance(rule, THRESHOLD_RULES[name])
        assert figures(name, rule.threshold, (1, 2, 3))[0] >= ratio
        slower = min(s for s in scores[name].flatten().tolist() if s > rule.threshold)
        assert figures(name, slower, (1, 2, 3))[0] < ratio
    sure = found["confidence"]
    assert isinstance(sure, ConfidenceRule)
    assert sure.layers is not None
    reached, agreement = figures("confidence", sure.threshold, sure.layers)
    assert reached >= ratio
    for read in ((1, 2, 3), (1,), (2,), (3,)):
        reaching = [
            figures("confidence", threshold, read)
            for threshold in scores["confidence"].flatten().tolist()
        ]
        slowest = min((f for f in reaching if f[0] >= ratio), default=(0.0, 0.0))
        assert slowest[1] <= agreement
    depth = found["depth by position"]
    assert isinstance(depth, DepthRule)
    left = generate(model, random_rows([3] * 9), 8, depth).exit_layers
    mean = sum(map(sum, left)) / (9 * 7)
    assert cost_ratio(model, mean) >= ratio
    slower_depth = DepthRule(4, depth.last + 1, 7)
    left = generate(model, random_rows([3] * 9), 8, slower_depth).exit_layers
    assert cost_ratio(model, sum(map(sum, left)) / (9 * 7)) < ratio


def test_a_ratio_out_of_reach() -> None:
    model = tiny_causal_lm(exit_layers=[2, 3])
    answers = own_answers(model)
    for ratio in (1.0, 3.0):
        with pytest.raises(ValueError, match=r"^ratio: expected a number above 1 and below 1\.\d+"):
            rules_at(model, answers, ratio)
    assert truncations(model) == {2: DepthRule(2, 2), 3: DepthRule(3, 3)}


def test_confidence_may_read_some_exits_alone() -> None:
    model = tiny_causal_lm()
    prompts = random_rows([5, 1, 9, 3], seed=3)
    found = generate(model, prompts, 14, ConfidenceRule(0.3, (2,)))
    layers = [layer for of_text in found.exit_layers for layer in of_text]
    heads = [head for of_text in found.heads for head in of_text]
    assert set(layers) == {2, 4}
    assert heads == [1 if layer == 2 else 2 for layer in layers]
    left = torch.tensor([1, 2, 3, 4])
    assert head_runs(ConfidenceRule(0.3), [1, 2, 3], left).tolist() == [1, 2, 3, 4]
    assert head_runs(PolicyRule(0.3), [1, 2, 3], left).tolist() == [1, 1, 1, 1]
