"""Training in the phases of ConsistentEE (arXiv 2312.11882).

1. ``trunk``: trunk and classifiers, on the depth-weighted loss of all layers; then (1b) the
   Memorized Layer of each training row.
2. ``policies``: policies alone, on the expected reward.
3. ``joint``: all together, each classifier on the rows that leave at it. 2 and 3 may alternate.

Policies learn from rows that the classifiers they judge have not seen. On rows it was trained on a
classifier is nearly always right, and a policy would learn to leave at once. Either a share of the
rows is held out of phase 1, or (cross-fitting) each fold is held out of a trunk of its own. For the
same reason classifiers are calibrated on those rows before phase 2: the deeper the layer, the more
it exaggerates, and a wrong answer given with too much confidence makes leaving early look better
than it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import (
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
    default_data_collator,
    set_seed,
)

from consistentee.exit_states import exit_outputs, exit_report
from consistentee.hardness import correct_layers, memorized_layer, oracle_layer
from consistentee.losses import Losses
from consistentee.memorized import row_hashes, save_memorized_layers
from consistentee.modeling import ConsistentEEForSequenceClassification, PolicyNetwork
from consistentee.run_folder import Json, RunFolder, read_log
from consistentee.settings import TrainingSettings
from consistentee.splits import fold_rows, held_out_rows
from consistentee.temperature import best_temperatures, cool
from consistentee.trainer import PhaseTrainer

HARDNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardness": memorized_layer,
    "oracle": oracle_layer,
}


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
            has segments, ``labels``, in 0..C-1 or, in regression, floating numbers, and ``length``
            in tokens, as `consistentee.data.encode` gives.
        dev_data: like `train_data`; measured after each phase, never trained on.
        output: the folder to make; it appears whole, at the end: config.json, model.safetensors,
            the tokenizer, memorized_layers.safetensors and training_log.json. Until then the work
            is in ``<output>.partial``.
        tokenizer: the backbone's.
        settings: how to train.
        config: fields of `ConsistentEEConfig`, such as ``id2label``, ``pooling``, ``policy_input``
            or ``alpha``.

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
    set_seed(settings.seed)
    if config.get("problem_type") == "regression":
        config["label_std"] = float(np.std(train_data["labels"]))
    model = ConsistentEEForSequenceClassification.from_backbone(backbone, **config)
    _check_data("train_data", train_data, model)
    _check_data("dev_data", dev_data, model)
    identity = {
        "backbone": str(backbone),
        "config": config,
        "settings": asdict(settings),
        "train_data": _fingerprint(train_data),
        "dev_data": _fingerprint(dev_data),
    }
    unseen = _unseen_rows(train_data["labels"], settings)
    with PartialState().main_process_first():
        run = RunFolder(output, identity)
        log = run.log()
    training = _Training(run, model, train_data, dev_data, tokenizer, settings)
    return log or training.train(unseen)


def _unseen_rows(labels: list[Any], settings: TrainingSettings) -> list[NDArray[np.bool_]]:
    """The rows to hold out of a trunk: each fold of one of its own, or one share of the one."""
    if settings.folds:
        return fold_rows(labels, settings.folds, settings.seed)
    return [held_out_rows(labels, settings.held_out, settings.seed)]


@dataclass(frozen=True)
class _Unseen:
    """Rows that policies learn from, as a trunk that had not seen them reads them.

    ``rows [M]``, ascending, index the training data; ``states [M, L, H]``; ``exit_logits
    [M, L, C]``.
    """

    rows: NDArray[np.intp]
    states: Tensor
    exit_logits: Tensor


class _Training:
    """The phases of one run; each starts from the weights that the one before left in the model."""

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForSequenceClassification,
        train_data: Dataset,
        dev_data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainingSettings,
    ) -> None:
        self.run = run
        self.model = model
        self.train_data = train_data
        self.dev_data = dev_data
        self.tokenizer = tokenizer
        self.settings = settings
        self.collate = DataCollatorWithPadding(tokenizer)
        self.labels = torch.tensor(train_data["labels"])
        config = model.config
        self.losses = Losses(settings.build_estimator(), config.alpha, config.label_std)
        self.phases: dict[str, Json] = {}

    def train(self, unseen_rows: list[NDArray[np.bool_]]) -> Json:
        unseen = self.cross_fit(unseen_rows) if self.settings.folds else self.hold_out(*unseen_rows)
        correct = self.correct(unseen)
        self.memorized = _by_hash(row_hashes(self.train_data), memorized_layer(correct))
        for iteration in range(1, self.settings.iterations + 1):
            number = "" if iteration == 1 else f".{iteration}"
            self.train_policies(f"policies{number}", unseen, correct)
            self.train_jointly(f"joint{number}", unseen, correct)
            if iteration < self.settings.iterations and not self.settings.folds:
                unseen = self.look_at(unseen.rows)
        self.run.finish(self.save, {"phases": self.phases})
        return {"run": self.run.identity, "phases": self.phases}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        save_memorized_layers(folder, self.memorized)

    def hold_out(self, held_out: NDArray[np.bool_]) -> _Unseen:
        """Phase 1 on the other rows."""
        self.train_trunk("trunk", ~held_out)
        return self.calibrate(self.look_at(np.flatnonzero(held_out)))

    def cross_fit(self, folds: list[NDArray[np.bool_]]) -> _Unseen:
        """Phase 1 once for each fold, on the others, then on all rows; all from the same start."""
        start = {name: value.clone() for name, value in self.model.state_dict().items()}
        parts = []
        for number, fold in enumerate(folds, start=1):
            self.train_trunk(f"trunk.{number}of{len(folds)}", ~fold)
            parts.append(self.look_at(np.flatnonzero(fold)))
            self.model.load_state_dict(start)
        self.train_trunk("trunk", np.ones(len(self.labels), dtype=bool))
        rows = np.concatenate([part.rows for part in parts])
        order = torch.from_numpy(np.argsort(rows))
        return self.calibrate(
            _Unseen(
                np.sort(rows),
                torch.cat([part.states for part in parts])[order],
                torch.cat([part.exit_logits for part in parts])[order],
            )
        )

    def look_at(self, rows: NDArray[np.intp]) -> _Unseen:
        output = exit_outputs(self.model, self.train_data.select(rows), self.collate)
        return _Unseen(rows, output.states, output.exit_logits)

    def calibrate(self, unseen: _Unseen) -> _Unseen:
        """Give each classifier the temperature that suits rows it has not seen."""
        if self.model.config.regression:
            return unseen
        temperatures = best_temperatures(unseen.exit_logits, self.labels[unseen.rows])
        cool(self.model.heads, temperatures)
        return _Unseen(unseen.rows, unseen.states, unseen.exit_logits / temperatures[:, None])

    def correct(self, unseen: _Unseen) -> Tensor:
        """Where each layer answers each training row right, unseen where it can be: ``[N, L]``."""
        others = np.setdiff1d(np.arange(len(self.labels)), unseen.rows)
        exit_logits = torch.empty(len(self.labels), *unseen.exit_logits.shape[1:])
        exit_logits[unseen.rows] = unseen.exit_logits
        if len(others):
            exit_logits[others] = self.look_at(others).exit_logits
        return correct_layers(exit_logits, self.labels, self.model.config.label_std)

    def train_trunk(self, name: str, rows: NDArray[np.bool_]) -> None:
        settings = self.settings
        self.move(trunk=True, policies=False)
        self.phase(
            name,
            self.model,
            loss=self.losses.trunk,
            train_dataset=self.train_data.select(np.flatnonzero(rows)),
            data_collator=self.collate,
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.learning_rate * settings.head_factor,
        )

    def train_policies(self, name: str, unseen: _Unseen, correct: Tensor) -> None:
        """Nothing but policies moves: the trunk has run over their rows once and for all."""
        columns: dict[str, Any] = {
            "states": unseen.states,
            "exit_logits": unseen.exit_logits,
            "labels": self.labels[unseen.rows],
        }
        hardness = self.hardness(correct)
        if hardness is not None:
            columns["hardness"] = hardness[unseen.rows]
        self.move(trunk=False, policies=True)
        self.phase(
            name,
            PolicyNetwork(self.model),
            loss=self.losses.policies,
            train_dataset=StackDataset(**columns),
            data_collator=default_data_collator,
            epochs=self.settings.policy_epochs,
            batch_size=self.settings.policy_batch_size,
            head_learning_rate=self.settings.policy_learning_rate,
            alpha_range=self.model.config.alpha_range,
            dropout=False,
            checkpoint=False,
        )

    def train_jointly(self, name: str, unseen: _Unseen, correct: Tensor) -> None:
        """All rows train classifiers; policies learn from those that phase 1 did not see.

        After cross-fitting there are none: the policies stay as they are.
        """
        settings = self.settings
        self.move(trunk=True, policies=not settings.folds)
        held_out = np.zeros(len(self.labels), dtype=bool)
        if not settings.folds:
            held_out[unseen.rows] = True
        data = self.train_data.add_column("held_out", held_out)
        hardness = self.hardness(correct)
        if hardness is not None:
            data = data.add_column("hardness", hardness.numpy())
        self.phase(
            name,
            self.model,
            loss=self.losses.joint,
            train_dataset=data,
            data_collator=self.collate,
            epochs=settings.joint_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.joint_learning_rate,
            head_learning_rate=settings.joint_learning_rate * settings.head_factor,
            alpha_range=self.model.config.alpha_range,
        )

    def move(self, *, trunk: bool, policies: bool) -> None:
        """Which parameters the next phase trains: trunk and classifiers, policies."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = policies if ".policy." in name else trunk

    def hardness(self, correct: Tensor) -> Tensor | None:
        measure = HARDNESS.get(self.settings.reward)
        return None if measure is None else measure(correct)

    def phase(self, name: str, module: nn.Module, **options: Any) -> None:
        """Run a phase, or what a kill left of it, or load its result."""
        result = self.run.result(name)
        if result is not None:
            load_model(self.model, result / "model.safetensors")
            self.phases[name] = read_log(result)
            return
        start = time.perf_counter()
        trainer = PhaseTrainer(
            phase=name,
            model=module,
            output_dir=self.run.checkpoints(name),
            seed=self.settings.seed,
            bf16=self.settings.bf16,
            **options,
        )
        trainer.train(resume_from_checkpoint=self.run.last_checkpoint(name))
        seconds = time.perf_counter() - start
        output = exit_outputs(self.model, self.dev_data, self.collate)
        self.phases[name] = {
            "seconds": round(seconds, 1),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "dev": exit_report(output, torch.tensor(self.dev_data["labels"]), self.model.config),
        }
        self.run.complete(name, self.model.save_pretrained, self.phases[name])


def _by_hash(hashes: list[int], layers: Tensor) -> dict[int, int]:
    """Rows that are alike count as the hardest of them, as different folds may say otherwise."""
    found: dict[int, int] = {}
    for row, layer in zip(hashes, layers.tolist(), strict=True):
        found[row] = max(layer, found.get(row, 0))
    return found


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


def _fingerprint(data: Dataset) -> str:
    digest = hashlib.sha256()
    for rows in data.select_columns(["input_ids", "labels"]).iter(1000):
        digest.update(json.dumps(rows).encode())
    return digest.hexdigest()
