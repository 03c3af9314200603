"""Loads a decoder for inference: safetensors only, no remote code."""

from __future__ import annotations

from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from consistentee_ext.checkpoint import load_with_transformers, reading_safetensors
from consistentee_ext.generation.configuration import BACKBONES
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.source import Source


def load_decoder(source: Source) -> nn.Module:
    """The decoder in a local folder or on the hub, ready for `FastEarlyExitDecoder`.

    Raises:
        ValueError: a config of another model type or a classifier's, or weights that are missing or
            reshaped.
        OSError: no such folder or file.
    """
    name_or_path = source.name_or_path
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, **source.options())
    model_type = fields.get("model_type")
    supported = (ConsistentEEForCausalLM.config_class.model_type, *BACKBONES)
    if model_type not in supported:
        raise ValueError(
            f"{name_or_path}: expected a config of model_type {', '.join(supported)}, "
            f"got {model_type!r}"
        )
    classifiers = [n for n in fields.get("architectures") or () if "Classification" in n]
    if classifiers:
        raise ValueError(
            f"{name_or_path}: expected a decoder with its LM head, got a {classifiers[0]}"
        )
    with reading_safetensors(source, AutoModelForCausalLM.__name__):
        return load_with_transformers(source, AutoModelForCausalLM)
