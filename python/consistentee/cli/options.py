"""Options that commands share."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from consistentee.training.estimators import EstimatorName
from consistentee.training.objective import Reward
from consistentee_ext.criteria import POLICY_INPUTS
from consistentee_ext.heads import POOLINGS

Option = typer.Option
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
Alpha = Annotated[
    float | None,
    Option(help="Price of a layer, of a model trained with --alpha-range."),
]
Seed = Annotated[int, Option(help="Of everything random.")]
Model = Annotated[str, Option(help="Pretrained encoder: a folder, or a name on the hub.")]
Paper = Annotated[bool, Option("--paper", help="The paper's settings in place of ours.")]
MaxLength = Annotated[int, Option(help="Tokens a row is cut at.")]

if TYPE_CHECKING:
    Pooling = str
    PolicyInput = str
else:
    Pooling = Literal[POOLINGS]
    PolicyInput = Literal[POLICY_INPUTS]


@dataclass(frozen=True)
class ConfigOptions:
    """Fields of the model's configuration; None leaves the task's value, or the default."""

    pooling: Annotated[Pooling | None, Option(help="What a head reads.")] = None
    policy_input: Annotated[PolicyInput | None, Option(help="What a policy reads.")] = None
    alpha: Annotated[
        list[float] | None,
        Option(help="Price of a layer in the reward: higher is faster. Once, or once a layer."),
    ] = None
    alpha_range: Annotated[
        tuple[float, float] | None,
        Option(help="Lowest and highest price: one model for the whole range of speeds."),
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user gave, as `ConsistentEEConfig` takes them.

        Without an alpha, that of a range is its geometric mean.
        """
        found = _given(self)
        if self.alpha and len(self.alpha) == 1:
            found["alpha"] = self.alpha[0]
        if self.alpha_range is not None:
            low, high = self.alpha_range
            found["alpha_range"] = [low, high]
            found.setdefault("alpha", math.sqrt(low * high) if 0 < low < high else low)
        return found


@dataclass(frozen=True)
class SettingsOptions:
    """Fields of `TrainingSettings`; None leaves the task's value, or the default."""

    estimator: Annotated[EstimatorName | None, Option(help="Of the expected reward.")] = None
    samples: Annotated[int | None, Option(help="K, exits that reinforce draws for a row.")] = None
    epsilon: Annotated[
        float | None, Option(help="Share of those that are uniform over layers.")
    ] = None
    reward: Annotated[Reward | None, Option(help="Whom depth costs how much.")] = None
    held_out: Annotated[float | None, Option(help="Share of the rows kept for the policies.")] = (
        None
    )
    folds: Annotated[int | None, Option(help="Cross-fitting in place of a share: K folds.")] = None
    iterations: Annotated[int | None, Option(help="How often phases 2 and 3 alternate.")] = None
    epochs: Annotated[int | None, Option(help="Epochs of phase 1.")] = None
    joint_epochs: Annotated[int | None, Option(help="Epochs of phase 3; 0 leaves it out.")] = None
    batch_size: Annotated[int | None, Option(help="Rows a step in phase 1.")] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user gave."""
        return _given(self)


def _given(options: ConfigOptions | SettingsOptions) -> dict[str, Any]:
    values = ((field.name, getattr(options, field.name)) for field in fields(options))
    return {name: value for name, value in values if value is not None and value != []}


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command as Typer reads it: each parameter that is a dataclass becomes its fields' options.

    The options stand where the parameter stood; the command gets the dataclass made of them.
    """
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter)
            continue
        groups[parameter.name] = parameter.annotation
        hints = get_type_hints(parameter.annotation, include_extras=True)
        parameters += [
            parameter.replace(name=field.name, annotation=hints[field.name], default=field.default)
            for field in fields(parameter.annotation)
        ]

    @functools.wraps(command)
    def run(**arguments: Any) -> None:
        for name, group in groups.items():
            arguments[name] = group(**{f.name: arguments.pop(f.name) for f in fields(group)})
        command(**arguments)

    run.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return run
