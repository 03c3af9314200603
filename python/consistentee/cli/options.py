"""Options that commands share, and what a user gave of them."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer


class Pooling(str, Enum):
    mean = "mean"
    cls = "cls"


class PolicyInput(str, Enum):
    prediction = "prediction"
    state = "state"
    both = "both"


class Estimator(str, Enum):
    exact = "exact"
    reinforce = "reinforce"


class Reward(str, Enum):
    hardness = "hardness"
    plain = "plain"
    oracle = "oracle"


class Metric(str, Enum):
    accuracy = "accuracy"
    f1 = "f1"
    matthews = "matthews"
    spearman = "spearman"


Option = typer.Option
# Arguments of `train` and `compare` that are fields of TrainingSettings or ConsistentEEConfig.
FIELDS = {
    *("pooling", "policy_input", "alpha", "alpha_range", "metric"),
    *("estimator", "samples", "epsilon", "reward", "held_out", "folds", "iterations"),
    *("epochs", "joint_epochs", "batch_size", "seed"),
}
Checkpoint = Annotated[str, typer.Argument(help="Checkpoint folder, or a name on the hub.")]
File = Annotated[Path, Option("--data", help="File of labelled text.")]
TextColumns = Annotated[
    list[str] | None,
    Option("--text-column", help="Column of text; twice for pairs. Default: found by name."),
]
LabelColumn = Annotated[str, Option(help="Column of labels.")]
Threshold = Annotated[
    float | None,
    Option(help="Score above which a row leaves, in (0, 1]. Default: the checkpoint's."),
]
AlphaAsked = Annotated[
    float | None,
    Option("--alpha", help="Price of a layer, of a model trained with --alpha-range."),
]
Seed = Annotated[int, Option(help="Of everything random.")]

# What `train` and `compare` share. Defaults are the task's, or those of TrainingSettings.
Model = Annotated[str, Option(help="Pretrained encoder: a folder, or a name on the hub.")]
Paper = Annotated[bool, Option("--paper", help="The paper's settings in place of ours.")]
Alpha = Annotated[
    list[float] | None,
    Option(help="Price of a layer in the reward: higher is faster. Once, or once a layer."),
]
AlphaRange = Annotated[
    tuple[float, float] | None,
    Option(help="Lowest and highest price: one model for the whole range of speeds."),
]
PoolingOption = Annotated[Pooling | None, Option("--pooling", help="What a head reads.")]
PolicyInputOption = Annotated[
    PolicyInput | None, Option("--policy-input", help="What a policy reads.")
]
EstimatorOption = Annotated[Estimator | None, Option("--estimator", help="Of the expected reward.")]
RewardOption = Annotated[Reward | None, Option("--reward", help="Whom depth costs how much.")]
Samples = Annotated[int | None, Option(help="K, exits that reinforce draws for a row.")]
Epsilon = Annotated[float | None, Option(help="Share of those that are uniform over layers.")]
HeldOut = Annotated[float | None, Option(help="Share of the rows kept for the policies.")]
Folds = Annotated[int | None, Option(help="Cross-fitting in place of a share: K folds.")]
Iterations = Annotated[int | None, Option(help="How often phases 2 and 3 alternate.")]
Epochs = Annotated[int | None, Option(help="Epochs of phase 1.")]
JointEpochs = Annotated[int | None, Option(help="Epochs of phase 3; 0 leaves it out.")]
BatchSize = Annotated[int | None, Option(help="Rows a step in phase 1.")]
MaxLength = Annotated[int, Option(help="Tokens a row is cut at.")]


def given_fields(arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of settings and configuration among a command's arguments, as plain values."""
    fields = {
        name: value.value if isinstance(value, Enum) else value
        for name, value in arguments.items()
        if name in FIELDS and value is not None and value != []
    }
    if len(fields.get("alpha", [])) == 1:
        fields["alpha"] = fields["alpha"][0]
    if "alpha_range" in fields:
        low, high = fields["alpha_range"] = list(fields["alpha_range"])
        fields.setdefault("alpha", math.sqrt(low * high) if 0 < low < high else low)
    return fields
