"""Training in the phases of ConsistentEE (arXiv 2312.11882).

1. ``trunk``: trunk and classifiers, on the depth-weighted cross-entropy of all layers.
2. ``policies``: policies alone, on the exact objective.
3. ``joint``: all together, each classifier on the rows that leave at it.

Phases 2 and 3 learn from rows held out of phase 1. On rows it was trained on a classifier is nearly
always right, and a policy would learn to leave at once. For the same reason classifiers are
calibrated on the held-out rows before phase 2: the deeper the layer, the more it exaggerates, and a
wrong answer given with too much confidence makes leaving early look better than it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import Tensor
from torch.utils.data import StackDataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    default_data_collator,
    set_seed,
)

from consistentee.calibration import best_temperatures, cool
from consistentee.exit_states import exit_report, pooled_states
from consistentee.hardness import memorized_layer
from consistentee.modeling import ConsistentEEForSequenceClassification
from consistentee.phases import PhaseTrainer, joint_loss, policy_loss, trunk_loss
from consistentee.run_folder import Json, RunFolder, read_log
from consistentee.settings import TrainingSettings

BoolArray = NDArray[np.bool_]


def train(
    backbone: str | os.PathLike[str],
    train_data: Dataset,
    dev_data: Dataset,
    output: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    settings: TrainingSettings | None = None,
    **config: Any,
) -> Json:
    """Train a ConsistentEE classifier; called again after a kill, go on from the last checkpoint.

    Args:
        backbone: a pretrained encoder: a Hugging Face folder or hub name, safetensors weights.
        train_data: columns ``input_ids``, ``attention_mask``, ``token_type_ids`` where the encoder
            has segments, ``labels`` in 0..C-1 and ``length`` in tokens, as
            `consistentee.data.encode` gives.
        dev_data: like `train_data`; measured after each phase, never trained on.
        output: the folder to make; it appears whole, at the end: config.json, model.safetensors,
            the tokenizer and training_log.json. Until then the work is in ``<output>.partial``.
        tokenizer: the backbone's.
        settings: how to train.
        config: fields of `ConsistentEEConfig`, such as ``id2label``, ``pooling``, ``policy_input``
            or ``alpha``.

    Returns:
        training_log.json: ``run``, what determines the result, and ``phases``: of each its seconds,
        its losses and what `exit_report` says of `dev_data`.

    Raises:
        ValueError: a setting, field or label outside its range, a row above the encoder's position
            limit, too few rows, or an output that cannot be written or holds something else.
    """
    settings = settings or TrainingSettings()
    set_seed(settings.seed)
    model = ConsistentEEForSequenceClassification.from_backbone(backbone, **config)
    _check_data("train_data", train_data, model)
    _check_data("dev_data", dev_data, model)
    held_out = held_out_rows(train_data["labels"], settings.held_out, settings.seed)
    identity = {
        "backbone": str(backbone),
        "config": config,
        "settings": asdict(settings),
        "train_data": _fingerprint(train_data),
        "dev_data": _fingerprint(dev_data),
    }
    run = RunFolder(output, identity)
    training = _Training(run, model, train_data, held_out, dev_data, tokenizer, settings)
    return run.log() or training.train()


def held_out_rows(labels: Sequence[int], share: float, seed: int) -> BoolArray:
    """A random choice of rows, the same share of each class: a boolean ``[N]``.

    Raises:
        ValueError: it would hold out no row, or every row of a class.
    """
    classes = np.asarray(labels)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(classes), dtype=bool)
    for label in np.unique(classes):
        rows = generator.permutation(np.flatnonzero(classes == label))
        count = round(share * len(rows))
        if count == len(rows):
            raise ValueError(
                f"held_out: a share of {share} leaves no row of class {label} to train"
            )
        chosen[rows[:count]] = True
    if not chosen.any():
        raise ValueError(f"train_data: {len(classes)} rows are too few to hold out {share} of them")
    return chosen


class _Training:
    """The phases of one run; each starts from the weights that the one before left in the model."""

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForSequenceClassification,
        train_data: Dataset,
        held_out: BoolArray,
        dev_data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainingSettings,
    ) -> None:
        self.run = run
        self.model = model
        self.train_data = train_data
        self.held_out = held_out
        self.dev_data = dev_data
        self.tokenizer = tokenizer
        self.settings = settings
        self.collate = DataCollatorWithPadding(tokenizer)

    def train(self) -> Json:
        phases = {"trunk": self.trunk()}
        held_out = self.train_data.select(np.flatnonzero(self.held_out))
        states = pooled_states(self.model, held_out, self.collate).cpu()
        labels = torch.tensor(held_out["labels"])
        with torch.no_grad():
            exit_logits = self.model(pooled_states=states.to(self.model.device)).exit_logits.cpu()
        cool(self.model.heads, best_temperatures(exit_logits, labels))
        memorized = memorized_layer(exit_logits, labels)
        phases["policies"] = self.policies(states, labels, memorized)
        phases["joint"] = self.joint(held_out, memorized)
        self.run.finish(self.save, {"phases": phases})
        return {"run": self.run.identity, "phases": phases}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def trunk(self) -> Json:
        settings = self.settings
        return self.phase(
            "trunk",
            loss=trunk_loss,
            train_dataset=self.train_data.select(np.flatnonzero(~self.held_out)),
            data_collator=self.collate,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.learning_rate * settings.head_factor,
        )

    def policies(self, states: Tensor, labels: Tensor, memorized: Tensor) -> Json:
        """Nothing but policies moves: the trunk has run over the held-out rows once and for all."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = ".policy." in name
        rows: Json = {"pooled_states": states, "labels": labels, "memorized_layer": memorized}
        log = self.phase(
            "policies",
            loss=partial(policy_loss, alpha=self.model.config.alpha),
            train_dataset=StackDataset(**rows),
            data_collator=default_data_collator,
            epochs=self.settings.policy_epochs,
            batch_size=self.settings.policy_batch_size,
            head_learning_rate=self.settings.policy_learning_rate,
            dropout=False,
            checkpoint=False,
        )
        self.model.requires_grad_(True)
        return log

    def joint(self, held_out: Dataset, memorized: Tensor) -> Json:
        settings = self.settings
        return self.phase(
            "joint",
            loss=partial(joint_loss, alpha=self.model.config.alpha),
            train_dataset=held_out.add_column("memorized_layer", memorized.tolist()),
            data_collator=self.collate,
            epochs=settings.joint_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.joint_learning_rate,
            head_learning_rate=settings.joint_learning_rate * settings.head_factor,
        )

    def phase(self, name: str, **options: Any) -> Json:
        """Run a phase, or what a kill left of it, or load its result; returns its log."""
        result = self.run.result(name)
        if result is not None:
            load_model(self.model, result / "model.safetensors")
            return read_log(result)
        start = time.perf_counter()
        trainer = PhaseTrainer(
            model=self.model,
            output_dir=self.run.checkpoints(name),
            seed=self.settings.seed,
            bf16=self.settings.bf16,
            **options,
        )
        trainer.train(resume_from_checkpoint=self.run.last_checkpoint(name))
        states = pooled_states(self.model, self.dev_data, self.collate)
        labels = torch.tensor(self.dev_data["labels"])
        log = {
            "seconds": round(time.perf_counter() - start, 1),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "dev": exit_report(self.model, states, labels),
        }
        self.run.complete(name, self.model.save_pretrained, log)
        return log


def _check_data(name: str, data: Dataset, model: ConsistentEEForSequenceClassification) -> None:
    if len(data) == 0:
        raise ValueError(f"{name}: expected at least one row, got none")
    labels = np.asarray(data["labels"])
    classes = model.num_labels
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(
            f"{name}: expected labels in 0..{classes - 1}, got {labels.min()}..{labels.max()}"
        )
    longest = max(data["length"])
    if longest > model.max_length:
        raise ValueError(
            f"{name}: expected rows of at most {model.max_length} tokens, the positions the "
            f"encoder has, got {longest}"
        )


def _fingerprint(data: Dataset) -> str:
    digest = hashlib.sha256()
    for rows in data.select_columns(["input_ids", "labels"]).iter(1000):
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()
