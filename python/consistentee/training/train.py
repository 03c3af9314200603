"""Training in the phases of ConsistentEE (arXiv 2312.11882).

1. ``trunk``: trunk and classifiers, on the depth-weighted loss of all layers; then (1b) the
   Memorized Layer of each training row.
2. ``policies``: policies alone, on the expected reward.
3. ``joint``: all together, each classifier on the rows that leave at it. 2 and 3 may alternate.

Policies learn from rows that the classifiers they judge have not seen. On rows it was trained on a
classifier is nearly always right, and a policy would learn to leave at once. So beside the trunk
that all rows train there is a second one, which misses a share of them, or (cross-fitting) one for
each fold; policies learn from what these make of the rows they miss, and judge the first. Its
states are another trunk's states but for an affine map, nearly, and are mapped to them
(`consistentee.training.alignment`). For the same reason classifiers are calibrated on
those rows before phase 2: the deeper the layer, the more it exaggerates, and a wrong answer given
with too much confidence makes leaving early look better than it is.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training.distributed import processes
from consistentee.training.phases import Phases
from consistentee.training.run_folder import Json, RunFolder
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.trunks import plan_trunks

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Policies that read states as well win with 1,200 rows to learn from (M-CID) and more; with 450 to
# 500 (the demo, RTE) they lose one to three points against policies that read predictions alone.
MIN_STATE_ROWS = 1000
# Fields of the configuration that say nothing to a model without policies.
POLICY_FIELDS = ("policy_input", "policy_size", "alpha", "alpha_range", "threshold")
TRUNK_SETTINGS = ("batch_size", "learning_rate", "head_factor", "seed", "bf16")


def train(
    backbone: str | os.PathLike[str],
    train_data: Dataset,
    dev_data: Dataset,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings | None = None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train a ConsistentEE classifier; called again after a kill, go on from the last checkpoint.

    Args:
        backbone: a pretrained encoder: a Hugging Face folder or hub name, safetensors weights.
        train_data: columns ``input_ids``, ``attention_mask``, ``token_type_ids`` where the encoder
            has segments, ``labels``, in 0..C-1 or, in regression, floating numbers, and ``length``
            in tokens, as `consistentee.data.encode.encode` gives.
        dev_data: like `train_data`; measured after each phase, never trained on.
        output: the folder to make; it appears whole, at the end: config.json, model.safetensors,
            the tokenizer, memorized_layers.safetensors and training_log.json. Until then the work
            is in ``<output>.partial``.
        tokenizer: the backbone's.
        settings: how to train.
        config: fields of `ConsistentEEConfig`, such as ``id2label``, ``pooling``, ``policy_input``
            or ``alpha``. Without ``policy_input`` policies read ``"both"`` where they have
            `MIN_STATE_ROWS` to learn from, else ``"prediction"``.

    Returns:
        training_log.json: ``run``, what determines the result, and ``phases``: of each its seconds,
        its losses and what `exit_report` says of `dev_data`.

    Under ``torchrun`` or ``accelerate launch`` the processes share each step's rows.

    Raises:
        ValueError: a setting, field or label outside its range, a row above the encoder's position
            limit, too few rows, or an output that cannot be written or holds something else.
        RuntimeError: a loss is not finite; checkpoints are kept.
    """
    settings = settings or TrainingSettings()
    identity = asdict(settings)
    phases = open_run(backbone, train_data, dev_data, output, tokenizer, settings, identity, config)
    return phases.run.log() or phases.run_all()


def train_trunk(
    backbone: str | os.PathLike[str],
    train_data: Dataset,
    dev_data: Dataset,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    num_layers: int | None = None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train what other exits start from: all rows, for as many epochs as phases 1 and 3 have.

    Args:
        num_layers: None trains the classifiers of all layers, as phase 1 does; a number keeps the
            first layers alone and trains the last of them (truncation).

    The other arguments, the result and the errors are those of `train`.
    """
    epochs = settings.epochs + settings.iterations * settings.joint_epochs
    # What policies are trained by is no part of this run.
    identity = {name: getattr(settings, name) for name in TRUNK_SETTINGS} | {"epochs": epochs}
    phases = open_run(
        backbone, train_data, dev_data, output, tokenizer, settings, identity, config, num_layers
    )
    loss = phases.losses.trunk if num_layers is None else phases.losses.last_layer
    return phases.run.log() or phases.run_trunk(loss, epochs)


def open_run(
    backbone: str | os.PathLike[str],
    train_data: Dataset,
    dev_data: Dataset,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings,
    identity_of_settings: Json,
    config: ConfigFields,
    num_layers: int | None = None,
) -> Phases:
    """A model as it starts and the folder of its run, everything checked.

    The arguments are those of `train`; `identity_of_settings` is what of them decides the result.
    """
    trunks = plan_trunks(train_data["labels"], settings.held_out, settings.folds, settings.seed)
    if config.get("problem_type") == "regression":
        config = {**config, "label_std": float(np.std(train_data["labels"]))}
    elif "policy_input" not in config:
        few = sum(trunk.unseen.sum() for trunk in trunks) < MIN_STATE_ROWS
        config = {**config, "policy_input": "prediction" if few else "both"}
    model = _start(backbone, num_layers, config, settings.seed)
    _check_data("train_data", train_data, model)
    _check_data("dev_data", dev_data, model)
    identity = {
        "backbone": str(backbone),
        "num_layers": num_layers,
        "config": config,
        "settings": identity_of_settings,
        "train_data": fingerprint(train_data),
        "dev_data": fingerprint(dev_data),
    }
    with processes().main_process_first():
        run = RunFolder(output, identity)
    return Phases(run, model, train_data, trunks, dev_data, tokenizer, settings)


def without_policies(config: ConfigFields) -> ConfigFields:
    """What is left to a model whose policies are never trained; those it has are small."""
    kept = {name: value for name, value in config.items() if name not in POLICY_FIELDS}
    if config.get("problem_type") != "regression":
        kept["policy_input"] = "prediction"
    return cast(ConfigFields, kept)


def _start(
    backbone: str | os.PathLike[str], num_layers: int | None, config: ConfigFields, seed: int
) -> ConsistentEEForSequenceClassification:
    """The model before training. A seed gives one trunk, whatever the policies are like, so that
    exits can be compared on equal ones.
    """
    set_seed(seed)
    build = ConsistentEEForSequenceClassification.from_backbone
    trunk = build(backbone, num_layers, **without_policies(config))
    model = build(backbone, num_layers, **config)
    weights = {n: value for n, value in trunk.state_dict().items() if ".policy." not in n}
    model.load_state_dict(weights, strict=False)
    return model


def _check_data(name: str, data: Dataset, model: ConsistentEEForSequenceClassification) -> None:
    if len(data) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    labels = np.asarray(data["labels"])
    classes = model.num_labels
    if model.config.regression:
        if not np.isfinite(labels).all():
            raise ValueError(f"{name}: expected finite numbers as labels, got others too")
    elif labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    longest = max(data["length"])
    if longest > model.max_length:
        raise ValueError(
            f"{name}: expected rows of at most {model.max_length} tokens, the positions the "
            f"encoder has, got {longest}"
        )


def fingerprint(data: Dataset) -> str:
    """What tells the rows of a data set, their order included, from any other."""
    digest = hashlib.sha256()
    for rows in data.select_columns(["input_ids", "labels"]).iter(1000):
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()
