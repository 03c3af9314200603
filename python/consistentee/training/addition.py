"""One run of `consistentee.training.add_exits.add_exits`, phase by phase.

Letters: N rows, R some of them, L layers, H features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import StackDataset, Subset
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, default_data_collator

from consistentee.atomic_files import Json, whole_file
from consistentee.measures.agreement import agreement
from consistentee.measures.calibration import threshold_for_agreement
from consistentee.measures.exit_scores import at_exit, exit_scores, leave_at
from consistentee.measures.layer_outputs import exit_report, pooled_states
from consistentee.model.modeling import ConsistentEEForSequenceClassification, ConsistentEEOutput
from consistentee.model.policies import PolicyNetwork
from consistentee.training.imitation import ImitationLosses, standard_deviation
from consistentee.training.phase import run_phase
from consistentee.training.run_folder import RunFolder
from consistentee.training.settings import MAX_POLICY_STEPS, AddExitsSettings

FOLDS = 4
POLICY_SHARE = 0.25  # of the rows to learn from, where the trunk is tuned on the others
MAX_POLICY_ROWS = 20_000  # their states [R, L, H] are in memory
OUTPUT_ROWS = 4096  # whose outputs are computed at a time


class Parts(NamedTuple):
    """Row numbers: what is learned from, and what the threshold is found on."""

    learning: NDArray[np.intp]
    calibration: NDArray[np.intp]


class Addition:
    """One run, in the work folder of `run`.

    Args:
        run: keeps what is done.
        model: from `consistentee.model.from_classifier.from_classifier`, in float32.
        dtype: of the classifier's weights, to be saved in.
        data: N tokenized rows.
        tokenizer: pads the batches; saved with the model.
        settings: how to do it.
        parts: of the N rows.
    """

    def __init__(
        self,
        run: RunFolder,
        model: ConsistentEEForSequenceClassification,
        dtype: torch.dtype,
        data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        settings: AddExitsSettings,
        parts: Parts,
    ) -> None:
        self.run = run
        self.model = model
        self.dtype = dtype
        self.data = data
        self.tokenizer = tokenizer
        self.settings = settings
        self.parts = parts
        self.collate = DataCollatorWithPadding(tokenizer)
        self.losses = ImitationLosses(model.config)
        self.phases: dict[str, Json] = {}

    def run_all(self) -> Json:
        """All phases; returns the log.

        Its ``calibration`` is about the rows held out for it: threshold, disagreement with full
        depth, layer ratio; of a tuned trunk the disagreement of its full depth with the
        classifier; and metrics, where rows have labels.
        """
        learning, calibration = self.parts
        states = self._states("states", np.arange(len(self.data)))
        teacher = self._outputs(states).exit_logits[:, -1].clone()
        if self.model.config.regression:
            self.model.config.label_std = standard_deviation(teacher[learning])
        if self.settings.tune_trunk:
            policies, heads = np.split(learning, [round(POLICY_SHARE * len(learning))])
            self._train_heads("heads", states, teacher, heads, policies)
            self._tune_trunk(teacher, heads, policies)
            held_out = self._states("tuned_states", np.concatenate([policies, calibration]))
            policy_states, states = held_out.split([len(policies), len(calibration)])
            exit_logits = self._outputs(policy_states[:MAX_POLICY_ROWS]).exit_logits
        else:
            exit_logits = self._cross_fit(states, teacher)
            policy_states, states = states[learning[:MAX_POLICY_ROWS]], states[calibration]
        self._train_policies(policy_states[:MAX_POLICY_ROWS], exit_logits)
        figures = self._calibrate(states, teacher[calibration])
        log = {"phases": self.phases, "calibration": figures}
        self.run.finish(self._save, log)
        return {"run": self.run.identity, **log}

    def _cross_fit(self, states: Tensor, teacher: Tensor) -> Tensor:
        """Train heads on all rows to learn from, after heads on all folds but one, for each.

        Returns the logits of the latter on the rows for policies, each by the heads that were not
        trained on the row: ``[R, L, C]``.
        """
        learning = self.parts.learning
        untrained = copy.deepcopy(self.model.heads.state_dict())
        fold = np.arange(len(learning)) % FOLDS
        number = min(len(learning), MAX_POLICY_ROWS)
        exit_logits = torch.empty(number, len(self.model.heads), teacher.shape[1])
        for k in range(FOLDS):
            self.model.heads.load_state_dict(untrained)
            seen, unseen = learning[fold != k], learning[fold == k]
            self._train_heads(f"heads.{k + 1}of{FOLDS}", states, teacher, seen, unseen)
            places = np.flatnonzero(fold[:number] == k)
            exit_logits[places] = self._outputs(states[learning[places]]).exit_logits
        self.model.heads.load_state_dict(untrained)
        self._train_heads("heads", states, teacher, learning, learning)
        return exit_logits

    def _states(self, name: str, rows: NDArray[np.intp]) -> Tensor:
        """What the heads read of these rows, ``[R, L, H]``, in a file: memory may be too small."""
        shape = (len(rows), len(self.model.heads), self.model.pooled_size)
        file = self.run.work / f"{name}.bin"
        if not file.exists():
            with whole_file(file) as partial:
                out = _map(partial, shape)
                pooled_states(self.model, self.data.select(rows), self.collate, out=out)
        return _map(file, shape)

    @torch.no_grad()
    def _outputs(self, states: Tensor) -> ConsistentEEOutput:
        """All outputs of R rows but the states."""
        self.model.eval()
        parts = [self.model(pooled_states=part) for part in states.split(OUTPUT_ROWS)]
        return ConsistentEEOutput(
            exit_logits=torch.cat([part.exit_logits for part in parts]),
            policy_logits=torch.cat([part.policy_logits for part in parts]),
        )

    def _labels(self) -> dict[str, Tensor]:
        if "labels" not in self.data.column_names:
            return {}
        return {"labels": torch.tensor(self.data["labels"])}

    def _train_heads(
        self,
        name: str,
        states: Tensor,
        teacher: Tensor,
        rows: NDArray[np.intp],
        others: NDArray[np.intp],
    ) -> None:
        """On `rows`; how well they do is measured on `others`."""
        last = f"heads.{len(self.model.heads) - 1}."
        self._set_trained(lambda name: name.startswith("heads.") and not name.startswith(last))
        columns: dict[str, Any] = {"pooled_states": states, "teacher": teacher, **self._labels()}
        self._run_phase(
            name,
            self.model.heads,
            self.model,
            lambda: states[others],
            loss=self.losses.heads,
            train_dataset=Subset(StackDataset(**columns), rows.tolist()),
            data_collator=default_data_collator,
            epochs=self.settings.epochs,
            batch_size=self.settings.batch_size,
            head_learning_rate=self.settings.head_learning_rate,
            recorded=True,
        )

    def _tune_trunk(
        self, teacher: Tensor, rows: NDArray[np.intp], policies: NDArray[np.intp]
    ) -> None:
        self._set_trained(lambda name: True)
        data = self.data.add_column("teacher", teacher.tolist()).select(rows)
        held_out = np.concatenate([policies, self.parts.calibration])
        self._run_phase(
            "trunk",
            self.model,
            self.model,
            lambda: self._states("tuned_states", held_out)[: len(policies)],
            loss=self.losses.trunk,
            train_dataset=data,
            data_collator=self.collate,
            epochs=self.settings.trunk_epochs,
            batch_size=self.settings.batch_size,
            learning_rate=self.settings.learning_rate,
            head_learning_rate=self.settings.head_learning_rate,
            bf16=self.settings.bf16,
        )

    def _train_policies(self, states: Tensor, exit_logits: Tensor) -> None:
        """On rows of which the heads read `states`, and whose answers are `exit_logits`."""
        with torch.no_grad():
            output = self.model.eval()(pooled_states=states)
        columns: dict[str, Any] = {
            "states": output.states,
            "exit_logits": exit_logits,
            "agrees": self._agreement(exit_logits, exit_logits[:, -1]),
        }
        settings = self.settings
        steps = -(-len(states) // settings.policy_batch_size)
        epochs = min(settings.policy_epochs, -(-MAX_POLICY_STEPS // steps))
        self._set_trained(lambda name: ".policy." in name)
        self._run_phase(
            "policies",
            self.model.heads,
            PolicyNetwork(self.model),
            lambda: states,
            loss=self.losses.policies,
            train_dataset=StackDataset(**columns),
            data_collator=default_data_collator,
            epochs=epochs,
            batch_size=settings.policy_batch_size,
            head_learning_rate=settings.policy_learning_rate,
            recorded=True,
        )

    def _set_trained(self, trained: Callable[[str], bool]) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad = trained(name)

    def _run_phase(
        self,
        name: str,
        kept: nn.Module,
        module: nn.Module,
        states: Callable[[], Tensor],
        **options: Any,
    ) -> None:
        """A phase, and how often each layer then agrees with the last, on the rows of `states`."""

        def measure() -> Json:
            exit_logits = self._outputs(states()).exit_logits
            agrees = self._agreement(exit_logits, exit_logits[:, -1])
            return {"layer_agreement": agrees.double().mean(dim=0).tolist()}

        self.phases[name] = run_phase(
            self.run, name, kept, module, measure, seed=self.settings.seed, **options
        )

    def _agreement(self, exit_logits: Tensor, reference: Tensor) -> Tensor:
        return agreement(exit_logits, reference, self.model.config, self.settings.tolerance)

    def _calibrate(self, states: Tensor, teacher: Tensor) -> Json:
        """Set the threshold; `states` and `teacher` are those of the rows held out for it."""
        settings, config = self.settings, self.model.config
        output = self._outputs(states)
        exit_logits = output.exit_logits
        scores = exit_scores("policy", exit_logits, output.policy_logits, config.multi_label)
        agrees = self._agreement(exit_logits, exit_logits[:, -1])
        config.threshold = threshold_for_agreement(
            scores, agrees, settings.max_disagreement, settings.confidence
        )
        exits = leave_at(scores, config.threshold)
        figures = {
            "threshold": config.threshold,
            "max_disagreement": settings.max_disagreement,
            "confidence": settings.confidence,
            "rows": len(states),
            "disagreement": 1.0 - at_exit(agrees, exits).double().mean().item(),
            "layer_ratio": agrees.shape[1] / exits.double().mean().item(),
        }
        if settings.tune_trunk:
            kept = self._agreement(exit_logits[:, -1:], teacher).double().mean().item()
            figures["full_depth_disagreement"] = 1.0 - kept
        for labels in self._labels().values():
            figures |= exit_report(output, labels[self.parts.calibration], config)
        return figures

    def _save(self, folder: Path) -> None:
        """Trunk and last head in the classifier's dtype, whose bits they have, unless tuned."""
        self.model.backbone.to(self.dtype)
        self.model.heads[-1].to(self.dtype)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _map(file: Path, shape: tuple[int, ...]) -> Tensor:
    """A float32 tensor in a file, which is made if it is not there."""
    numbers = int(np.prod(shape))
    return torch.from_file(str(file), shared=True, size=numbers).view(shape)
