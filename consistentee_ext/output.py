"""What a batch of rows comes back as."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers.modeling_outputs import SequenceClassifierOutput

from consistentee_ext.packed import ExitResults


@dataclass
class EarlyExitOutput(SequenceClassifierOutput):
    """Results of N rows, in the caller's order.

    Args:
        loss: of the labels, where there are any.
        logits: ``[N, C]`` float32, of the layer each row left at.
        exit_layers: ``[N]`` int64, 1-based: the number of layers each row ran.
        exit_scores: ``[N]`` float32, the criterion's score there.
    """

    loss: Tensor | None = None
    # A ModelOutput's fields need defaults; these three are always there.
    logits: Tensor = None  # type: ignore[assignment]
    exit_layers: Tensor = None  # type: ignore[assignment]
    exit_scores: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        first: object = self.loss
        if isinstance(first, dict):  # all the fields, as accelerate gives them under autocast
            super().__post_init__()
            return
        # The base class's own would look into every field for what it holds: at batch 1 that takes
        # 1% of the call.
        if self.loss is not None:
            self["loss"] = self.loss
        for name in ("logits", "exit_layers", "exit_scores"):
            self[name] = getattr(self, name)

    @classmethod
    def of(cls, results: ExitResults, loss: Tensor | None = None) -> EarlyExitOutput:
        """The part of `results` that callers read."""
        return cls(
            loss=loss,
            logits=results.logits,
            exit_layers=results.exit_layers,
            exit_scores=results.exit_scores,
        )
