"""Model families: how a Hugging Face module is read into a `Stack`. One short file a family, or one
for those whose modules are alike, and a line below; docs/adding_a_family.md is a walk through one.

Encoders of other families run as they are where they can, see `generic`.

The modules hold no arithmetic.
"""

from __future__ import annotations

from typing import Any, NoReturn, Protocol

from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from consistentee_ext.backend import select_backend
from consistentee_ext.families import (
    albert,
    bert,
    deberta,
    deberta_v2,
    distilbert,
    electra,
    ernie,
    gte,
    llama,
    megatron_bert,
    modernbert,
    mpnet,
    rembert,
    roberta,
    roberta_prelayernorm,
    roformer,
    xlm_roberta_xl,
)
from consistentee_ext.families.generic import angles_go_by_length, last_norm_of, refusal
from consistentee_ext.families.guard import check_modules, merge_hint
from consistentee_ext.families.probe import generic_stack
from consistentee_ext.families.reader import ClassifierHead, Reader
from consistentee_ext.layers import GenericStack, Stack
from consistentee_ext.layers.hooks import UnsupportedError
from consistentee_ext.ops import load_layer_ops


class Family(Protocol):
    """What every module here has."""

    LAST_NORM: str | None  # the name of the norm behind the last block, where blocks norm first

    def read_stack(self, model: Any, reader: Reader) -> Stack:
        """The encoder as data."""

    def read_head(self, model: Any) -> ClassifierHead:
        """The head of the family's Hugging Face sequence classifier."""


# By the model_type of the encoder's configuration.
FAMILIES: dict[str, Family] = {
    "albert": albert,
    "bert": bert,
    "camembert": roberta,
    "data2vec-text": roberta,
    "deberta": deberta,
    "deberta-v2": deberta_v2,
    "distilbert": distilbert,
    "electra": electra,
    "ernie": ernie,
    "eurobert": llama,
    "gemma": llama,
    "gemma3_text": llama,
    "gte": gte,
    "jina_embeddings_v3": gte,
    "llama": llama,
    "megatron-bert": megatron_bert,
    "mistral": llama,
    "modernbert": modernbert,
    "mpnet": mpnet,
    "nomic_bert": gte,
    "qwen2": llama,
    "qwen3": llama,
    "rembert": rembert,
    "roberta": roberta,
    "roberta-prelayernorm": roberta_prelayernorm,
    "roformer": roformer,
    "ultrabert": llama,
    "xlm-roberta": roberta,
    "xlm-roberta-xl": xlm_roberta_xl,
}


def is_native(config: Any) -> bool:
    """Whether a family here reads encoders of this configuration."""
    return config.model_type in FAMILIES and not angles_go_by_length(config)


def check_family(config: Any, name: str) -> None:
    """Raise ValueError, about the argument `name`, unless this configuration's encoder can be
    read, or may run as it is.
    """
    if not is_native(config):
        reason = refusal(config)
        if reason is not None:
            _refuse(config, name, reason)
        return
    if getattr(config, "is_decoder", False):
        raise ValueError(f"{name}: expected an encoder, got a config with is_decoder=True")
    position = getattr(config, "position_embedding_type", None) or "absolute"
    if position != "absolute":
        raise ValueError(f"{name}: expected absolute position embeddings, got {position!r}")


def find_backbone(model: object) -> nn.Module:
    """The encoder inside a classifier, of a family that is known here.

    Raises:
        TypeError, ValueError: no such classifier.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a classifier module, got {type(model).__name__}")
    backbone = getattr(model, "backbone", None)
    if not hasattr(model, "heads") or not isinstance(backbone, nn.Module):
        kind: Any = type(getattr(model, "config", None))
        classifier: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(kind, ())
        backbone = model.base_model if isinstance(model, classifier) else None
    if backbone is None:
        raise ValueError(
            "model: expected a ConsistentEE classifier or a Hugging Face sequence classifier, "
            f"got {type(model).__name__}{merge_hint(type(model).__module__)}"
        )
    check_family(backbone.config, "model")
    check_modules(model)
    return backbone


def _refuse(config: Any, name: str, reason: str) -> NoReturn:
    raise ValueError(
        f"{name}: expected an encoder of model_type {', '.join(FAMILIES)}, or one that runs on "
        f"packed rows as it is, got {config.model_type!r}: {reason}"
    )


def take_last_norm(backbone: Any) -> nn.Module | None:
    """The norm behind an encoder's last block, where blocks norm first; it is taken out of the
    encoder, whose hidden states are then alike at all layers. None where there is none.
    """
    family = FAMILIES.get(backbone.config.model_type)
    name = last_norm_of(backbone) if family is None else family.LAST_NORM
    if name is None:
        return None
    norm: nn.Module = backbone.get_submodule(name)
    if isinstance(norm, nn.Identity):
        return None
    backbone.set_submodule(name, nn.Identity())
    return norm


def read_stack(
    model: nn.Module, backbone: Any, reader: Reader, backend: str | None
) -> Stack | GenericStack:
    """The encoder as data, or, in a family of its own, the model or its encoder as it is.

    `backend` is the encoder's argument.

    Raises:
        ValueError: it is neither.
    """
    if is_native(backbone.config):
        return FAMILIES[backbone.config.model_type].read_stack(backbone, reader)
    if reader.weights is not None:
        raise ValueError(
            f"weights: expected None where layers run as they are, got {reader.weights!r}: "
            f"model_type {backbone.config.model_type!r} is of no family here"
        )
    ops = load_layer_ops(select_backend(reader.device, backend))
    try:
        return generic_stack(model, backbone, reader, ops)
    except UnsupportedError as error:
        _refuse(backbone.config, "model", str(error))
