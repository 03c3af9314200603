"""What the libraries that call a Hugging Face classifier ask of it, beside `forward`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.loss.loss_utils import ForSequenceClassificationLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from typing_extensions import Self, override


class DropIn(nn.Module):
    """A module without parameters of its own, that is for inference only.

    `config` is a copy, `dtype` and `device` are where it computes. It moves between devices, and
    keeps its dtype.
    """

    main_input_name = "input_ids"
    input_modalities = ("text",)
    accepts_loss_kwargs = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Where pipelines look up, by the name of its class, whether a model is a classifier.
        MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[cls.__name__] = cls.__name__

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        super().train(False)
        self.config = copy.deepcopy(config)
        # A checkpoint that asks for states is taken, and says that they are not given.
        self.config.output_hidden_states = self.config.output_attentions = False
        ignored = getattr(config, "keys_to_ignore_at_inference", None) or []
        self.config.keys_to_ignore_at_inference = [*ignored, "exit_layers", "exit_scores"]
        self.dtype = dtype
        self.device = device
        # Callers ask the first parameter where a model is.
        probe = torch.empty(0, dtype=dtype, device=device)
        self.probe = nn.Parameter(probe, requires_grad=False)

    def can_generate(self) -> bool:
        """Whether it writes texts: no."""
        return False

    @property
    def num_labels(self) -> int:
        """C, or 1 for a number."""
        labels: int | None = self.config.num_labels
        assert labels is not None
        return labels

    @property
    def name_or_path(self) -> str:
        """Where the model came from."""
        return str(self.config.name_or_path)

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

    @override
    def train(self, mode: bool = True) -> Self:
        """The module itself; it cannot be trained."""
        if mode:
            raise RuntimeError("train: expected False; train the model this one was made of")
        return self

    @override
    def state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: weights are laid out for inference."""
        raise RuntimeError("state_dict: not kept; save the model this one was made of, or pickle")

    @override
    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: weights are laid out for inference."""
        raise RuntimeError("load_state_dict: weights are packed; load them into the model first")

    def save_pretrained(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: weights are laid out for inference."""
        raise RuntimeError("save_pretrained: not kept; save the model this one was made of")

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise RuntimeError: a classifier writes no texts."""
        raise RuntimeError("generate: this is a classifier; call it for logits")

    def get_input_embeddings(self) -> NoReturn:
        """Raise RuntimeError: weights are laid out for inference."""
        raise RuntimeError("get_input_embeddings: not kept; ask the model this one was made of")

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cpu`, `cuda`, `half` and their like end in."""
        moved = fn(self.probe)
        if moved.dtype != self.dtype:
            raise ValueError(
                f"dtype: expected {self.dtype}, got {moved.dtype}; "
                "name dtype= when making the encoder"
            )
        if moved.device != self.device:
            self._move(moved.device)
            self.device = moved.device
            self.probe = nn.Parameter(moved.detach(), requires_grad=False)
        return self

    def _move(self, device: torch.device) -> None:
        """Lay the weights out on another device."""
        raise NotImplementedError
