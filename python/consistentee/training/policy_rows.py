"""The rows that policies learn from: outputs on them, aligned and calibrated.

Letters: N rows of training data, M of them for the policies, L layers, H features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from torch import Tensor
from transformers import DataCollatorWithPadding

from consistentee.measures.hardness import correct_layers
from consistentee.measures.layer_outputs import exit_outputs
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training.alignment import fit_alignment
from consistentee.training.scaling import fit_scaling
from consistentee.training.trunks import Trunk, TrunkWeights

MAX_ALIGNMENT_ROWS = 8192  # plenty for H x H numbers, and states [N, L, H] must fit in memory


@dataclass(frozen=True)
class RowOutputs:
    """Outputs of a trunk and its classifiers on some rows of the training data.

    Attributes:
        rows: ``[M]``, ascending indices into the training data.
        states: ``[M, L, H]`` float32, what policies read.
        exit_logits: ``[M, L, C]`` float32.
    """

    rows: NDArray[np.intp]
    states: Tensor
    exit_logits: Tensor


class PolicyRows:
    """Computes what policies learn from: outputs on held-out rows.

    A trunk that was not trained on a row computes the row's outputs. In a run without held-out rows
    its one trunk computes them for all rows.

    Args:
        model: the model that the trunks share; each method says which weights it leaves there.
        data: the training data, N rows.
        collate: pads a batch.
        trunks: from `consistentee.training.trunks.plan_trunks`.
        weights: those of `trunks`.
    """

    def __init__(
        self,
        model: ConsistentEEForSequenceClassification,
        data: Dataset,
        collate: DataCollatorWithPadding,
        trunks: Sequence[Trunk],
        weights: TrunkWeights,
    ) -> None:
        self.model = model
        self.data = data
        self.collate = collate
        self.trunks = trunks
        self.weights = weights
        self.labels = torch.tensor(data["labels"])

    def read(self) -> RowOutputs:
        """Outputs on all rows that policies learn from.

        With held-out rows, the classifiers of all trunks are calibrated first, and states of other
        trunks are mapped to those of the model's. Leaves the model with the weights of its own
        trunk.
        """
        *others, model_trunk = self.trunks
        reference = None
        if others and self.model.config.policy_input != "prediction":
            self.weights.load(model_trunk)
            rows = _evenly_spaced(np.flatnonzero(model_trunk.seen), MAX_ALIGNMENT_ROWS)
            reference = self.outputs_on(rows)
        parts = [self.aligned_outputs_on(trunk, reference) for trunk in others]
        self.weights.load(model_trunk)
        if model_trunk.unseen.any():
            parts.append(self.outputs_on(np.flatnonzero(model_trunk.unseen)))
        rows = np.concatenate([part.rows for part in parts])
        order = torch.from_numpy(np.argsort(rows))
        outputs = RowOutputs(
            rows[order.numpy()],
            torch.cat([part.states for part in parts])[order],
            torch.cat([part.exit_logits for part in parts])[order],
        )
        return self.calibrate(outputs) if others else outputs

    def outputs_on(self, rows: NDArray[np.intp]) -> RowOutputs:
        """Outputs of the model, with its current weights, on `rows`."""
        output = exit_outputs(self.model, self.data.select(rows), self.collate)
        return RowOutputs(rows, output.states, output.exit_logits)

    def aligned_outputs_on(self, trunk: Trunk, reference: RowOutputs | None) -> RowOutputs:
        """Outputs of a trunk on its unseen rows, its states mapped to those of the model's trunk.

        The map is fitted on rows that both trunks were trained on. On rows that only one was
        trained on, the states also differ by memorisation, which must not leak into the map.
        Leaves the model with the weights of `trunk`.

        Args:
            trunk: one that is not the model's.
            reference: outputs of the model's trunk on rows it was trained on; None leaves the
                states as they are.
        """
        self.weights.load(trunk)
        unseen = self.outputs_on(np.flatnonzero(trunk.unseen))
        if reference is None:
            return unseen
        shared = trunk.seen[reference.rows]
        states = self.outputs_on(reference.rows[shared]).states
        alignment = fit_alignment(states, reference.states[shared])
        return replace(unseen, states=alignment(unseen.states))

    def calibrate(self, outputs: RowOutputs) -> RowOutputs:
        """Apply the scaling that fits `outputs` to the classifiers of every trunk.

        Returns `outputs` with its logits scaled. Leaves the model with the weights of the last
        trunk. In regression nothing is calibrated.
        """
        if self.model.config.regression:
            return outputs
        scaling = fit_scaling(outputs.exit_logits, self.labels[outputs.rows])
        for trunk in self.trunks:
            self.weights.load(trunk)
            scaling.apply_to(self.model.heads)
            self.weights.store(trunk)
        return replace(outputs, exit_logits=scaling(outputs.exit_logits))

    def correct(self, outputs: RowOutputs) -> Tensor:
        """Where each layer's answer to each training row is right: ``[N, L]`` bool.

        From `outputs` where it has the row, else from the weights that the model has.
        """
        others = np.setdiff1d(np.arange(len(self.labels)), outputs.rows)
        exit_logits = torch.empty(len(self.labels), *outputs.exit_logits.shape[1:])
        exit_logits[outputs.rows] = outputs.exit_logits
        if len(others):
            exit_logits[others] = self.outputs_on(others).exit_logits
        return correct_layers(exit_logits, self.labels, self.model.config.label_std)


def _evenly_spaced(rows: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """At most `count` of the rows, evenly spaced over their order."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), count)).astype(np.intp)]
