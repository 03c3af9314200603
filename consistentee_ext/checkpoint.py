"""Loads a checkpoint for inference: safetensors only, no remote code, every weight checked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
)
from transformers.utils import logging
from transformers.utils.hub import cached_file

from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.exits.head import build_exit_heads
from consistentee_ext.families import FAMILIES, check_family, is_native, take_last_norm
from consistentee_ext.families.generic import refusal
from consistentee_ext.source import Source

# Fields without which config.json does not describe a checkpoint; the defaults of others say that
# a model lacks something.
_REQUIRED = ("backbone", "pooling", "policy_input", "policy_size", "criterion", "threshold")


class EarlyExitModel(nn.Module):
    """An encoder and its exit heads, as a ConsistentEE checkpoint holds them: ``backbone.*`` and
    ``heads.{i}.*`` are the names in ``model.safetensors``.
    """

    def __init__(self, config: ConsistentEEConfig) -> None:
        super().__init__()
        check_family(config.backbone, "backbone")
        self.config = config
        self.backbone = AutoModel.from_config(config.backbone)
        self.backbone.pooler = None
        self.heads = build_exit_heads(config, take_last_norm(self.backbone))


def load_checkpoint(source: Source) -> nn.Module:
    """The model in a local folder or on the hub, ready for `FastEarlyExitEncoder`.

    Raises:
        ValueError: a config of another model type, or weights that are missing, reshaped or
            unknown.
        OSError: no such folder or file.
    """
    name_or_path = source.name_or_path
    fields, _ = PreTrainedConfig.get_config_dict(name_or_path, **source.options())
    if not isinstance(fields.get("id2label", {}), dict):
        raise ValueError(
            f"{name_or_path}: config.json: id2label: expected an object from number to name, got "
            f"{type(fields['id2label']).__name__}"
        )
    with reading_safetensors(source, AutoModelForSequenceClassification.__name__):
        return _load(source, fields)


@contextmanager
def reading_safetensors(source: Source, auto_class: str) -> Iterator[None]:
    """Raise OSError, with the cure, where a local folder has its weights in a pickle alone, and
    ValueError where a file of weights is not whole.
    """
    folder = Path(source.name_or_path) / source.subfolder
    if (folder / "pytorch_model.bin").is_file() and not list(folder.glob("*.safetensors")):
        raise OSError(
            f"{folder}: expected model.safetensors, got pytorch_model.bin, which can run code when "
            f"it is loaded; if you trust it, {auto_class}.from_pretrained and then save_pretrained "
            "writes the other"
        )
    try:
        yield
    except SafetensorError as error:
        raise ValueError(
            f"{source.name_or_path}: expected weights in safetensors, got a file that is cut "
            f"short, or a pointer to one: {error}"
        ) from error


def _load(source: Source, fields: dict[str, Any]) -> nn.Module:
    name_or_path = source.name_or_path
    model_type = fields.get("model_type")
    if model_type != ConsistentEEConfig.model_type:
        reason = _refusal(source, model_type)
        if reason is None:
            return load_with_transformers(source, AutoModelForSequenceClassification)
        supported = (ConsistentEEConfig.model_type, *FAMILIES)
        raise ValueError(
            f"{name_or_path}: expected a config of model_type {', '.join(supported)}, or of an "
            f"encoder that runs on packed rows as it is, got {model_type!r}: {reason}"
        )
    for name in _REQUIRED:
        if name not in fields:
            raise ValueError(f"{name_or_path}: config.json has no field {name!r}")
    config = ConsistentEEConfig.from_dict(fields, name_or_path=str(name_or_path))
    # The file brings the weights: no second copy, none at random. What a module that runs as it is
    # has beside its weights is in no file.
    with torch.device("meta" if is_native(config.backbone) else "cpu"):
        model = EarlyExitModel(config)
    file = cached_file(name_or_path, "model.safetensors", **source.options())
    assert file is not None  # a missing file raises
    weights = _read_weights(file)
    expected = model.state_dict()
    _check_fit(
        name_or_path,
        missing=expected.keys() - weights.keys(),
        unknown=weights.keys() - expected.keys(),
        reshaped={
            name
            for name in expected.keys() & weights.keys()
            if expected[name].shape != weights[name].shape
        },
    )
    model.load_state_dict(weights, assign=True)
    if is_native(config.backbone):
        _compute_angles(model.backbone)
    return model.eval()


def _compute_angles(backbone: nn.Module) -> None:
    """Rotary positions are in no file: their modules compute them from the configuration."""
    for name, module in list(backbone.named_modules()):
        if hasattr(module, "rope_type"):
            make: Any = type(module)
            backbone.set_submodule(name, make(config=backbone.config))


def _refusal(source: Source, model_type: object) -> str | None:
    """Why there is no use in loading a classifier of this type; None if there is."""
    if model_type in FAMILIES:
        return None
    if model_type not in CONFIG_MAPPING:
        return "transformers does not know it"
    config = AutoConfig.from_pretrained(source.name_or_path, **source.options())
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return "transformers has no sequence classifier of it"
    return refusal(config)


def load_tokenizer(source: Source) -> Any:
    """The tokenizer beside a model.

    Raises:
        OSError: there is none.
        ValueError: it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(
            source.name_or_path, trust_remote_code=False, **source.options()
        )
    except (OSError, ValueError):
        raise
    except Exception as error:  # the library raises no narrower one for a file it cannot read
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{source.name_or_path}: expected a tokenizer that tokenizers "
            f"{version('tokenizers')} reads, got one that it does not: {reason}"
        ) from error


def _read_weights(file: str) -> dict[str, Tensor]:
    """The tensors of a file, each in memory of its own, so that each can be freed alone.

    Tensors of one opened file share its mapping, which stays in memory whole while one of them
    lives.
    """
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
    weights = {}
    for name in names:
        with safe_open(file, framework="pt") as opened:
            weights[name] = opened.get_tensor(name).clone()
    return weights


def load_with_transformers(source: Source, auto_class: Any) -> nn.Module:
    """A model by one of the library's auto classes, in evaluation mode.

    Raises:
        ValueError: weights that are missing or reshaped.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of misfits it would log is our error, in one line
    try:
        model, info = auto_class.from_pretrained(
            source.name_or_path,
            use_safetensors=True,
            trust_remote_code=False,
            **source.options(),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    _check_fit(
        source.name_or_path,
        missing=info["missing_keys"],
        unknown=set(),
        reshaped={str(name) for name, *_ in info["mismatched_keys"]},
    )
    loaded: nn.Module = model.eval()
    return loaded


def _check_fit(
    name_or_path: str | os.PathLike[str], missing: Set[str], unknown: Set[str], reshaped: Set[str]
) -> None:
    """Raise, in one line, unless the weights are those of the config."""
    found = {"missing": missing, "unknown": unknown, "of another shape": reshaped}
    parts = []
    for what, names in found.items():
        first = sorted(names)[:3]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        if names:
            parts.append(f"{what}: {', '.join(first)}{more}")
    if parts:
        raise ValueError(
            f"{name_or_path}: expected the weights that config.json describes; {'; '.join(parts)}"
        )
