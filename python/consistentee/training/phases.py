"""The phases of one training run, each resumed or loaded where an earlier start left it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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

from consistentee.measures.hardness import correct_layers, memorized_layer, oracle_layer
from consistentee.measures.layer_outputs import exit_outputs, exit_report
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.model.policies import PolicyNetwork
from consistentee.training.alignment import fit_alignment
from consistentee.training.held_out import BoolArray
from consistentee.training.losses import Loss, Losses
from consistentee.training.memorized import row_hashes, save_memorized_layers
from consistentee.training.run_folder import Json, RunFolder, read_log
from consistentee.training.settings import TrainingSettings
from consistentee.training.temperature import best_temperatures, cool
from consistentee.training.trainer import PhaseTrainer

HARDNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardness": memorized_layer,
    "oracle": oracle_layer,
}
MAX_ALIGNMENT_ROWS = 8192  # plenty for H x H numbers, and states [N, L, H] must fit in memory


@dataclass(frozen=True)
class Unseen:
    """Rows that policies learn from, as a trunk that had not seen them reads them.

    ``rows [M]``, ascending, index the training data; ``states [M, L, H]``, where policies read them
    in the terms of the model's trunk; ``exit_logits [M, L, C]``.
    """

    rows: NDArray[np.intp]
    states: Tensor
    exit_logits: Tensor


@dataclass(frozen=True)
class Trunk:
    """One of the trunks of a run: ``seen [N]`` marks the rows it learns from, ``unseen [N]`` those
    it says policies something about; the suffix is that of its phases.
    """

    name: str
    seen: BoolArray
    unseen: BoolArray

    @property
    def suffix(self) -> str:
        return f".{self.name}" if self.name else ""


class Phases:
    """The phases of one run; each goes on from the weights its trunk and the policies had.

    `trunks` train side by side from the same start; the last one is the model's.
    """

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForSequenceClassification,
        train_data: Dataset,
        trunks: Sequence[Trunk],
        dev_data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: TrainingSettings,
    ) -> None:
        self.run = run
        self.model = model
        self.train_data = train_data
        self.trunks = trunks
        self.cross_fitted = len(trunks) > 1
        self.dev_data = dev_data
        self.tokenizer = tokenizer
        self.settings = settings
        self.collate = DataCollatorWithPadding(tokenizer)
        self.labels = torch.tensor(train_data["labels"])
        self.memorized: dict[int, int] = {}
        config = model.config
        self.losses = Losses(
            settings.build_estimator(),
            config.alpha,
            config.label_std,
            settings.spread,
            settings.entropy_bonus,
        )
        self.logs: dict[str, Json] = {}
        self.learnt = {trunk.name: self.trunk_weights() for trunk in trunks}

    def run_all(self) -> Json:
        """The three phases, 2 and 3 as often as asked; where policies could not move along in
        phase 3, they learn once more what the classifiers are like in the end.
        """
        settings = self.settings
        for trunk in self.trunks:
            self.train_trunk(trunk, self.losses.trunk, settings.epochs)
        unseen = self.read_unseen()
        correct = self.correct(unseen)
        self.memorized = _by_hash(row_hashes(self.train_data), memorized_layer(correct))
        for iteration in range(1, settings.iterations + 1):
            if iteration > 1:
                unseen = self.read_unseen()
            self.train_policies(_numbered("policies", iteration), unseen, correct)
            if settings.joint_epochs:
                for trunk in self.trunks:
                    self.train_jointly(_numbered("joint", iteration), trunk, correct)
        if self.cross_fitted and settings.joint_epochs:
            last = _numbered("policies", settings.iterations + 1)
            self.train_policies(last, self.read_unseen(), correct)
        return self.finish()

    def run_trunk(self, loss: Loss, epochs: int) -> Json:
        """Phase 1 alone, on all rows."""
        self.train_trunk(self.trunks[-1], loss, epochs)
        return self.finish()

    def finish(self) -> Json:
        self.run.finish(self.save, {"phases": self.logs})
        return {"run": self.run.identity, "phases": self.logs}

    def save(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        if self.memorized:
            save_memorized_layers(folder, self.memorized)

    def read_unseen(self) -> Unseen:
        """What each trunk makes of the rows that policies learn from, classifiers calibrated.

        Leaves the model with the weights of the last trunk, which all rows have trained.
        """
        *others, model_trunk = self.trunks
        frame = None
        if others and self.model.config.policy_input != "prediction":
            self.use(model_trunk)
            frame = self.look_at(_evenly(np.flatnonzero(model_trunk.seen), MAX_ALIGNMENT_ROWS))
        parts = [self.look_through(trunk, frame) for trunk in others]
        self.use(model_trunk)
        if model_trunk.unseen.any():
            parts.append(self.look_at(np.flatnonzero(model_trunk.unseen)))
        rows = np.concatenate([part.rows for part in parts])
        order = torch.from_numpy(np.argsort(rows))
        unseen = Unseen(
            rows[order.numpy()],
            torch.cat([part.states for part in parts])[order],
            torch.cat([part.exit_logits for part in parts])[order],
        )
        return self.calibrate(unseen) if self.cross_fitted else unseen

    def look_through(self, trunk: Trunk, frame: Unseen | None) -> Unseen:
        """What a trunk makes of the rows it misses, the states in the terms of the model's trunk.

        These terms are found in `frame`, what the model's trunk makes of rows it has seen, on those
        that this trunk has seen too: on others the two differ by what having seen them does, and
        that is what policies must not learn. Without a frame states stay as they are.
        """
        self.use(trunk)
        unseen = self.look_at(np.flatnonzero(trunk.unseen))
        if frame is None:
            return unseen
        shared = trunk.seen[frame.rows]
        states = self.look_at(frame.rows[shared]).states
        alignment = fit_alignment(states, frame.states[shared])
        return replace(unseen, states=alignment(unseen.states))

    def look_at(self, rows: NDArray[np.intp]) -> Unseen:
        output = exit_outputs(self.model, self.train_data.select(rows), self.collate)
        return Unseen(rows, output.states, output.exit_logits)

    def calibrate(self, unseen: Unseen) -> Unseen:
        """Give the classifiers of all trunks the temperatures that suit rows they have not seen."""
        if self.model.config.regression:
            return unseen
        temperatures = best_temperatures(unseen.exit_logits, self.labels[unseen.rows])
        for trunk in self.trunks:
            self.use(trunk)
            cool(self.model.heads, temperatures)
            self.keep(trunk)
        return Unseen(unseen.rows, unseen.states, unseen.exit_logits / temperatures[:, None])

    def use(self, trunk: Trunk) -> None:
        """Load what a trunk has learnt so far; policies are the same for all."""
        self.model.load_state_dict(self.learnt[trunk.name], strict=False)

    def keep(self, trunk: Trunk) -> None:
        self.learnt[trunk.name] = self.trunk_weights()

    def trunk_weights(self) -> dict[str, Tensor]:
        weights = self.model.state_dict()
        return {name: value.clone() for name, value in weights.items() if ".policy." not in name}

    def correct(self, unseen: Unseen) -> Tensor:
        """Where each layer answers each training row right, unseen where it can be: ``[N, L]``."""
        others = np.setdiff1d(np.arange(len(self.labels)), unseen.rows)
        exit_logits = torch.empty(len(self.labels), *unseen.exit_logits.shape[1:])
        exit_logits[unseen.rows] = unseen.exit_logits
        if len(others):
            exit_logits[others] = self.look_at(others).exit_logits
        return correct_layers(exit_logits, self.labels, self.model.config.label_std)

    def train_trunk(self, trunk: Trunk, loss: Loss, epochs: int) -> None:
        settings = self.settings
        self.use(trunk)
        self.move(trunk=True, policies=False)
        self.phase(
            f"trunk{trunk.suffix}",
            self.model,
            loss=loss,
            train_dataset=self.train_data.select(np.flatnonzero(trunk.seen)),
            data_collator=self.collate,
            epochs=epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            head_learning_rate=settings.learning_rate * settings.head_factor,
        )
        self.keep(trunk)

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
            policies_alone=True,
        )

    def train_jointly(self, name: str, trunk: Trunk, correct: Tensor) -> None:
        """Each classifier learns from the rows that leave at it.

        Policies move along where they learn from rows that the trunk has seen anyway (the paper's
        way); else they wait for what it makes of the others.
        """
        settings = self.settings
        self.use(trunk)
        together = not self.cross_fitted
        self.move(trunk=True, policies=together)
        data = self.train_data.add_column("for_policies", np.full(len(self.labels), together))
        hardness = self.hardness(correct)
        if hardness is not None:
            data = data.add_column("hardness", hardness.numpy())
        self.phase(
            f"{name}{trunk.suffix}",
            self.model,
            loss=self.losses.joint,
            train_dataset=data.select(np.flatnonzero(trunk.seen)),
            data_collator=self.collate,
            epochs=settings.joint_epochs,
            batch_size=settings.joint_batch_size,
            learning_rate=settings.joint_learning_rate,
            head_learning_rate=settings.joint_learning_rate * settings.head_factor,
            alpha_range=self.model.config.alpha_range,
        )
        self.keep(trunk)

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


def _evenly(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """At most so many of the rows, evenly over their order."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.intp)]


def _numbered(phase: str, iteration: int) -> str:
    return phase if iteration == 1 else f"{phase}.{iteration}"


def _by_hash(hashes: list[int], layers: Tensor) -> dict[int, int]:
    """Rows that are alike count as the hardest of them, as different folds may say otherwise."""
    found: dict[int, int] = {}
    for row, layer in zip(hashes, layers.tolist(), strict=True):
        found[row] = max(layer, found.get(row, 0))
    return found
