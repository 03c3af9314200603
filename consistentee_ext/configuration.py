"""The configuration of a ConsistentEE checkpoint: the one definition of its config.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from consistentee_ext.criteria import check_criterion, check_threshold
from consistentee_ext.exits.head import check_alpha, num_layers_of
from consistentee_ext.names import (
    HEAD_ACTIVATIONS,
    METRICS_OF,
    MULTI_LABEL,
    POLICY_INPUTS,
    POOLINGS,
    REGRESSION,
    SINGLE_LABEL,
)


class ConsistentEEConfig(PreTrainedConfig):
    """Configuration of a ConsistentEE classifier.

    Args:
        backbone: configuration of the encoder, or a dict with its ``model_type``; BERT-base by
            default.
        pooling: what a head reads of a layer: the ``"mean"`` of a row's tokens, its first token
            (``"cls"``, the paper's), its ``"last"`` one, or the means of a ``"pair"`` of texts.
        policy_input: what a policy reads: ``"prediction"`` statistics (the default; they say
            nothing of a number), the ``"state"`` (the paper's, and regression's default), or
            ``"both"`` (`consistentee.training.train.train`'s default where rows are many enough).
        policy_size: width of a policy's hidden layer.
        criterion: the exit rule's score, see `consistentee_ext.criteria`.
        threshold: the score above which a row exits, in (0, 1].
        alpha: the price of a layer, in accuracy, for the easiest row; 0 makes depth free. A list
            has one price for each layer.
        alpha_range: lowest and highest alpha of an adjustable model, whose policies read the alpha
            asked for; `alpha` is then the default. None for a model of one alpha.
        metric: what the task is measured by, one of `METRICS_OF` its problem type.
        max_tokens: texts are cut to so many tokens, special ones included; None for as many as the
            encoder has positions for.
        label_std: standard deviation of the training labels; regression only.
        separator_id: the token between the two texts of a pair; for ``pooling="pair"``.
        last_pooling: of the last head, where it is not `pooling`: that of a model whose earlier
            exits were added.
        last_activation: of the last head's pooler, one of `HEAD_ACTIVATIONS`.
        levels: thresholds by name, each with its guarantee: ``{name: {"threshold", "guarantee",
            "confidence", "rows"}}``, as ``consistentee calibrate --level`` writes them.
        kwargs: the fields common to all configurations, such as ``num_labels`` or ``id2label``;
            ``problem_type="regression"`` predicts a number in place of a class,
            ``"multi_label_classification"`` a set of labels. One label without a problem type is a
            score, such as a cross-encoder's.

    Raises:
        ValueError: a field is outside its range.
    """

    model_type = "consistentee"
    sub_configs: ClassVar = {"backbone": AutoConfig}

    def __init__(
        self,
        backbone: PreTrainedConfig | dict[str, Any] | None = None,
        pooling: str = "mean",
        policy_input: str | None = None,
        policy_size: int = 32,
        criterion: str = "policy",
        threshold: float = 0.5,
        alpha: float | list[float] = 0.06,
        alpha_range: Sequence[float] | None = None,
        metric: str = "accuracy",
        label_std: float = 1.0,
        max_tokens: int | None = None,
        separator_id: int | None = None,
        last_pooling: str | None = None,
        last_activation: str = "tanh",
        levels: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        if backbone is None:
            backbone = {"model_type": "bert"}
        if isinstance(backbone, dict):
            if "model_type" not in backbone:
                raise ValueError("backbone: expected a dict with a 'model_type', got none")
            backbone = AutoConfig.for_model(**backbone)
        _check_one_of("pooling", pooling, POOLINGS)
        _check_one_of("last_pooling", last_pooling, (None, *POOLINGS))
        _check_one_of("last_activation", last_activation, HEAD_ACTIVATIONS)
        if "pair" in (pooling, last_pooling) and separator_id is None:
            raise ValueError("separator_id: expected that of the tokenizer with pooling='pair'")
        if policy_size < 1:
            raise ValueError(f"policy_size: expected at least 1, got {policy_size}")
        _check_alpha(alpha, alpha_range, num_layers_of(backbone))
        check_threshold(threshold)
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens: expected at least 1, got {max_tokens}")
        self.backbone = backbone
        self.pooling = pooling
        self.policy_size = policy_size
        self.criterion = criterion
        self.threshold = threshold
        self.alpha = alpha
        self.alpha_range = None if alpha_range is None else list(alpha_range)
        self.metric = metric
        self.label_std = label_std
        self.max_tokens = max_tokens
        self.separator_id = separator_id
        self.last_pooling = last_pooling
        self.last_activation = last_activation
        self.levels = check_levels(levels)
        super().__init__(**kwargs)
        check_criterion(criterion, self.multi_label)
        if self.problem_type == REGRESSION and self.num_labels != 1:
            raise ValueError(f"num_labels: expected 1 in regression, got {self.num_labels}")
        if not self.num_labels:
            raise ValueError(f"num_labels: expected at least 1, got {self.num_labels}")
        if policy_input is None:
            policy_input = "state" if self.regression else "prediction"
        _check_one_of("policy_input", policy_input, POLICY_INPUTS)
        if self.regression and policy_input == "prediction":
            raise ValueError(
                "policy_input: expected 'state' or 'both' in regression, got 'prediction', "
                "which says nothing of a number"
            )
        self.policy_input = policy_input
        check_metric(metric, self.num_labels, self.answer_type)

    @property
    def answer_type(self) -> str:
        """See `answer_type`."""
        return answer_type(self)

    @property
    def poolings(self) -> list[str]:
        """What the head of each layer reads."""
        early = [self.pooling] * (num_layers_of(self.backbone) - 1)
        return [*early, self.last_pooling or self.pooling]

    @property
    def regression(self) -> bool:
        """Whether the model predicts a number in place of a class."""
        return self.answer_type == REGRESSION

    @property
    def multi_label(self) -> bool:
        """Whether the model predicts a set of labels in place of a class."""
        return self.answer_type == MULTI_LABEL


def answer_type(config: PreTrainedConfig) -> str:
    """What a model answers with, a value of ``problem_type``; one number alone is a regression's,
    also where it is a cross-encoder's score.
    """
    if config.problem_type == MULTI_LABEL:
        return MULTI_LABEL
    return REGRESSION if config.num_labels == 1 else SINGLE_LABEL


def class_names(config: PreTrainedConfig) -> list[str]:
    """The label of each class, in order."""
    assert config.id2label is not None  # `PreTrainedConfig` fills it in
    names = {int(index): str(name) for index, name in config.id2label.items()}
    return [names[index] for index in sorted(names)]


def check_levels(levels: object | None) -> dict[str, dict[str, Any]] | None:
    """The levels; raises ValueError unless each is an object with a threshold in (0, 1]."""
    if levels is None:
        return None
    if not isinstance(levels, dict):
        raise ValueError(f"levels: expected an object, got {type(levels).__name__}")
    for name, level in levels.items():
        if not isinstance(level, dict) or "threshold" not in level:
            raise ValueError(f"levels: expected an object with a threshold for {name!r}")
        check_threshold(level["threshold"])
    return levels


def level_threshold(config: PreTrainedConfig, name: object) -> float:
    """The threshold of a calibrated level.

    Raises:
        ValueError: no level has this name.
    """
    levels: dict[str, dict[str, Any]] = getattr(config, "levels", None) or {}
    if name not in levels:
        known = ", ".join(map(repr, levels)) or "none; consistentee calibrate --level makes one"
        raise ValueError(f"level: expected one of the checkpoint's ({known}), got {name!r}")
    return float(levels[str(name)]["threshold"])


def _check_one_of(name: str, value: object, known: Sequence[object]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {known}, got {value!r}")


def _check_alpha(alpha: Any, alpha_range: Any, num_layers: int) -> None:
    values = alpha if isinstance(alpha, list) else [alpha]
    if not all(value >= 0.0 for value in values):
        raise ValueError(f"alpha: expected a number of at least 0, got {alpha}")
    if isinstance(alpha, list) and len(alpha) != num_layers:
        raise ValueError(
            f"alpha: expected one number, or {num_layers}, one for each layer, got {len(alpha)}"
        )
    if alpha_range is None:
        return
    if len(alpha_range) != 2 or not 0.0 < alpha_range[0] < alpha_range[1]:
        raise ValueError(
            f"alpha_range: expected two numbers above 0, the lower first, got {alpha_range}"
        )
    check_alpha(alpha, alpha_range)


def check_metric(metric: str, num_labels: int, problem_type: str) -> None:
    """Raise ValueError unless a model of this problem type can be measured so."""
    known = METRICS_OF[problem_type]
    if metric not in known:
        raise ValueError(f"metric: expected one of {known} in {problem_type}, got {metric!r}")
    if metric == "f1" and num_labels != 2:
        raise ValueError(f"metric: expected two classes for 'f1', got {num_labels}")


AutoConfig.register(ConsistentEEConfig.model_type, ConsistentEEConfig)
