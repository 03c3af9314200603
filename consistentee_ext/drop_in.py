"""What the libraries that call a Hugging Face classifier ask of it, beside `forward`."""

from __future__ import annotations

import copy
from typing import Any, NoReturn

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from consistentee_ext.inference_module import InferenceModule


class DropIn(InferenceModule):
    """A classifier in their hands."""

    accepts_loss_kwargs = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Where pipelines look up, by the name of its class, whether a model is a classifier.
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[cls.__name__] = cls.__name__

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(config, dtype, device)
        ignored = getattr(config, "keys_to_ignore_at_inference", None) or []
        self.config.keys_to_ignore_at_inference = [*ignored, "exit_layers", "exit_scores"]

    def can_generate(self) -> bool:
        """Whether it writes texts: no."""
        return False

    @property
    def num_labels(self) -> int:
        """C, or 1 for a number."""
        labels: int | None = self.config.num_labels
        assert labels is not None
        return labels

    def loss(self, labels: object, logits: Tensor) -> Tensor:
        """The loss of the Hugging Face model, by ``config.problem_type``: mean squared error,
        cross-entropy, or binary cross-entropy.
        """
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: expected a tensor, got {type(labels).__name__}")
        if labels.numel() != len(logits) and labels.shape != logits.shape:
            raise ValueError(
                f"labels: expected shape ({len(logits)},) or {tuple(logits.shape)}, "
                f"got {tuple(labels.shape)}"
            )
        labels = labels.to(logits.device)
        config = copy.copy(self.config)  # a problem_type that it guesses is written there
        loss: Tensor = ForSequenceClassificationLoss(labels, logits, config)
        return loss

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: a classifier writes no texts."""
        raise RuntimeError("generate: this is a classifier; call it for logits")
