"""Settings of training and of adding exits, and the fields of the model's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from consistentee.training.estimators import Estimator, build_estimator
from consistentee.training.names import REWARDS, EstimatorName, Reward
from consistentee.training.trainer import has_native_bf16
from consistentee_ext.names import TOLERANCE, Pooling

_ABOVE_ZERO = (  # settings that must be above 0; `__post_init__` has the other ranges
    *("epochs", "policy_epochs", "iterations"),
    *("batch_size", "policy_batch_size", "joint_batch_size"),
    *("learning_rate", "joint_learning_rate", "head_factor", "policy_learning_rate"),
)
MAX_POLICY_STEPS = 4000  # of add-exits: more make policies no better


@dataclass(frozen=True)
class TrainingSettings:
    """The settings of a training run. A learning rate is the peak of a linear schedule.

    Args:
        epochs: of phase 1.
        policy_epochs: of phase 2, over the held-out rows.
        joint_epochs: of phase 3, over all rows; 0 leaves it out.
        batch_size: rows of a step in phase 1.
        policy_batch_size: rows of a step in phase 2.
        joint_batch_size: rows of a step in phase 3.
        learning_rate: of the backbone in phase 1.
        joint_learning_rate: of the backbone in phase 3.
        head_factor: in both, the heads' learning rate over the backbone's.
        policy_learning_rate: of phase 2.
        held_out: share of the rows of each class that a second trunk is trained without; policies
            learn from these rows. 0: there is one trunk, and policies learn from the rows it was
            trained on, as in the paper.
        folds: 2 or more: one trunk for each fold in place of the second trunk (cross-fitting); 0:
            no folds.
        spread: share of a row's loss in phase 3 that is divided equally among all layers, in
            [0, 1]; the rest is weighted by the probability that the row leaves there.
        iterations: how often phases 2 and 3 alternate.
        reward: ``hardness``, ``plain`` or ``oracle``, see
            `consistentee.training.objective.exit_reward`.
        estimator: ``exact`` or ``reinforce``, see `consistentee.training.estimators`.
        samples: K, exits that ``reinforce`` draws for each row.
        epsilon: share of these that are drawn uniformly over layers.
        entropy_bonus: reward for each nat of the exit distribution's entropy, see
            `consistentee.training.losses.Losses.policies`.
        distillation: in phase 1, the weight of each layer's divergence from the last one's answer
            beside its loss; None is 1 where heads compare pairs of texts, else 0.
        seed: of the split, the initial heads, the order of rows and the dropout.
        bf16: run the model under bfloat16 autocast; by default if the device has instructions for
            it.

    Raises:
        ValueError: a field is outside its range.
    """

    epochs: int = 4
    policy_epochs: int = 30
    joint_epochs: int = 0
    batch_size: int = 32
    policy_batch_size: int = 16
    joint_batch_size: int = 32
    learning_rate: float = 5e-5
    joint_learning_rate: float = 1e-5
    head_factor: float = 10.0
    policy_learning_rate: float = 2e-3
    held_out: float = 0.2
    folds: int = 0
    spread: float = 0.5
    iterations: int = 1
    reward: Reward = "hardness"
    estimator: EstimatorName = "exact"
    samples: int = 8
    epsilon: float = 0.0
    entropy_bonus: float = 0.02
    distillation: float | None = None
    seed: int = 42
    bf16: bool = field(default_factory=has_native_bf16)

    def __post_init__(self) -> None:
        for name in _ABOVE_ZERO:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.joint_epochs < 0:
            raise ValueError(f"joint_epochs: expected at least 0, got {self.joint_epochs}")
        if self.joint_epochs == 0 and self.iterations > 1:
            raise ValueError(
                f"iterations: expected 1 without phase 3 (joint_epochs=0), got {self.iterations}"
            )
        if not 0.0 <= self.held_out < 1.0:
            raise ValueError(f"held_out: expected a share in [0, 1), got {self.held_out}")
        if not 0.0 <= self.spread <= 1.0:
            raise ValueError(f"spread: expected a share in [0, 1], got {self.spread}")
        if not self.entropy_bonus >= 0.0:
            raise ValueError(f"entropy_bonus: expected at least 0, got {self.entropy_bonus}")
        if self.distillation is not None and not self.distillation >= 0.0:
            raise ValueError(f"distillation: expected at least 0, got {self.distillation}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
        if self.folds < 0 or self.folds == 1:
            raise ValueError(f"folds: expected 0 or at least 2, got {self.folds}")
        if self.reward not in REWARDS:
            raise ValueError(f"reward: expected one of {REWARDS}, got {self.reward!r}")
        self.build_estimator()  # raises

    def build_estimator(self) -> Estimator:
        """The estimator of these settings."""
        return build_estimator(self.estimator, self.samples, self.epsilon)


@dataclass(frozen=True)
class AddExitsSettings:
    """How exits are added. A learning rate is the peak of a linear schedule.

    Args:
        tune_trunk: train the trunk too.
        max_disagreement: D: at most this share of rows like the given gets another answer than at
            full depth.
        confidence: of that guarantee.
        tolerance: by how much a number may differ, see `consistentee.measures.agreement.agreement`.
        calibration_share: share of the rows held out for the guarantee; 500 at least, where there
            are twice as many.
        pooling: what the new heads read.
        epochs: of the phase ``heads``.
        trunk_epochs: of the phase ``trunk``.
        policy_epochs: of the phase ``policies``; fewer where they would take over
            `MAX_POLICY_STEPS`.
        batch_size: rows of a step.
        head_learning_rate: of the heads.
        learning_rate: of the trunk.
        policy_batch_size: rows of a step in the phase ``policies``.
        policy_learning_rate: of the policies.
        seed: of the split, the initial heads and the order of rows.
        bf16: tune the trunk under bfloat16 autocast; by default if the device has instructions for
            it.

    Raises:
        ValueError: a field is outside its range.
    """

    tune_trunk: bool = False
    max_disagreement: float = 0.01
    confidence: float = 0.95
    tolerance: float = TOLERANCE
    calibration_share: float = 0.3
    pooling: Pooling = "mean"
    epochs: int = 10
    trunk_epochs: int = 4
    policy_epochs: int = 30
    batch_size: int = 32
    head_learning_rate: float = 1e-3
    learning_rate: float = 1e-4
    policy_batch_size: int = 16
    policy_learning_rate: float = 2e-3
    seed: int = 42
    bf16: bool = field(default_factory=has_native_bf16)

    def __post_init__(self) -> None:
        for name in ("max_disagreement", "confidence", "calibration_share"):
            value = getattr(self, name)
            if not 0.0 < value < 1.0:
                raise ValueError(f"{name}: expected a number above 0 and below 1, got {value}")
        if not self.tolerance > 0.0:
            raise ValueError(f"tolerance: expected a number above 0, got {self.tolerance}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")


class ConfigFields(TypedDict, total=False):
    """Fields of `consistentee.ConsistentEEConfig`, which documents them and has the defaults."""

    pooling: str
    separator_id: int
    policy_input: str | None
    policy_size: int
    max_tokens: int
    criterion: str
    threshold: float
    alpha: float | list[float]
    alpha_range: Sequence[float] | None
    metric: str
    label_std: float
    problem_type: str
    num_labels: int
    id2label: dict[int, str]
    label2id: dict[str, int]
