"""The exit head as a module: what training calls and the engine reads."""

from __future__ import annotations

import pytest
import torch
from support.models import tiny_bert_config

from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.exits.head import ExitHead, build_exit_heads
from consistentee_ext.ops import reference
from consistentee_ext.ops.prediction import prediction_statistics
from consistentee_ext.weights import HeadWeights


@pytest.mark.parametrize("policy_input", ["state", "prediction", "both"])
def test_head_computes_what_the_reference_says(policy_input: str) -> None:
    torch.manual_seed(0)
    head = ExitHead(8, 3, policy_input, policy_size=6).eval()
    pooled, previous = torch.randn(5, 8), torch.tensor([-1, 0, 1, 2, 0])
    output = head(pooled, previous)
    state = torch.tanh(pooled @ head.pooler.weight.T + head.pooler.bias)
    logits = state @ head.classifier.weight.T + head.classifier.bias
    torch.testing.assert_close(output.logits, logits)
    policy = head.policy
    assert policy is not None
    weights = HeadWeights(
        head.classifier.weight,
        head.classifier.bias,
        policy.dense.weight,
        policy.dense.bias,
        policy.score.weight.view(-1),
        policy.score.bias,
        policy_input,
    )
    statistics = prediction_statistics(logits, previous)
    expected = reference.policy_probability(state, statistics, weights)
    torch.testing.assert_close(output.policy_logits.sigmoid(), expected)


def test_the_policy_does_not_train_the_classifier() -> None:
    head = ExitHead(8, 3, "prediction")
    head(torch.randn(5, 8), torch.zeros(5)).policy_logits.sum().backward()
    assert head.classifier.weight.grad is None
    assert head.policy is not None
    policy_grad = head.policy.dense.weight.grad
    assert policy_grad is not None
    assert policy_grad.abs().sum() > 0


def test_the_last_layer_has_no_policy() -> None:
    backbone = tiny_bert_config(hidden_size=8, num_hidden_layers=3)
    heads = build_exit_heads(ConsistentEEConfig(backbone, policy_input="both", num_labels=2))
    assert [head.policy is None for head in heads] == [False, False, True]
    assert heads[2](torch.randn(1, 8), torch.zeros(1)).policy_logits is None
    first = heads[0]
    assert isinstance(first, ExitHead)
    assert first.policy is not None
    assert first.policy.dense.in_features == 8 + 5
