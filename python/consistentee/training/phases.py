"""The phases of a training run, each resumed or loaded from where an earlier start left it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from consistentee.atomic_files import Json
from consistentee.measures.hardness import memorized_layer, oracle_layer
from consistentee.measures.layer_outputs import exit_outputs, exit_report
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.model.policies import PolicyNetwork
from consistentee.training.losses import Loss, Losses
from consistentee.training.phase import run_phase
from consistentee.training.policy_rows import PolicyRows, RowOutputs
from consistentee.training.run_folder import RunFolder
from consistentee.training.settings import TrainingSettings
from consistentee.training.trunks import Trunk, TrunkWeights
from consistentee_ext.configuration import ConsistentEEConfig

HARDNESS: dict[str, Callable[[Tensor], Tensor]] = {
    "hardness": memorized_layer,
    "oracle": oracle_layer,
}


class Phases:
    """The phases of one run; each starts from the current weights of its trunk and the policies.

    Letters: N rows of training data, L layers.

    Args:
        run: keeps checkpoints and results.
        model: as it starts.
        train_data: N rows.
        trunks: from `consistentee.training.trunks.plan_trunks`; all start from the same weights.
        dev_data: measured after each phase.
        tokenizer: pads the batches; saved with the model.
        settings: how to train.
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
        self.weights = TrunkWeights(model, trunks)
        self.policy_rows = PolicyRows(model, train_data, self.collate, trunks, self.weights)
        config = model.config
        self.losses = Losses(
            settings.build_estimator(),
            config.alpha,
            config.label_std,
            settings.spread,
            settings.entropy_bonus,
            _distillation(settings, config),
            config.answer_type,
        )
        self.logs: dict[str, Json] = {}

    def run_all(self) -> Json:
        """All three phases, 2 and 3 as often as the settings say.

        With held-out rows policies are not trained in phase 3, so phase 2 runs once more after it,
        on the final classifiers.
        """
        settings = self.settings
        for trunk in self.trunks:
            self.train_trunk(trunk, self.losses.trunk, settings.epochs)
        outputs = self.policy_rows.read()
        correct = self.policy_rows.correct(outputs)
        for iteration in range(1, settings.iterations + 1):
            if iteration > 1:
                outputs = self.policy_rows.read()
            self.train_policies(_numbered("policies", iteration), outputs, correct)
            if settings.joint_epochs:
                for trunk in self.trunks:
                    self.train_jointly(_numbered("joint", iteration), trunk, correct)
        if self.cross_fitted and settings.joint_epochs:
            last = _numbered("policies", settings.iterations + 1)
            self.train_policies(last, self.policy_rows.read(), correct)
        return self.finish()

    def run_trunk(self, loss: Loss, epochs: int) -> Json:
        """Phase 1 alone, on all rows."""
        self.train_trunk(self.trunks[-1], loss, epochs)
        return self.finish()

    def finish(self) -> Json:
        """Write the output folder; returns the log."""
        self.run.finish(self.save, {"phases": self.logs})
        return {"run": self.run.identity, "phases": self.logs}

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer into a folder."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def train_trunk(self, trunk: Trunk, loss: Loss, epochs: int) -> None:
        """Phase 1: trunk and classifiers, on the rows of `trunk`."""
        settings = self.settings
        self.weights.load(trunk)
        self.set_trained(trunk=True, policies=False)
        self.run_phase(
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
        self.weights.store(trunk)

    def train_policies(self, name: str, outputs: RowOutputs, correct: Tensor) -> None:
        """Phase 2: policies alone, on outputs computed before.

        Args:
            name: of the phase.
            outputs: on the rows that policies learn from.
            correct: ``[N, L]``, 1 where a layer's answer is right.
        """
        labels = self.policy_rows.labels
        columns: dict[str, Any] = {
            "states": outputs.states,
            "exit_logits": outputs.exit_logits,
            "labels": labels[outputs.rows],
        }
        hardness = self.hardness(correct)
        if hardness is not None:
            columns["hardness"] = hardness[outputs.rows]
        self.set_trained(trunk=False, policies=True)
        self.run_phase(
            name,
            PolicyNetwork(self.model),
            loss=self.losses.policies,
            train_dataset=StackDataset(**columns),
            data_collator=default_data_collator,
            epochs=self.settings.policy_epochs,
            batch_size=self.settings.policy_batch_size,
            head_learning_rate=self.settings.policy_learning_rate,
            alpha_range=self.model.config.alpha_range,
            recorded=True,
        )

    def train_jointly(self, name: str, trunk: Trunk, correct: Tensor) -> None:
        """Phase 3: each classifier learns from the rows that leave at it.

        Without held-out rows policies are trained along (the paper's way). With them they are not:
        these rows' outputs must come from a trunk that was not trained on them.

        Args:
            name: of the phase, without the trunk's suffix.
            trunk: to train, on its rows.
            correct: ``[N, L]``, 1 where a layer's answer is right.
        """
        settings = self.settings
        self.weights.load(trunk)
        together = not self.cross_fitted
        self.set_trained(trunk=True, policies=together)
        data = self.train_data.add_column("for_policies", np.full(len(self.train_data), together))
        hardness = self.hardness(correct)
        if hardness is not None:
            data = data.add_column("hardness", hardness.numpy())
        self.run_phase(
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
        self.weights.store(trunk)

    def set_trained(self, *, trunk: bool, policies: bool) -> None:
        """Which parameters the next phase trains: those of trunk and classifiers, of policies."""
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = policies if ".policy." in name else trunk

    def hardness(self, correct: Tensor) -> Tensor | None:
        """The hardness that the reward reads, ``[N]`` in 1..L; None where it reads none."""
        measure = HARDNESS.get(self.settings.reward)
        return None if measure is None else measure(correct)

    def run_phase(self, name: str, module: nn.Module, **options: Any) -> None:
        """Train a phase, resume it from its last checkpoint, or load its result.

        Args:
            name: of the phase.
            module: the module to train: the model, or its policies.
            options: of `PhaseTrainer`.
        """

        def measure() -> Json:
            output = exit_outputs(self.model, self.dev_data, self.collate)
            return exit_report(output, torch.tensor(self.dev_data["labels"]), self.model.config)

        options |= {"seed": self.settings.seed, "bf16": self.settings.bf16}
        self.logs[name] = run_phase(self.run, name, self.model, module, measure, **options)


def _distillation(settings: TrainingSettings, config: ConsistentEEConfig) -> float:
    if settings.distillation is None:
        return 1.0 if config.pooling == "pair" else 0.0
    return settings.distillation


def _numbered(phase: str, iteration: int) -> str:
    return phase if iteration == 1 else f"{phase}.{iteration}"
