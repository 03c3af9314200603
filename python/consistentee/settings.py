"""How to train."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from consistentee.phases import has_native_bf16


@dataclass(frozen=True)
class TrainingSettings:
    """The knobs of training; a learning rate is the peak of a linear schedule.

    Args:
        epochs: of phase 1.
        policy_epochs: of phase 2, over the held-out rows.
        joint_epochs: of phase 3, over the held-out rows.
        batch_size: rows of a step in phases 1 and 3.
        policy_batch_size: rows of a step in phase 2.
        learning_rate: of the backbone in phase 1.
        joint_learning_rate: of the backbone in phase 3.
        head_factor: in both, the heads' learning rate over the backbone's.
        policy_learning_rate: of phase 2.
        held_out: share of the rows of each class that phase 1 does not see.
        seed: of the split, the initial heads, the order of rows and the dropout.
        bf16: compute the model in bfloat16 where autocast does; by default where the device is made
            for it.

    Raises:
        ValueError: a number is not above 0, or `held_out` not below 1.
    """

    epochs: int = 3
    policy_epochs: int = 30
    joint_epochs: int = 1
    batch_size: int = 32
    policy_batch_size: int = 64
    learning_rate: float = 5e-5
    joint_learning_rate: float = 1e-5
    head_factor: float = 10.0
    policy_learning_rate: float = 2e-3
    held_out: float = 0.2
    seed: int = 42
    bf16: bool = field(default_factory=has_native_bf16)

    def __post_init__(self) -> None:
        for name in (f.name for f in fields(self) if f.name not in ("seed", "bf16")):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}: expected a number above 0, got {getattr(self, name)}")
        if self.held_out >= 1:
            raise ValueError(f"held_out: expected a share below 1, got {self.held_out}")
        if self.seed < 0:
            raise ValueError(f"seed: expected at least 0, got {self.seed}")
