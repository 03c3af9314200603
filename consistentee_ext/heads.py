"""The exit head of one layer, and the rule by which a row leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from consistentee_ext import reference

POOLINGS = ("cls", "mean")
POLICY_INPUTS = ("state", "prediction", "both")
CRITERIA = ("policy", "confidence", "entropy", "patience", "energy")


class HeadOutput(NamedTuple):
    """What a head says of B rows: ``logits [B, C]``, ``policy_logits [B]`` (None: no policy)."""

    logits: Tensor
    policy_logits: Tensor | None


class Policy(nn.Module):
    """The network that decides whether a row may leave: ``p = sigmoid(w2 . gelu(W1 x + b1) + b2)``.

    The input x is the state, the prediction statistics, or both side by side (arXiv 2312.11882,
    section 3.2, uses the state alone).
    """

    def __init__(self, hidden_size: int, policy_input: str, policy_size: int) -> None:
        super().__init__()
        features = 0
        if policy_input in ("state", "both"):
            features += hidden_size
        if policy_input in ("prediction", "both"):
            features += reference.NUM_STATISTICS
        self.policy_input = policy_input
        self.dense = nn.Linear(features, policy_size)
        self.score = nn.Linear(policy_size, 1)

    def forward(self, state: Tensor, statistics: Tensor) -> Tensor:
        """Logit of the exit probability ``[B]`` from ``state [B, H]``, ``statistics [B, 5]``."""
        parts = {"state": (state,), "prediction": (statistics,), "both": (state, statistics)}
        features = torch.cat(parts[self.policy_input], dim=-1)
        return self.score(nn.functional.gelu(self.dense(features))).squeeze(-1)


class ExitHead(nn.Module):
    """Pooler, classifier and policy of one exit layer.

    ``state = tanh(W x + b)``, ``logits = C state + c``, where x is the pooled hidden state of a
    row. Training calls the module; the engine reads its weights.

    Args:
        hidden_size: H.
        num_labels: C.
        policy_input: what the policy reads: ``"state"``, ``"prediction"``, ``"both"``, or None for
            a head without policy.
        policy_size: width of the policy's hidden layer.
        dropout: probability of dropping a state's element before the classifier, in training.
    """

    def __init__(
        self,
        hidden_size: int,
        num_labels: int,
        policy_input: str | None = None,
        policy_size: int = 32,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.pooler = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(hidden_size, num_labels)
        self.policy = (
            None if policy_input is None else Policy(hidden_size, policy_input, policy_size)
        )

    def forward(self, pooled: Tensor, previous_label: Tensor) -> HeadOutput:
        """Logits and policy logit of B rows.

        Args:
            pooled: ``[B, H]``, the pooled hidden state.
            previous_label: ``[B]`` integer, the label the exit layer before predicted, -1 where
                there was none.
        """
        state = torch.tanh(self.pooler(pooled))
        logits = self.classifier(self.dropout(state))
        if self.policy is None:
            return HeadOutput(logits, None)
        # The policy observes the prediction; it must not bend the classifier to look confident.
        statistics = reference.prediction_statistics(logits.detach().float(), previous_label)
        return HeadOutput(logits, self.policy(state, statistics.to(state.dtype)))


def build_exit_heads(
    hidden_size: int,
    num_layers: int,
    num_labels: int,
    policy_input: str | None,
    policy_size: int = 32,
    dropout: float = 0.0,
) -> nn.ModuleList:
    """One head a layer; the last layer, at which every row leaves, has no policy (``p_L := 1``)."""
    return nn.ModuleList(
        ExitHead(
            hidden_size,
            num_labels,
            policy_input if layer < num_layers else None,
            policy_size,
            dropout,
        )
        for layer in range(1, num_layers + 1)
    )


@dataclass(frozen=True)
class ExitRule:
    """A row leaves a layer when its score is above the threshold; threshold 1 is full depth.

    The score, by criterion:

    - ``policy``: the policy's exit probability p (arXiv 2312.11882).
    - ``confidence``: the top class's probability.
    - ``entropy``: ``1 - entropy / log(C)`` (DeeBERT, arXiv 2004.12993, normalised).
    - ``patience``: ``streak / (E - 1)``, the exits in a row that agreed with the one before, over
      the most there can be with E exit layers (PABEE, arXiv 2006.04152).
    - ``energy``: ``sigmoid(logsumexp(z)) = Z / (1 + Z)``, ``Z = sum exp(z)`` over the logits z: the
      negative free energy (arXiv 2010.03759; E-LANG, arXiv 2203.00748), brought into (0, 1).
    """

    criterion: str = "policy"
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.criterion not in CRITERIA:
            raise ValueError(f"criterion: expected one of {CRITERIA}, got {self.criterion!r}")
        check_threshold(self.threshold)


def check_threshold(value: object) -> float:
    """The threshold as a float; raises unless it is a number in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"threshold: expected a number in (0, 1], got {type(value).__name__}")
    if not 0.0 < value <= 1.0:
        raise ValueError(f"threshold: expected a number in (0, 1], got {value}")
    return float(value)
