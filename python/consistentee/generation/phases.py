"""The phases of a decoder's training; each is resumed, or loaded, where a start left it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from consistentee.atomic_files import Json
from consistentee.generation.data import collate, tokens_of_rows
from consistentee.generation.losses import PolicyObjective
from consistentee.generation.measure import dev_report, with_hardness
from consistentee.generation.passes import JointPass, PolicyPass, ReadoutPass, TrainedPart
from consistentee.generation.sampler import TokenSampler
from consistentee.generation.settings import GenerationSettings
from consistentee.training.phase import run_phase
from consistentee.training.run_folder import RunFolder
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM


class GenerationPhases:
    """The phases of one run.

    Args:
        run: keeps checkpoints and results.
        model: as it starts.
        learning_rows: for phases 1 and 3, of `consistentee.generation.data.answered_rows`.
        policy_rows: for phase 2; the same, or rows that are in no other phase.
        dev_rows: measured after each phase.
        tokenizer: saved with the model.
        settings: how to train.
        adapters: from `consistentee.generation.adapters.add_adapters`, where the trunk has some.
    """

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForCausalLM,
        learning_rows: Dataset,
        policy_rows: Dataset,
        dev_rows: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: GenerationSettings,
        adapters: Any = None,
    ) -> None:
        self.run = run
        self.model = model
        self.learning_rows = learning_rows
        self.policy_rows = policy_rows
        self.dev_rows = dev_rows
        self.tokenizer = tokenizer
        self.settings = settings
        self.adapters = adapters
        self.logs: dict[str, Json] = {}

    def run_all(self, facts: Json) -> Json:
        """All phases; phase 2 again after phase 3, for the readouts as they then are.

        Args:
            facts: of the data, for the log.
        """
        self.train_readouts()
        self.train_policies("policies")
        if self.settings.joint_tokens:
            self.train_jointly()
            self.train_policies("policies.2")
        log = {**facts, "phases": self.logs}
        self.run.finish(self.save, log)
        return {"run": self.run.identity, **log}

    def save(self, folder: Path) -> None:
        """Write the model and its tokenizer into a folder; adapters are merged."""
        if self.adapters is not None:
            self.adapters.merge_and_unload()
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def train_readouts(self) -> None:
        """Phase 1: translators, or the trunk."""
        self._set_trained(policies=False)
        divergence = self.settings.target == "teacher"
        self._run_phase(
            "readouts",
            ReadoutPass(self.model, divergence),
            self.learning_rows,
            self.settings.tokens,
            loss=_its_output,
            head_learning_rate=self.settings.exit_learning_rate,
        )

    def train_policies(self, name: str) -> None:
        """Phase 2: policies alone."""
        settings, config = self.settings, self.model.config
        rows = self.policy_rows
        if self.run.result(name) is None:
            rows = with_hardness(self.model, rows, settings.bf16)
        self._set_trained(policies=True)
        self._run_phase(
            name,
            PolicyPass(self.model),
            rows,
            settings.policy_tokens,
            loss=PolicyObjective(
                config.exit_layers,
                config.num_layers,
                config.alpha,
                settings.build_estimator(),
                settings.policy_loss,
                settings.entropy_bonus,
            ),
            head_learning_rate=settings.policy_learning_rate,
        )

    def train_jointly(self) -> None:
        """Phase 3: as phase 1, under sampled exits."""
        self._set_trained(policies=False)
        self._run_phase(
            "joint",
            JointPass(self.model),
            self.learning_rows,
            self.settings.joint_tokens,
            loss=_its_output,
            head_learning_rate=self.settings.exit_learning_rate,
        )

    def _set_trained(self, *, policies: bool) -> None:
        """Either policies are trained, or all else that may be."""
        whole_trunk = self.model.config.readout == "trunk" and self.adapters is None
        for name, parameter in self.model.named_parameters():
            if ".policy." in name:
                parameter.requires_grad = policies
            else:
                learns = whole_trunk or name.startswith("exits.") or ".lora_" in name
                parameter.requires_grad = not policies and learns

    def _run_phase(
        self, name: str, module: TrainedPart, rows: Dataset, budget: int, **options: Any
    ) -> None:
        settings = self.settings
        sampler = TokenSampler(
            rows["length"], tokens_of_rows(rows), budget, settings.batch_size, settings.seed
        )
        self.logs[name] = run_phase(
            self.run,
            name,
            module,
            module,
            partial(dev_report, self.model, self.dev_rows, settings.bf16),
            train_dataset=rows,
            data_collator=collate,
            sampler=sampler,
            epochs=sampler.epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            seed=settings.seed,
            bf16=settings.bf16,
            **options,
        )


def _its_output(output: Tensor, batch: Any) -> Tensor:
    """The loss of a pass that returns it."""
    return output
