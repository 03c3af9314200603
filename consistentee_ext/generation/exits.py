"""An exit of a decoder: a readout before the shared LM head, and a policy on its state."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import initialization as init


class DecoderExit(nn.Module):
    """Translator and policy of one exit layer.

    ``translate(h) = h + B A h`` with A of ``[r, H]`` and B of ``[H, r]``, as the low-rank case of
    the tuned lens (arXiv 2303.08112); B starts at 0, which is the plain logit lens. The policy
    reads ``s = N_f(translate(h))``, what the LM head reads too:
    ``p = sigmoid(w2 . gelu(W1 s + b1) + b2)`` or ``sigmoid(w . s + b)``.

    Args:
        hidden_size: H.
        rank: r; None leaves the translator out.
        policy_size: width of the policy's hidden layer; None for a linear policy.
    """

    def __init__(self, hidden_size: int, rank: int | None, policy_size: int | None) -> None:
        super().__init__()
        self.translator = None if rank is None else Translator(hidden_size, rank)
        self.policy: nn.Module = nn.Linear(hidden_size, 1)
        if policy_size is not None:
            self.policy = nn.Sequential(
                nn.Linear(hidden_size, policy_size), nn.GELU(), nn.Linear(policy_size, 1)
            )

    def translate(self, hidden: Tensor) -> Tensor:
        """What the last norm reads, ``[..., H]``."""
        if self.translator is None:
            return hidden
        translated: Tensor = self.translator(hidden)
        return translated

    def decide(self, state: Tensor) -> Tensor:
        """The policy's logit ``[...]`` of states ``[..., H]``, in float32 at least."""
        logits: Any = self.policy(state).squeeze(-1)
        decided: Tensor = logits if logits.dtype.itemsize >= 4 else logits.float()
        return decided


class Translator(nn.Module):
    """``h + B A h``."""

    def __init__(self, hidden_size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, hidden_size))
        self.up = nn.Parameter(torch.empty(hidden_size, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The identity: A at random, B 0."""
        init.normal_(self.down, std=self.down.shape[1] ** -0.5)
        init.zeros_(self.up)

    def forward(self, hidden: Tensor) -> Tensor:
        """From ``[..., H]`` to ``[..., H]``."""
        return hidden + linear(linear(hidden, self.down), self.up)
