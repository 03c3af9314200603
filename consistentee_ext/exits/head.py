"""The exit head of one layer: pooler, classifier, policy."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

from consistentee_ext.ops.prediction import NUM_STATISTICS, prediction_statistics
from consistentee_ext.segments import COMPARED, compare

if TYPE_CHECKING:
    from consistentee_ext.configuration import ConsistentEEConfig


class HeadOutput(NamedTuple):
    """What a head says of B rows: ``state [B, H]``, ``logits [B, C]``, ``policy_logits [B]`` (None:
    no policy).
    """

    state: Tensor
    logits: Tensor
    policy_logits: Tensor | None


class Policy(nn.Module):
    """The network that decides whether a row may leave: ``p = sigmoid(w2 . gelu(W1 x + b1) + b2)``.

    The input x is the state, the prediction statistics, or both side by side (arXiv 2312.11882,
    section 3.2, uses the state alone). An adjustable policy reads the `alpha_feature` as well, in
    the last place.
    """

    def __init__(
        self, hidden_size: int, policy_input: str, policy_size: int, adjustable: bool = False
    ) -> None:
        super().__init__()
        features = 1 if adjustable else 0
        if policy_input in ("state", "both"):
            features += hidden_size
        if policy_input in ("prediction", "both"):
            features += NUM_STATISTICS
        self.policy_input = policy_input
        self.adjustable = adjustable
        self.dense = nn.Linear(features, policy_size)
        self.score = nn.Linear(policy_size, 1)

    def forward(self, state: Tensor, statistics: Tensor, feature: Tensor | None = None) -> Tensor:
        """Logit of the exit probability ``[B]`` from ``state [B, H]``, ``statistics [B, 5]`` and,
        of an adjustable policy, ``feature [B]``, its `alpha_feature`.
        """
        parts = {"state": (state,), "prediction": (statistics,), "both": (state, statistics)}
        features = parts[self.policy_input]
        if self.adjustable:
            assert feature is not None
            features = (*features, feature[:, None].to(state.dtype))
        inner = nn.functional.gelu(self.dense(torch.cat(features, dim=-1)))
        logit: Tensor = self.score(inner)
        return logit.squeeze(-1)


def alpha_feature(alpha: Tensor | float, alpha_range: Sequence[float]) -> Tensor:
    """What an adjustable policy reads of alpha, the price of a layer, of any shape:
    ``log(alpha / low) / log(high / low)``, 0 at the slow end of the range, 1 at the fast one.
    """
    low, high = alpha_range
    return torch.log(torch.as_tensor(alpha, dtype=torch.float32) / low) / math.log(high / low)


class ExitHead(nn.Module):
    """Pooler, classifier and policy of one exit layer.

    ``state = f(W x + b)``, ``logits = C state + c``, where x is the pooled hidden state of a row,
    or what `consistentee_ext.segments.compare` makes of its two texts'. Training calls the module;
    the engine reads its weights.

    Args:
        hidden_size: H.
        num_labels: C.
        policy_input: what the policy reads: ``"state"``, ``"prediction"``, ``"both"``, or None for
            a head without policy.
        policy_size: width of the policy's hidden layer.
        dropout: probability of dropping a state's element before the classifier, in training.
        adjustable: the policy reads the `alpha_feature` as well.
        multi_label: labels are independent.
        activation: f, one of `consistentee_ext.names.HEAD_ACTIVATIONS`.
        norm: of what is pooled, where the encoder's hidden states are sums without a norm.
        pair: two pooled states are read and compared.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        policy_input: str | None = None,
        policy_size: int = 32,
        dropout: float = 0.0,
        adjustable: bool = False,
        multi_label: bool = False,
        activation: str = "tanh",
        norm: nn.Module | None = None,
        pair: bool = False,
    ) -> None:
        super().__init__()
        self.pair = pair
        self.multi_label = multi_label
        self.activation = activation
        self.norm = norm
        self.pooler = nn.Linear(COMPARED * hidden_size if pair else hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)
        self.policy = (
            None
            if policy_input is None
            else Policy(hidden_size, policy_input, policy_size, adjustable)
        )

    def forward(
        self, pooled: Tensor, previous: Tensor, feature: Tensor | None = None
    ) -> HeadOutput:
        """State, logits and policy logit of B rows.

        Args:
            pooled: ``[B, H]``, the pooled hidden state, or ``[B, 2H]``, those of two texts.
            previous: the answers of the exit layer before, -1 where there were none; see
                `consistentee_ext.ops.prediction.answers`.
            feature: ``[B]``, of an adjustable policy, its `alpha_feature`.
        """
        parts = list(pooled.chunk(2, dim=-1)) if self.pair else [pooled]
        if self.norm is not None:
            parts = [self.norm(part) for part in parts]
        state = self.pooler(compare(*parts) if self.pair else parts[0])
        if self.activation != "none":
            state = ACT2FN[self.activation](state)
        logits = self.classifier(self.dropout(state))
        return HeadOutput(state, logits, self.decide(state, logits, previous, feature))

    def decide(
        self,
        state: Tensor,
        logits: Tensor,
        previous: Tensor,
        feature: Tensor | None = None,
    ) -> Tensor | None:
        """The policy's logit ``[B]``, None without policy."""
        if self.policy is None:
            return None
        # The policy observes the prediction; it must not bend the classifier to look confident.
        seen = logits.detach().float()
        statistics = prediction_statistics(seen, previous, self.multi_label)
        logit: Tensor = self.policy(state, statistics.to(state.dtype), feature)
        return logit


def num_layers_of(config: Any) -> int:
    """How many layers an encoder runs: ALBERT's configuration counts groups of them."""
    layers: int = config.num_hidden_layers * getattr(config, "inner_group_num", 1)
    return layers


def build_exit_heads(
    config: ConsistentEEConfig, last_norm: nn.Module | None = None, dropout: float = 0.0
) -> nn.ModuleList:
    """One head a layer; the last layer, at which every row leaves, has no policy (``p_L := 1``).

    Each head starts with a copy of `last_norm`, if there is one.
    """
    num_layers, num_labels = num_layers_of(config.backbone), config.num_labels
    assert num_labels is not None  # by the configuration

    def build(pooling: str, last: bool) -> ExitHead:
        return ExitHead(
            config.backbone.hidden_size,
            num_labels,
            None if last else config.policy_input,
            config.policy_size,
            dropout,
            adjustable=config.alpha_range is not None,
            multi_label=config.multi_label,
            activation=config.last_activation if last else "tanh",
            norm=copy.deepcopy(last_norm),
            pair=pooling == "pair",
        )

    layers = enumerate(config.poolings, start=1)
    return nn.ModuleList(build(pooling, layer == num_layers) for layer, pooling in layers)


def start_pooler(head: ExitHead, dense: Mapping[str, Tensor]) -> None:
    """Start a head's pooler as a pretrained one, ``weight [H, H]`` and ``bias [H]``; where two
    texts are compared, as that of their mean.
    """
    weight = dense["weight"]
    if head.pair:
        none = torch.zeros_like(weight)
        weight = torch.cat([weight / 2, weight / 2, none, none], dim=1)
    head.pooler.load_state_dict({"weight": weight, "bias": dense["bias"]})


def check_alpha(value: object, alpha_range: Sequence[float] | None) -> float:
    """The price of a layer as a float; raises unless it is a number in the model's range."""
    if alpha_range is None:
        raise ValueError("alpha: expected none, as the model was trained for one price of a layer")
    low, high = alpha_range
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"alpha: expected a number in [{low}, {high}], got {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"alpha: expected a number in [{low}, {high}], got {value}")
    return float(value)
