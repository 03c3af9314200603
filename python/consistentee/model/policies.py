"""The policies of a model alone: what phase 2 of training runs."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from consistentee.model.modeling import (
    ConsistentEEForSequenceClassification,
    ConsistentEEOutput,
    stack_policies,
)
from consistentee_ext.ops.prediction import answers, no_answers


class PolicyNetwork(nn.Module):
    """The policies of a model alone, on states and logits that were recorded: what phase 2 trains.

    It shares the model's heads.
    """

    def __init__(self, model: ConsistentEEForSequenceClassification) -> None:
        super().__init__()
        self.heads = model.heads
        self._alpha_feature = model.alpha_feature

    def forward(
        self, states: Tensor, exit_logits: Tensor, alpha: Tensor | float | None = None
    ) -> ConsistentEEOutput:
        """Policy logits of every layer.

        Args:
            states: ``[B, L, H]``.
            exit_logits: ``[B, L, C]``.
            alpha: as in `ConsistentEEForSequenceClassification.forward`.
        """
        feature = self._alpha_feature(len(states), alpha)
        policy_logits: list[Tensor] = []
        heads: list[Any] = list(self.heads)
        previous = no_answers(exit_logits[:, 0], heads[0].multi_label)
        layers = zip(states.unbind(dim=1), exit_logits.unbind(dim=1), strict=True)
        for head, (state, logits) in zip(heads, layers, strict=True):
            decision = head.decide(state, logits, previous, feature)
            previous = answers(logits, head.multi_label)
            if decision is not None:
                policy_logits.append(decision)
        return ConsistentEEOutput(
            logits=exit_logits[:, -1],
            states=states,
            exit_logits=exit_logits,
            policy_logits=stack_policies(policy_logits, exit_logits),
        )
