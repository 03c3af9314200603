"""Results as the columns of a table: labels, exit layers, scores."""

from __future__ import annotations

import json
from itertools import compress
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from consistentee_ext.configuration import class_names
from consistentee_ext.names import MULTI_LABEL, REGRESSION
from consistentee_ext.ops.prediction import answers
from consistentee_ext.output import EarlyExitOutput


def added_columns(config: PreTrainedConfig) -> list[str]:
    """The names of the columns: ``prediction``, ``exit_layer``, ``exit_score``, of independent
    labels ``scores`` too.
    """
    scores = ["scores"] if config.problem_type == MULTI_LABEL else []
    return ["prediction", "exit_layer", "exit_score", *scores]


def prediction_columns(output: EarlyExitOutput, config: PreTrainedConfig) -> dict[str, list[Any]]:
    """The columns of `added_columns`, of N rows.

    A prediction is the label; of a set of labels their names joined by ``|``, of a single label its
    probability, in regression the number. ``scores`` is a JSON object, each label's probability.
    """
    values: list[list[Any]] = [
        _answers(output.logits, config),
        output.exit_layers.tolist(),
        output.exit_scores.tolist(),
    ]
    if config.problem_type == MULTI_LABEL:
        values.append(_scores(output.logits, config))
    return dict(zip(added_columns(config), values, strict=True))


def _answers(logits: Tensor, config: PreTrainedConfig) -> list[Any]:
    """The label of each row's class, its labels, its number, or a single label's probability."""
    names = class_names(config)
    if config.problem_type == MULTI_LABEL:
        return ["|".join(compress(names, row)) for row in answers(logits, True).tolist()]
    if len(names) == 1:
        numbers = logits[:, 0] if config.problem_type == REGRESSION else logits[:, 0].sigmoid()
        return list(numbers.tolist())
    return [names[index] for index in answers(logits).tolist()]


def _scores(logits: Tensor, config: PreTrainedConfig) -> list[str]:
    """The probability of each label, a JSON object for each row."""
    names = class_names(config)
    rows = logits.sigmoid().tolist()
    return [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
