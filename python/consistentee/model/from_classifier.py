"""A Hugging Face classifier, given a head on every layer."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext.configuration import ConsistentEEConfig, answer_type
from consistentee_ext.exits.head import start_pooler
from consistentee_ext.families import FAMILIES, find_backbone, is_native
from consistentee_ext.names import METRICS_OF, REGRESSION, Pooling


def from_classifier(
    classifier: nn.Module, pooling: Pooling = "mean", max_tokens: int | None = None
) -> ConsistentEEForSequenceClassification:
    """The model with a classifier's trunk and head, and untrained heads on its earlier layers.

    The last head computes what the classifier's own does. Poolers of the others start as its
    pooler, classifiers and policies at random.

    Args:
        classifier: a sequence classifier of a family in `consistentee_ext.families`; it is copied.
        pooling: what the new heads read.
        max_tokens: as in `ConsistentEEConfig`.

    Raises:
        ValueError: another model, or one that has exits.
    """
    backbone: Any = find_backbone(classifier)
    if hasattr(classifier, "heads"):
        raise ValueError("model: expected a classifier without exits, got one that has them")
    source: Any = classifier.config
    if not is_native(backbone.config):
        raise ValueError(
            f"model: expected a classifier of a family in consistentee_ext.families, got "
            f"{type(classifier).__name__}; train with its encoder as backbone"
        )
    family = FAMILIES[backbone.config.model_type]
    head = family.read_head(classifier)
    if head.pooling == "mean" or head.state_norm is not None:
        raise ValueError(
            "model: expected a classifier that reads one token of a row by at most a product, an "
            f"activation and a product, got {type(classifier).__name__}, to which no exits can be "
            "added yet"
        )
    encoder_config = copy.deepcopy(backbone.config)
    encoder_config.name_or_path = ""  # a local path is no part of a model
    kind = answer_type(source)
    # A cross-encoder's own field says which function its scores go through.
    others = {
        name: getattr(source, name) for name in ("sentence_transformers",) if hasattr(source, name)
    }
    config = ConsistentEEConfig(
        encoder_config,
        pooling=pooling,
        # A number has no confidence that a policy could read.
        policy_input="state" if kind == REGRESSION else "prediction",
        metric=METRICS_OF[kind][0],
        max_tokens=max_tokens,
        last_pooling=head.pooling,
        last_activation=head.activation,
        problem_type=source.problem_type,
        id2label=source.id2label,
        label2id=source.label2id,
        **others,
    )
    model = ConsistentEEForSequenceClassification(config)
    for part in (model.backbone, model.heads):  # the encoder's configuration may name another dtype
        part.to(next(classifier.parameters()).dtype)
    weights = backbone.state_dict()
    model.backbone.load_state_dict({name: weights[name] for name in model.backbone.state_dict()})
    heads: list[Any] = list(model.heads)
    for exit_head in heads:
        if exit_head.norm is not None:
            assert family.LAST_NORM is not None  # the norm is a copy of that one
            last_norm = backbone.get_submodule(family.LAST_NORM)
            exit_head.norm.load_state_dict(last_norm.state_dict())
        if head.pooler is not None:
            start_pooler(exit_head, head.pooler.state_dict())
    last = heads[-1]
    if head.pooler is None:  # what is read goes to the classifier as it is
        nn.init.eye_(last.pooler.weight)
        nn.init.zeros_(last.pooler.bias)
    none = {"bias": torch.zeros_like(last.classifier.bias)}  # a score's product may have no bias
    last.classifier.load_state_dict({**none, **head.classifier.state_dict()})
    return model
