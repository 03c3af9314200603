"""Arguments by the names that the schemas in csrc/ops.cpp give them."""

from __future__ import annotations

from typing import Any

from consistentee_ext.criteria import CRITERIA
from consistentee_ext.names import POLICY_INPUTS
from consistentee_ext.packed import ExitDecision, ExitResults
from consistentee_ext.weights import STATE_ACTIVATIONS, AttentionForm, HeadWeights

# As csrc/kernels/exit_head.h and csrc/kernels/score.h number them.
_POLICIES: tuple[str | None, ...] = (None, *POLICY_INPUTS)
POLICY_CODES = {name: code for code, name in enumerate(_POLICIES)}
CRITERION_CODES = {name: code for code, name in enumerate(CRITERIA)}
ACTIVATION_CODES = {name: code for code, name in enumerate(STATE_ACTIVATIONS)}


def head_arguments(weights: HeadWeights) -> dict[str, Any]:
    """The weights of an exit head."""
    return {
        "classifier_weight": weights.classifier_weight,
        "classifier_bias": weights.classifier_bias,
        "dense_weight": weights.dense_weight,
        "dense_bias": weights.dense_bias,
        "score_weight": weights.score_weight,
        "score_bias": weights.score_bias,
        "policy_input": POLICY_CODES[weights.policy_input],
        "state_activation": ACTIVATION_CODES[weights.state_activation],
        "multi_label": weights.multi_label,
    }


def form_arguments(form: AttentionForm) -> dict[str, Any]:
    """What differs from BERT's attention; what is not named is as there."""
    rotation, relative = form.rotation, form.relative
    norms = {"query_norm": form.query_norm, "key_norm": form.key_norm}
    return {
        "num_kv_heads": form.num_kv_heads,
        "scale": form.scale,
        "low": form.low,
        "high": form.high,
        "cos": None if rotation is None else rotation.cos,
        "sin": None if rotation is None else rotation.sin,
        "bias": form.bias,
        "relative_keys": None if relative is None else relative.keys,
        "relative_queries": None if relative is None else relative.queries,
        "buckets": None if relative is None else relative.buckets,
        **{name: None if norm is None else norm.weight.float() for name, norm in norms.items()},
        **{f"{name}_eps": 0.0 if norm is None else norm.eps for name, norm in norms.items()},
        "last_queries": form.last_queries,
    }


def exit_arguments(
    weights: HeadWeights, decision: ExitDecision, results: ExitResults
) -> dict[str, Any]:
    """The keyword arguments of an exit step; -1 is no criterion's number."""
    return {
        **head_arguments(weights),
        **decision._asdict(),
        "criterion": CRITERION_CODES.get(decision.criterion, -1),
        **results._asdict(),
    }
