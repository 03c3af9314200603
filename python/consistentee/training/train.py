"""Training in the phases of ConsistentEE (arXiv 2312.11882).

1. ``trunk``: trunk and classifiers, on the depth-weighted loss of all layers. After it (1b) the
   Memorized Layer of each training row is computed.
2. ``policies``: policies alone, on the expected reward.
3. ``joint``: trunk and classifiers, each classifier on the rows that leave at it. Policies are
   trained along only in a run without held-out rows. 2 and 3 may alternate.

Policies learn from rows that the classifiers were not trained on. On its training rows a classifier
is nearly always right, and a policy would learn to leave at once. So a run trains more than one
trunk: the model's own on all rows, and a second one without a share of the rows or, with
cross-fitting, one without each fold. Policies learn from the outputs of these other trunks on the
rows that they were not trained on. The states of two trunks differ approximately by an affine map;
it is fitted, and the states are mapped to those of the model's trunk
(`consistentee.training.alignment`). Classifiers are calibrated on the same rows before phase 2: the
deeper the layer, the more overconfident it is, and overconfident wrong answers make leaving early
look better than it is.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, cast

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase, set_seed

from consistentee.atomic_files import Json
from consistentee.data.fingerprint import HASHED, fingerprint
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training.consistent_weights import ConsistentWeights
from consistentee.training.distributed import processes
from consistentee.training.phases import Phases
from consistentee.training.run_folder import RunFolder
from consistentee.training.settings import ConfigFields, TrainingSettings
from consistentee.training.trunks import plan_trunks
from consistentee_ext.names import REGRESSION

if TYPE_CHECKING:
    from typing_extensions import Unpack

# With 1,200 rows to learn from (M-CID) or more, policies that read states too are better than
# policies that read predictions alone; with 450 to 500 (the demo, RTE) they are one to three points
# worse.
MIN_STATE_ROWS = 1000
# Fields of the configuration that only matter to policies.
POLICY_FIELDS = ("policy_input", "policy_size", "alpha", "alpha_range", "threshold")
TRUNK_SETTINGS = (
    "batch_size",
    "learning_rate",
    "head_factor",
    "distillation",
    "seed",
    "bf16",
)


def train(
    backbone: str | os.PathLike[str],
    train_data: Dataset,
    dev_data: Dataset,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings | None = None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train a ConsistentEE classifier. Called again after a kill, resume from the last checkpoint.

    Args:
        backbone: a pretrained encoder: a Hugging Face folder or hub name, safetensors weights.
        train_data: columns ``input_ids``, ``attention_mask``, ``token_type_ids`` where the encoder
            has segments, ``labels`` (0..C-1; in regression floating numbers; of sets C numbers, 1.0
            or 0.0), and ``length`` in tokens; see `consistentee.data.encode.encode`.
        dev_data: like `train_data`; measured after each phase, never trained on.
        output: the folder to make: config.json, model.safetensors, the tokenizer and
            training_log.json. It appears at the end, complete; until then checkpoints and results
            are in ``<output>.partial``.
        tokenizer: the backbone's.
        settings: how to train.
        config: fields of `ConsistentEEConfig`, such as ``id2label``, ``pooling``, ``policy_input``
            or ``alpha``. Without ``policy_input`` policies read ``"both"`` where they have
            `MIN_STATE_ROWS` to learn from, else ``"prediction"``.

    Returns:
        The content of training_log.json: ``run``, all that determines the result, and ``phases``:
        for each phase its seconds, its losses and `exit_report` on `dev_data`.

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
    objective: ConsistentWeights | None = None,
    **config: Unpack[ConfigFields],
) -> Json:
    """Train a trunk without policies, for exits that need none.

    It is trained on all rows, for as many epochs as phases 1 and 3 have together. Result and errors
    are those of `train`.

    Args:
        backbone: as in `train`.
        train_data: as in `train`.
        dev_data: as in `train`.
        output: as in `train`.
        tokenizer: as in `train`.
        settings: as in `train`; those of policies have no effect.
        num_layers: None trains the classifiers of all layers, as phase 1 does; a number keeps only
            the first layers and trains the last classifier of these (truncation).
        objective: of the classifiers, in place of phase 1's.
        config: as in `train`.
    """
    epochs = settings.epochs + settings.iterations * settings.joint_epochs
    # Settings that only affect policies must not distinguish two such runs.
    identity: Json = {name: getattr(settings, name) for name in TRUNK_SETTINGS}
    identity |= {"epochs": epochs, "objective": objective and asdict(objective)}
    phases = open_run(
        backbone, train_data, dev_data, output, tokenizer, settings, identity, config, num_layers
    )
    loss = phases.losses.trunk if num_layers is None else phases.losses.last_layer
    if objective is not None:
        loss = objective
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
    """Check the arguments; build the initial model and open the run's folder.

    The arguments are those of `train`. `identity_of_settings` has the settings that affect the
    result.
    """
    trunks = plan_trunks(train_data["labels"], settings.held_out, settings.folds, settings.seed)
    if config.get("num_labels") == 1 and config.get("problem_type") != REGRESSION:
        raise ValueError("num_labels: expected at least 2 classes, got 1")
    if config.get("problem_type") == REGRESSION:
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
        "train_data": fingerprint(train_data, HASHED),
        "dev_data": fingerprint(dev_data, HASHED),
    }
    with processes().main_process_first():
        run = RunFolder(output, identity)
    return Phases(run, model, train_data, trunks, dev_data, tokenizer, settings)


def without_policies(config: ConfigFields) -> ConfigFields:
    """The configuration of a model whose policies are never trained: without their fields.

    Its policies read predictions, where they can, because these are the smallest.
    """
    kept = {name: value for name, value in config.items() if name not in POLICY_FIELDS}
    if config.get("problem_type") != REGRESSION:
        kept["policy_input"] = "prediction"
    return cast(ConfigFields, kept)


def _start(
    backbone: str | os.PathLike[str], num_layers: int | None, config: ConfigFields, seed: int
) -> ConsistentEEForSequenceClassification:
    """The model before training.

    The weights of trunk and classifiers depend on the seed but not on the policies, so that
    different exits can be compared on the same trunk.
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
            raise ValueError(f"{name}: expected finite numbers as labels, got NaN or infinity")
    elif model.config.multi_label:
        if labels.shape != (len(data), classes) or not np.isin(labels, (0, 1)).all():
            raise ValueError(
                f"{name}: expected {classes} numbers 0 or 1 as the labels of a row, got numbers in "
                f"{labels.min()}..{labels.max()} of shape {labels.shape}"
            )
    elif labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    longest = max(data["length"])
    if longest > model.max_length:
        raise ValueError(
            f"{name}: expected rows of at most {model.max_length} tokens, the encoder's number of "
            f"positions, got {longest}"
        )
