"""Rules by which tokens leave: the policy, and what it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from consistentee_ext.criteria import check_threshold

if TYPE_CHECKING:
    from consistentee_ext.generation.modeling import ConsistentEEForCausalLM


@dataclass(frozen=True)
class Arrival:
    """Tokens of any shape ``[...]`` that have run a layer behind which they may leave.

    Attributes:
        model: whose tokens they are.
        layer: in 1..L-1.
        rows: ``[...]`` int64, each one's sequence.
        numbers: ``[...]`` int64, 1 for a sequence's first answer token.
        hidden: h, ``[..., H]``, behind the layer.
        previous: ``[..., H]``, before it.
    """

    model: ConsistentEEForCausalLM
    layer: int
    rows: Tensor
    numbers: Tensor
    hidden: Tensor
    previous: Tensor

    @cached_property
    def state(self) -> Tensor:
        """What policy and LM head read, ``[..., H]``."""
        return self.model.readout(self.layer, self.hidden)

    @cached_property
    def policy_logits(self) -> Tensor:
        """The policy's, ``[...]``."""
        return self.model.decide(self.layer, self.state)

    @cached_property
    def logits(self) -> Tensor:
        """The LM head's, ``[..., V]``."""
        return self.model.logits(self.state)


class ExitRule(Protocol):
    """Which tokens leave, ``[...]`` bool, of those that arrive at an exit."""

    def __call__(self, arrival: Arrival) -> Tensor:
        """The tokens that leave."""
        ...

    def reads_logits(self, layer: int) -> bool:
        """Whether a token that arrives at this exit costs an LM head there."""
        ...


@dataclass(frozen=True)
class ThresholdRule(ABC):
    """Leave where a score is above the threshold, in (0, 1]; at 1.0 all run at full depth."""

    threshold: float

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(self, arrival: Arrival) -> Tensor:
        """The tokens that leave."""
        return self.score(arrival) > self.threshold

    def reads_logits(self, layer: int) -> bool:
        """No."""
        return False

    @staticmethod
    @abstractmethod
    def score(arrival: Arrival) -> Tensor:
        """``[...]``, at most 1."""


class PolicyRule(ThresholdRule):
    """Leave where the policy's exit probability is above the threshold."""

    @staticmethod
    def score(arrival: Arrival) -> Tensor:
        """The exit probability."""
        return arrival.policy_logits.sigmoid()


@dataclass(frozen=True)
class ConfidenceRule(ThresholdRule):
    """Leave where the top token's probability is above the threshold (CALM, arXiv 2207.07061).

    Args:
        threshold: in (0, 1].
        layers: the exits it reads, each of which costs an LM head; None: all.
    """

    layers: tuple[int, ...] | None = None

    def __call__(self, arrival: Arrival) -> Tensor:
        """The tokens that leave."""
        if self.reads_logits(arrival.layer):
            return super().__call__(arrival)
        return torch.zeros_like(arrival.rows, dtype=torch.bool)

    def reads_logits(self, layer: int) -> bool:
        """At each of its exits."""
        return self.layers is None or layer in self.layers

    @staticmethod
    def score(arrival: Arrival) -> Tensor:
        """The top token's probability."""
        return arrival.logits.softmax(dim=-1).amax(dim=-1)


class SaturationRule(ThresholdRule):
    """Leave where a layer hardly turned the hidden state: the cosine of what it read and what it
    returned is above the threshold (CALM, arXiv 2207.07061).
    """

    @staticmethod
    def score(arrival: Arrival) -> Tensor:
        """The cosine."""
        return cosine_similarity(arrival.hidden, arrival.previous, dim=-1)


@dataclass(frozen=True)
class DepthRule:
    """Leave at a depth that the position alone decides (SkipDecode, arXiv 2307.02628).

    Answer token n of N leaves at the first exit of at least ``first + (last - first) * x`` layers,
    where x goes from 0 to 1 as n goes from 1 to N and then stays; with ``first == last`` that is
    truncation.

    Args:
        first: layers of the first answer token.
        last: layers of the last one.
        length: N.

    Raises:
        ValueError: a number is below 1.
    """

    first: float
    last: float
    length: int = 1

    def __post_init__(self) -> None:
        for name in ("first", "last", "length"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")

    def __call__(self, arrival: Arrival) -> Tensor:
        """The tokens that leave."""
        return self.depth(arrival.numbers) <= arrival.layer

    def reads_logits(self, layer: int) -> bool:
        """No."""
        return False

    def depth(self, numbers: Tensor) -> Tensor:
        """How many layers answer tokens of these numbers run at least, ``[...]``."""
        share = ((numbers - 1) / max(self.length - 1, 1)).clamp(0, 1)
        return self.first + (self.last - self.first) * share
