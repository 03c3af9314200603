"""The trunks of a run: which rows each is trained on, and the weights each has so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training.held_out import BoolArray, Labels, fold_rows, held_out_rows


@dataclass(frozen=True)
class Trunk:
    """One trunk of a run.

    Attributes:
        name: empty for the model's own trunk.
        seen: ``[N]``, the rows it is trained on.
        unseen: ``[N]``, the rows on which it supplies training data for the policies: rows it is
            not trained on, except in a run without held-out rows.
    """

    name: str
    seen: BoolArray
    unseen: BoolArray

    @property
    def suffix(self) -> str:
        """Suffix of the names of this trunk's phases."""
        return f".{self.name}" if self.name else ""


def plan_trunks(labels: Labels, held_out: float, folds: int, seed: int) -> list[Trunk]:
    """The trunks of a run. The last is the model's; it is trained on all rows.

    With `folds` there is one more trunk for each fold, else with `held_out` one more in all; it is
    trained without the rows of that fold or share.

    Raises:
        ValueError: too few rows, see `held_out_rows` and `fold_rows`.
    """
    everything = np.ones(len(labels), dtype=bool)
    if folds:
        masks = fold_rows(labels, folds, seed)
        others = [
            Trunk(f"{number}of{len(masks)}", ~mask, mask)
            for number, mask in enumerate(masks, start=1)
        ]
    elif held_out:
        mask = held_out_rows(labels, held_out, seed)
        others = [Trunk("held_out", ~mask, mask)]
    else:
        return [Trunk("", everything, everything)]
    return [*others, Trunk("", everything, ~everything)]


class TrunkWeights:
    """The weights of each trunk, with its poolers and classifiers, while they share one model.

    Policies are not among them: all trunks share those of the model. Every trunk begins with the
    weights that the model has now.
    """

    def __init__(
        self, model: ConsistentEEForSequenceClassification, trunks: Sequence[Trunk]
    ) -> None:
        self._model = model
        self._weights: dict[str, dict[str, Tensor]] = {}
        for trunk in trunks:
            self.store(trunk)

    def load(self, trunk: Trunk) -> None:
        """Give the model the weights stored for a trunk."""
        self._model.load_state_dict(self._weights[trunk.name], strict=False)

    def store(self, trunk: Trunk) -> None:
        """Keep a copy of the model's weights as those of a trunk."""
        weights = self._model.state_dict()
        self._weights[trunk.name] = {
            name: value.clone() for name, value in weights.items() if ".policy." not in name
        }
