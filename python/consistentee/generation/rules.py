"""The rules that policies are compared with, on the same weights.

- ``policy``: the trained exits.
- ``confidence``: the top token's probability; it pays an LM head at each exit that it reads.
- ``saturation``: the cosine of what a layer read and returned.
- ``truncation``: every token leaves at the same layer.
- ``depth by position``: the later in an answer, the earlier.

Letters: N tokens that may leave, E exits.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset
from torch import Tensor

from consistentee.atomic_files import Json
from consistentee.generation.data import tokens_of_rows
from consistentee.generation.measure import cost_ratio, exit_scores, teacher_forced
from consistentee.measures.exit_scores import at_exit, leave_at
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import head_runs
from consistentee_ext.generation.rules import (
    ConfidenceRule,
    DepthRule,
    ExitRule,
    PolicyRule,
    SaturationRule,
    ThresholdRule,
)

THRESHOLD_RULES: dict[str, type[ThresholdRule]] = {
    "policy": PolicyRule,
    "confidence": ConfidenceRule,
    "saturation": SaturationRule,
}
_PROBABILITIES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.95, 0.99)
# A cosine of states is near 1 throughout.
THRESHOLDS = {
    "policy": _PROBABILITIES,
    "confidence": _PROBABILITIES,
    "saturation": (0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99),
}
MAX_THRESHOLDS = 512  # that are tried for a cost ratio


def compare_rules(
    model: ConsistentEEForCausalLM, answers: Dataset, max_new_tokens: int
) -> dict[str, list[Json]]:
    """Agreement against cost of all rules on the same answers, teacher-forced.

    Args:
        model: whose exits they are.
        answers: the full model's, of `consistentee.generation.data.answered_rows`.
        max_new_tokens: the length at which ``depth by position`` comes to its lowest layer.

    Returns:
        For each rule the points ``parameter`` (a threshold, or the last answer token's layer) and
        `forced_figures`.
    """
    layers = model.config.num_layers
    rules: dict[str, dict[float, ExitRule]] = {
        name: {t: rule(t) for t in THRESHOLDS[name]} for name, rule in THRESHOLD_RULES.items()
    }
    rules["truncation"] = dict(truncations(model).items())
    rules["depth by position"] = {
        layer: DepthRule(layers, layer, max_new_tokens) for layer in model.config.exit_layers
    }
    return {
        name: [
            {"parameter": x, **forced_figures(model, answers, rule)} for x, rule in points.items()
        ]
        for name, points in rules.items()
    }


def forced_figures(model: ConsistentEEForCausalLM, answers: Dataset, rule: ExitRule) -> Json:
    """``agreement``, ``mean_exit_layer`` and ``cost_ratio`` of a rule, teacher-forced."""
    forced = teacher_forced(model, answers, rule)
    mean, ratio = _cost(model, rule, forced.exit_layers)
    return {
        "agreement": forced.right.double().mean().item(),
        "mean_exit_layer": mean,
        "cost_ratio": ratio,
    }


def truncations(model: ConsistentEEForCausalLM) -> dict[int, DepthRule]:
    """For each exit layer the rule by which every token leaves there."""
    return {layer: DepthRule(layer, layer) for layer in model.config.exit_layers}


def rules_at(model: ConsistentEEForCausalLM, answers: Dataset, ratio: float) -> dict[str, ExitRule]:
    """Each rule, but truncation, set so that these answers come to a cost ratio: the slowest such.

    A threshold is found on the scores of a pass at full depth, so that one pass does for all
    thresholds; where tokens do leave, the scores of later ones change a little. Confidence reads
    all exits or one of them, whichever gives more of the answers' tokens.

    Args:
        model: whose exits they are.
        answers: the full model's, of `consistentee.generation.data.answered_rows`, of rows that
            are not measured afterwards.
        ratio: above 1.

    Raises:
        ValueError: the ratio is out of reach: the first exit alone does not give it.
    """
    exits = model.config.exit_layers
    fastest = cost_ratio(model, exits[0])
    if not 1.0 < ratio < fastest:
        raise ValueError(
            f"ratio: expected a number above 1 and below {fastest:.2f}, the cost ratio of layer "
            f"{exits[0]}, the first exit, got {ratio}"
        )
    scores, right = exit_scores(model, answers, THRESHOLD_RULES)
    layers = torch.tensor([*exits, model.config.num_layers])
    found: dict[str, ExitRule] = {}
    for name in ("policy", "saturation"):
        kind = THRESHOLD_RULES[name]
        for threshold in _descending(scores[name]):
            found[name] = kind(threshold)
            left = layers[leave_at(scores[name], threshold) - 1]
            if _cost(model, found[name], left)[1] >= ratio:
                break
    best = -1.0
    for read in (tuple(exits), *((layer,) for layer in exits)):
        readable = torch.tensor([layer in read for layer in exits])
        of_read = scores["confidence"].where(readable, 0.0)
        for threshold in _descending(of_read[:, readable]):
            rule = ConfidenceRule(threshold, read)
            places = leave_at(of_read, threshold)
            if _cost(model, rule, layers[places - 1])[1] < ratio:
                continue
            agreement = at_exit(right.double(), places).mean().item()
            if agreement > best:
                best, found["confidence"] = agreement, rule
            break
    found["depth by position"] = _position_rule(model, tokens_of_rows(answers), ratio)
    return found


def _position_rule(
    model: ConsistentEEForCausalLM, tokens: Sequence[int], ratio: float
) -> DepthRule:
    """The slowest that comes to the ratio where answers have so many tokens that may leave."""
    numbers = torch.cat([torch.arange(1, count + 1) for count in tokens])
    exits, layers = model.config.exit_layers, model.config.num_layers
    ends = torch.tensor([*exits, layers])
    rules = (DepthRule(layers, last, max(tokens)) for last in range(layers, 0, -1))
    for rule in rules:
        left = ends[torch.searchsorted(ends.double(), rule.depth(numbers).double())]
        if _cost(model, rule, left)[1] >= ratio:
            break
    return rule


def _descending(scores: Tensor) -> list[float]:
    """Thresholds between the scores, the slowest first."""
    share = torch.linspace(1, 0, MAX_THRESHOLDS, dtype=torch.float64)
    values = scores.double().flatten().sort().values
    places = (share * (len(values) - 1)).round().long()
    tiny = torch.finfo(torch.float32).tiny
    thresholds: list[float] = torch.unique_consecutive(values[places].clamp(tiny, 1.0)).tolist()
    return thresholds


def _cost(
    model: ConsistentEEForCausalLM, rule: ExitRule, exit_layers: Tensor
) -> tuple[float, float]:
    """The mean exit layer, and the cost ratio."""
    mean = exit_layers.double().mean().item()
    heads = head_runs(rule, model.config.exit_layers, exit_layers).double().mean().item()
    return mean, cost_ratio(model, mean, heads)
