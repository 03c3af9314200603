"""Loads a checkpoint for inference: safetensors only, no remote code, every weight checked."""

from __future__ import annotations

import os
from collections.abc import Set
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
)
from transformers.utils import cached_file, logging

from consistentee_ext.criteria import check_criterion, check_threshold
from consistentee_ext.heads import build_exit_heads

SUPPORTED = ("consistentee", "bert")


class CheckpointConfig(PreTrainedConfig):
    """Tells `AutoTokenizer` that the model type is known; it warns of others at length."""

    model_type = "consistentee"


AutoConfig.register(CheckpointConfig.model_type, CheckpointConfig)


class EarlyExitModel(nn.Module):
    """An encoder and its exit heads, as a ConsistentEE checkpoint holds them.

    ``backbone.*`` and ``heads.{i}.*`` are the names in ``model.safetensors``; `config` has the
    fields of ``config.json`` that the engine reads.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        common = PreTrainedConfig(**{k: config[k] for k in ("id2label", "label2id") if k in config})
        num_labels = len(common.id2label or {})
        self.config = SimpleNamespace(
            **{
                key: config[key]
                for key in ("pooling", "policy_input", "policy_size", "criterion", "threshold")
            },
            num_labels=num_labels,
            alpha=config.get("alpha"),
            alpha_range=config.get("alpha_range"),
            id2label=common.id2label,
            label2id=common.label2id,
            model_type="consistentee",
        )
        backbone_config = AutoConfig.for_model(**config["backbone"])
        if backbone_config.model_type != "bert":
            raise ValueError(
                f"backbone: expected model_type 'bert', got {backbone_config.model_type!r}"
            )
        check_criterion(config["criterion"])
        check_threshold(config["threshold"])
        self.backbone = AutoModel.from_config(backbone_config)
        self.backbone.pooler = None
        self.heads = build_exit_heads(
            backbone_config.hidden_size,
            backbone_config.num_hidden_layers,
            num_labels,
            self.config.policy_input,
            self.config.policy_size,
            adjustable=self.config.alpha_range is not None,
        )


def load_checkpoint(name_or_path: str | os.PathLike[str]) -> nn.Module:
    """The model in a local folder or on the hub, ready for `FastEarlyExitEncoder`.

    Raises:
        ValueError: a config of another model type, or weights that are missing, reshaped or
            unknown.
        OSError: no such folder or file.
    """
    config, _ = PreTrainedConfig.get_config_dict(name_or_path)
    model_type = config.get("model_type")
    if model_type not in SUPPORTED:
        raise ValueError(
            f"{name_or_path}: expected a config of model_type {' or '.join(SUPPORTED)}, "
            f"got {model_type!r}"
        )
    if model_type == "bert":
        return _load_bert(name_or_path)
    try:
        with torch.device("meta"):  # the file brings the weights; no second copy, none at random
            model = EarlyExitModel(config)
    except KeyError as error:
        raise ValueError(f"{name_or_path}: config.json has no field {error}") from None
    file = cached_file(name_or_path, "model.safetensors")
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
    return model.eval()


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


def _load_bert(name_or_path: str | os.PathLike[str]) -> nn.Module:
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the table of misfits it would log is our error, in one line
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name_or_path,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    _check_fit(
        name_or_path,
        missing=info["missing_keys"],
        unknown=set(),
        reshaped={str(name) for name, *_ in info["mismatched_keys"]},
    )
    return model.eval()


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
