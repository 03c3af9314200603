"""A module without parameters of its own, that is for inference only: what encoder and decoder are.

`config` is a copy, `dtype` and `device` are where it computes. It moves between devices, and keeps
its dtype.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from typing_extensions import Self, override

from consistentee_ext.forks import without_threads
from consistentee_ext.placement import place


class InferenceModule(nn.Module, ABC):
    """What is computed lies in ``_engine``, which a subclass makes of weights and settings."""

    main_input_name = "input_ids"
    input_modalities = ("text",)

    def __init__(self, config: PreTrainedConfig, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        super().train(False)
        self.config = copy.deepcopy(config)
        # A checkpoint that asks for states is taken, and says that they are not given.
        self.config.output_hidden_states = self.config.output_attentions = False
        self.dtype = dtype
        self.device = device
        # Callers ask the first parameter where a model is.
        probe = torch.empty(0, dtype=dtype, device=device)
        self.probe = nn.Parameter(probe, requires_grad=False)

    @property
    def name_or_path(self) -> str:
        """Where the model came from."""
        return str(self.config.name_or_path)

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

    def get_input_embeddings(self) -> NoReturn:
        """Raise RuntimeError: weights are laid out for inference."""
        raise RuntimeError("get_input_embeddings: not kept; ask the model this one was made of")

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """What `to`, `cpu`, `cuda`, `half` and their like end in."""
        moved = fn(self.probe)
        if moved.dtype != self.dtype:
            raise ValueError(
                f"dtype: expected {self.dtype}, got {moved.dtype}; name dtype= when making it"
            )
        if moved.device != self.device:
            self._move(moved.device)
            self.device = moved.device
            self.probe = nn.Parameter(moved.detach(), requires_grad=False)
        return self

    def _move(self, device: torch.device) -> None:
        """Lay the weights out on another device."""
        self.device = device
        with without_threads():
            parts = place(self._engine_parts(), device)
        self._start_engine(*parts)

    def __getstate__(self) -> dict[str, Any]:
        # The engine may lie in C++: it is made again where its weights arrive.
        return self.__dict__ | {"_engine": self._engine_parts()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.device = self.probe.device  # `torch.load` may have moved what it loaded
        self._start_engine(*state["_engine"])

    @abstractmethod
    def _engine_parts(self) -> tuple[Any, ...]:
        """What `_start_engine` takes to make the engine again."""

    @abstractmethod
    def _start_engine(self, *parts: Any) -> None:
        """By the backend there was, if it can run here."""
