"""Settings of a decoder's training, and the fields of its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from consistentee.generation.names import POLICY_LOSSES, TARGETS, PolicyLoss, Target
from consistentee.training.estimators import Estimator, build_estimator
from consistentee.training.names import EstimatorName
from consistentee.training.trainer import has_native_bf16


@dataclass(frozen=True)
class GenerationSettings:
    """The settings of a training run. A learning rate is the peak of a linear schedule.

    Args:
        target: what answers are: the full model's greedy text (``"teacher"``), or the rows'
            completions (``"gold"``).
        max_new_tokens: answers are cut to so many tokens.
        tokens: answer tokens that phase 1 trains on, over as many passes as that takes.
        policy_tokens: of phase 2.
        joint_tokens: of phase 3; 0 leaves it out.
        batch_size: rows of a step.
        learning_rate: of a trunk that is trained, in phases 1 and 3.
        lora_rank: of adapters that are trained in place of the trunk, see
            `consistentee.generation.adapters`; 0: all of its weights are trained.
        exit_learning_rate: of the translators.
        policy_learning_rate: of the policies.
        held_out: share of the rows that phases 1 and 3 do not see and policies learn from; 0: all
            phases see all rows, as in the paper.
        estimator: ``exact`` or ``reinforce``, see `consistentee.training.estimators`.
        samples: K, exits that ``reinforce`` draws for each token.
        policy_loss: what the reward holds against an exit: the ``"error"`` probability of its
            token, or its ``"cross-entropy"``, the paper's.
        entropy_bonus: reward for each nat of the exit distribution's entropy, see
            `consistentee.training.losses.Losses.policies`.
        seed: of the split, the initial exits, the order of rows and the sampled exits.
        bf16: run the model under bfloat16 autocast; by default if the device has instructions for
            it.

    Raises:
        ValueError: a field is outside its range.
    """

    target: Target = "teacher"
    max_new_tokens: int = 64
    tokens: int = 200_000
    policy_tokens: int = 50_000
    joint_tokens: int = 0
    batch_size: int = 8
    learning_rate: float = 5e-5
    lora_rank: int = 0
    exit_learning_rate: float = 3e-3
    policy_learning_rate: float = 1e-3
    held_out: float = 0.2
    estimator: EstimatorName = "exact"
    samples: int = 4
    policy_loss: PolicyLoss = "error"
    entropy_bonus: float = 0.02
    seed: int = 42
    bf16: bool = field(default_factory=has_native_bf16)

    def __post_init__(self) -> None:
        for name in ("tokens", "policy_tokens", "batch_size", "learning_rate"):
            _check_above(name, getattr(self, name))
        for name in ("exit_learning_rate", "policy_learning_rate"):
            _check_above(name, getattr(self, name))
        if self.max_new_tokens < 2:  # the first token never leaves early
            raise ValueError(f"max_new_tokens: expected at least 2, got {self.max_new_tokens}")
        for name in ("joint_tokens", "lora_rank", "entropy_bonus", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out: expected a share in [0, 1), got {self.held_out}")
        if self.target not in TARGETS:
            raise ValueError(f"target: expected one of {TARGETS}, got {self.target!r}")
        if self.policy_loss not in POLICY_LOSSES:
            raise ValueError(
                f"policy_loss: expected one of {POLICY_LOSSES}, got {self.policy_loss!r}"
            )
        self.build_estimator()  # raises

    def build_estimator(self) -> Estimator:
        """The estimator of these settings."""
        return build_estimator(self.estimator, self.samples, epsilon=0.0)


def _check_above(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"{name}: expected a number above 0, got {value}")


class DecoderFields(TypedDict, total=False):
    """Fields of `consistentee_ext.generation.configuration.ConsistentEECausalLMConfig`."""

    exit_layers: Sequence[int] | None
    readout: str
    rank: int
    policy: str
    policy_size: int
    threshold: float
    alpha: float


class PaperSettings(TypedDict):
    """The fields of `GenerationSettings` in which the paper's differ from ours."""

    target: Target
    joint_tokens: int
    held_out: float
    estimator: EstimatorName
    samples: int
    policy_loss: PolicyLoss
    entropy_bonus: float


# An exit at every layer comes with the number of layers, see `consistentee.generation.train.train`.
PAPER_FIELDS: DecoderFields = {"readout": "trunk", "policy": "linear"}
PAPER_SETTINGS: PaperSettings = {
    "target": "gold",
    "joint_tokens": 50_000,
    "held_out": 0.0,
    "estimator": "reinforce",
    "samples": 4,
    "policy_loss": "cross-entropy",
    "entropy_bonus": 0.0,
}
