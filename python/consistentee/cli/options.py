"""Options that several commands have."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from consistentee.generation.names import Target
from consistentee.training.names import EstimatorName, Reward
from consistentee_ext.names import PolicyInput, Pooling, Readout
from consistentee_ext.source import Source

Option = typer.Option
Checkpoint = Annotated[str, typer.Argument(help="Checkpoint folder, or a name on the hub.")]
File = Annotated[Path, Option("--data", help="File of labelled text.")]
TextColumns = Annotated[
    list[str] | None,
    Option("--text-column", help="Column of text; twice for pairs. Default: found by name."),
]
LabelColumn = Annotated[
    str | None, Option(help="Column of labels. Default: label; of sets of labels, labels.")
]
Threshold = Annotated[
    float | None,
    Option(help="Score above which a row leaves, in (0, 1]. Default: the checkpoint's."),
]
Alpha = Annotated[
    float | None,
    Option(help="Cost of a layer, for a model trained with --alpha-range."),
]
Tolerance = Annotated[float, Option(help="By how much a score or a number may differ.")]
Seed = Annotated[int, Option(help="Seed of everything random.")]
Model = Annotated[str, Option(help="Pretrained encoder: a folder, or a name on the hub.")]
Paper = Annotated[bool, Option("--paper", help="Use the paper's settings in place of ours.")]
MaxNewTokens = Annotated[int | None, Option(help="Of a generator's answers. Default: 64.")]
MaxLength = Annotated[
    int | None,
    Option(
        help="Rows are cut to so many tokens, also where the checkpoint is used. Default: 128, or "
        "the encoder's positions if fewer."
    ),
]


@dataclass(frozen=True)
class ConfigOptions:
    """Fields of the model's configuration; None leaves the task's value, or the default."""

    pooling: Annotated[
        Pooling | None,
        Option(help="What a head reads: tokens' mean, first or last one, or a pair of means."),
    ] = None
    policy_input: Annotated[PolicyInput | None, Option(help="Inputs of a policy.")] = None
    alpha: Annotated[
        list[float] | None,
        Option(help="Cost of a layer in the reward: higher is faster. Once, or once per layer."),
    ] = None
    alpha_range: Annotated[
        tuple[float, float] | None,
        Option(help="Lowest and highest alpha: one model for this range, set at run time."),
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user gave, as `ConsistentEEConfig` takes them.

        A range without an alpha gets its geometric mean as alpha.
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

    estimator: Annotated[
        EstimatorName | None, Option(help="Estimator of the expected reward's gradient.")
    ] = None
    samples: Annotated[int | None, Option(help="Exits that reinforce draws for a row.")] = None
    epsilon: Annotated[
        float | None, Option(help="Share of these that are drawn uniformly over layers.")
    ] = None
    reward: Annotated[
        Reward | None,
        Option(help="How the cost of depth depends on the row: its hardness, plain or oracle."),
    ] = None
    held_out: Annotated[
        float | None, Option(help="Share of the rows held out for the policies.")
    ] = None
    folds: Annotated[
        int | None, Option(help="Cross-fitting with K folds in place of a held-out share.")
    ] = None
    iterations: Annotated[int | None, Option(help="Number of rounds of phases 2 and 3.")] = None
    epochs: Annotated[int | None, Option(help="Epochs of phase 1.")] = None
    joint_epochs: Annotated[int | None, Option(help="Epochs of phase 3; 0 leaves it out.")] = None
    batch_size: Annotated[int | None, Option(help="Rows of a step in phase 1.")] = None
    distillation: Annotated[
        float | None, Option(help="Weight of the last layer's answers beside the labels, phase 1.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The fields that the user gave."""
        return _given(self)


@dataclass(frozen=True)
class GenerationOptions:
    """What ``train --generation`` has beside the others; None leaves the default."""

    target: Annotated[
        Target | None,
        Option(help="Generation: answers are the full model's greedy text, or the completions."),
    ] = None
    prompts: Annotated[
        Path | None, Option(help="Generation: file of prompts alone, in place of --data.")
    ] = None
    readout: Annotated[
        Readout | None,
        Option(help="Generation: a translator an exit, the trunk frozen; or train the trunk."),
    ] = None
    exit_layer: Annotated[
        list[int] | None, Option(help="Generation: a layer behind which tokens leave; repeat it.")
    ] = None
    learning_rate: Annotated[
        float | None, Option(help="Generation: peak learning rate of a trunk that is trained.")
    ] = None
    lora_rank: Annotated[
        int | None, Option(help="Generation: train LoRA adapters of this rank, not all the trunk.")
    ] = None
    tokens: Annotated[
        int | None, Option(help="Generation: answer tokens that phase 1 trains on.")
    ] = None
    policy_tokens: Annotated[int | None, Option(help="Generation: those of phase 2.")] = None
    joint_tokens: Annotated[
        int | None, Option(help="Generation: those of phase 3; 0 leaves it out.")
    ] = None
    max_new_tokens: Annotated[
        int | None, Option(help="Generation: answers are cut to so many tokens.")
    ] = None

    def given(self) -> dict[str, Any]:
        """The options that the user gave."""
        return _given(self)


def _given(options: ConfigOptions | SettingsOptions | GenerationOptions) -> dict[str, Any]:
    values = ((field.name, getattr(options, field.name)) for field in fields(options))
    return {name: value for name, value in values if value is not None and value != []}


def _check_inputs(arguments: dict[str, Any]) -> None:
    """Raise FileNotFoundError, before anything slow, where a file or a folder is not there."""
    for name in ("checkpoint", "model"):
        if arguments.get(name) is not None:
            Source(arguments[name]).checked()
    for name in ("data", "input", "comparison", "prompts"):
        paths = arguments.get(name) or []
        for path in [paths] if isinstance(paths, Path) else paths:
            if not path.exists():
                raise FileNotFoundError(f"{path}: expected a file or a folder, found none")


def expand_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace each parameter that is a dataclass by one option for each of its fields.

    Typer sees the options in the parameter's place; the command gets an instance made from them.
    transformers, which takes seconds to import, is imported when the command is run.
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
        _check_inputs(arguments)
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # of loading weights; training and prediction have their own
        for name, group in groups.items():
            arguments[name] = group(**{f.name: arguments.pop(f.name) for f in fields(group)})
        command(**arguments)

    run.__dict__["__signature__"] = signature.replace(parameters=parameters)
    return run
