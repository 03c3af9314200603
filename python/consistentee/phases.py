"""The phases of one training run, each resumed or loaded where an earlier start left it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from safetensors.torch import load_model
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from consistentee.exit_states import exit_outputs, exit_report
from consistentee.hardness import correct_layers, memorized_layer, oracle_layer
from consistentee.losses import Loss, Losses
from consistentee.memorized import row_hashes, save_memorized_layers
from consistentee.modeling import ConsistentEEForSequenceClassification, PolicyNetwork
from consistentee.run_folder import Json, RunFolder, read_log
from consistentee.settings import TrainingSettings
from consistentee.splits import BoolArray
from consistentee.temperature import best_temperatures, cool
from consistentee.trainer import PhaseTrainer

HARDNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardness": memorized_layer,
    "oracle": oracle_layer,
}


@dataclass(frozen=True)
class Unseen:
    """Rows that policies learn from, as a trunk that had not seen them reads them.

    ``rows [M]``, ascending, index the training data; ``states [M, L, H]``; ``exit_logits
    [M, L, C]``.
    """

    rows: NDArray[np.intp]
    states: Tensor
    exit_logits: Tensor


class Phases:
    """The phases of one run; each starts from the weights that the one before left in the model.

    ``unseen_rows`` are what policies learn from: one choice of rows, or the folds.
    """

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForSequenceClassification,
        train_data: Dataset,
        unseen_rows: Sequence[BoolArray],
        dev_data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainingSettings,
    ) -> None:
        self.run = run
        self.model = model
        self.train_data = train_data
        self.unseen_rows = unseen_rows
        self.dev_data = dev_data
        self.tokenizer = tokenizer
        self.settings = settings
        self.collate = DataCollatorWithPadding(tokenizer)
        self.labels = torch.tensor(train_data["labels"])
        self.memorized: dict[int, int] = {}
        config = model.config
        self.losses = Losses(
            settings.build_estimator(), config.alpha, config.label_std, settings.spread
        )
        self.logs: dict[str, Json] = {}

    def run_all(self) -> Json:
        """The three phases."""
        unseen = self.cross_fit() if self.settings.folds else self.hold_out()
        correct = self.correct(unseen)
        self.memorized = _by_hash(row_hashes(self.train_data), memorized_layer(correct))
        for iteration in range(1, self.settings.iterations + 1):
            number = "" if iteration == 1 else f".{iteration}"
            self.train_policies(f"policies{number}", unseen, correct)
            self.train_jointly(f"joint{number}", unseen, correct)
            if iteration < self.settings.iterations and not self.settings.folds:
                unseen = self.look_at(unseen.rows)
        return self.finish()

    def run_trunk(self, loss: Loss, epochs: int) -> Json:
        """Phase 1 alone, on all rows."""
        self.train_trunk("trunk", np.ones(len(self.labels), dtype=bool), loss, epochs)
        return self.finish()

    def finish(self) -> Json:
        self.run.finish(self.save, {"phases": self.logs})
        return {"run": self.run.identity, "phases": self.logs}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.memorized:
            save_memorized_layers(folder, self.memorized)

    def hold_out(self) -> Unseen:
        """Phase 1 on the other rows; on all rows where none are held out."""
        (held_out,) = self.unseen_rows
        if not self.settings.held_out:
            self.train_trunk("trunk", held_out)
            return self.look_at(np.flatnonzero(held_out))
        self.train_trunk("trunk", ~held_out)
        return self.calibrate(self.look_at(np.flatnonzero(held_out)))

    def cross_fit(self) -> Unseen:
        """Phase 1 once for each fold, on the others, then on all rows; all from the same start."""
        folds = self.unseen_rows
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
            Unseen(
                np.sort(rows),
                torch.cat([part.states for part in parts])[order],
                torch.cat([part.exit_logits for part in parts])[order],
            )
        )

    def look_at(self, rows: NDArray[np.intp]) -> Unseen:
        output = exit_outputs(self.model, self.train_data.select(rows), self.collate)
        return Unseen(rows, output.states, output.exit_logits)

    def calibrate(self, unseen: Unseen) -> Unseen:
        """Give each classifier the temperature that suits rows it has not seen."""
        if self.model.config.regression:
            return unseen
        temperatures = best_temperatures(unseen.exit_logits, self.labels[unseen.rows])
        cool(self.model.heads, temperatures)
        return Unseen(unseen.rows, unseen.states, unseen.exit_logits / temperatures[:, None])

    def correct(self, unseen: Unseen) -> Tensor:
        """Where each layer answers each training row right, unseen where it can be: ``[N, L]``."""
        others = np.setdiff1d(np.arange(len(self.labels)), unseen.rows)
        exit_logits = torch.empty(len(self.labels), *unseen.exit_logits.shape[1:])
        exit_logits[unseen.rows] = unseen.exit_logits
        if len(others):
            exit_logits[others] = self.look_at(others).exit_logits
        return correct_layers(exit_logits, self.labels, self.model.config.label_std)

    def train_trunk(
        self, name: str, rows: BoolArray, loss: Loss | None = None, epochs: int | None = None
    ) -> None:
        settings = self.settings
        self.move(trunk=True, policies=False)
        self.phase(
            name,
            self.model,
            loss=loss or self.losses.trunk,
            train_dataset=self.train_data.select(np.flatnonzero(rows)),
            data_collator=self.collate,
            epochs=epochs or settings.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.learning_rate * settings.head_factor,
        )

    def train_policies(self, name: str, unseen: Unseen, correct: Tensor) -> None:
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

    def train_jointly(self, name: str, unseen: Unseen, correct: Tensor) -> None:
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
            batch_size=settings.joint_batch_size,
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
            self.logs[name] = read_log(result)
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
        self.logs[name] = {
            "seconds": round(seconds, 1),
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "dev": exit_report(output, torch.tensor(self.dev_data["labels"]), self.model.config),
        }
        self.run.complete(name, self.model.save_pretrained, self.logs[name])


def _by_hash(hashes: list[int], layers: Tensor) -> dict[int, int]:
    """Rows that are alike count as the hardest of them, as different folds may say otherwise."""
    found: dict[int, int] = {}
    for row, layer in zip(hashes, layers.tolist(), strict=True):
        found[row] = max(layer, found.get(row, 0))
    return found
