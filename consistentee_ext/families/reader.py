"""Reads the weights of Hugging Face modules into layers: cast, placed and prepacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from consistentee_ext.layers import Attention, Block, Embedding
from consistentee_ext.ops.onednn import prepack
from consistentee_ext.weights import LinearWeights, NormWeights


class ClassifierHead(NamedTuple):
    """The head of a Hugging Face classifier: ``classifier(activation(pooler(first token)))``."""

    pooler: nn.Linear
    activation: str
    classifier: nn.Linear


def expect(module: Any, kind: type[nn.Module], name: str) -> Any:
    """The module, which must be of this kind; `name` says where it is.

    Raises:
        ValueError: it is of another kind, or lacks a bias.
    """
    if not isinstance(module, kind):
        raise ValueError(
            f"model: expected {name} to be a {kind.__name__}, got {type(module).__name__}"
        )
    if getattr(module, "bias", True) is None:
        raise ValueError(f"model: expected {name} to have a bias, got none")
    return module


@dataclass(frozen=True)
class Reader:
    """What the families share in reading a model.

    Attributes:
        config: the encoder's configuration.
        dtype: of weights and hidden states.
        device: where they live.
        pooling: what the exit of the last layer reads; where that is ``"cls"``, the last block
            computes the first token of each row alone.
        consume: take each layer out of the model once it is read, so that no more than one layer
            is in memory twice.
        first_tokens_only: of the block that is being read.
    """

    config: Any
    dtype: torch.dtype
    device: torch.device
    pooling: str
    consume: bool = False
    first_tokens_only: bool = False

    def tensor(self, tensor: Tensor) -> Tensor:
        """A weight in the dtype and on the device of the engine."""
        return tensor.detach().to(self.device, self.dtype)

    def linear(self, *modules: nn.Linear, activation: str | None = None) -> LinearWeights:
        """Products of one input side by side, as one."""
        for module in modules:
            expect(module, nn.Linear, "every product of a layer")
        weight = torch.cat([self.tensor(module.weight) for module in modules])
        bias = torch.cat([self.tensor(module.bias) for module in modules])
        return prepack(weight, bias, activation)

    def norm(self, module: nn.LayerNorm) -> NormWeights:
        """A layer norm with its eps."""
        expect(module, nn.LayerNorm, "every norm")
        return NormWeights(self.tensor(module.weight), self.tensor(module.bias), module.eps)

    def attention(
        self, query: nn.Linear, key: nn.Linear, value: nn.Linear, out: nn.Linear, num_heads: int
    ) -> Attention:
        """Self-attention whose heads have size H / num_heads."""
        if self.first_tokens_only:
            return Attention(
                self.linear(query), self.linear(key, value), self.linear(out), num_heads
            )
        return Attention(self.linear(query, key, value), None, self.linear(out), num_heads)

    def embedding(
        self,
        words: Tensor,
        types: Tensor | None,
        positions: Tensor,
        norm: nn.LayerNorm,
        padding_id: int | None = None,
    ) -> Embedding:
        """The tables ``[entries, H]``; `types` is None in a model without segments."""
        if types is None:
            types = torch.zeros_like(words[:1])
        return Embedding(
            words=self.tensor(words),
            types=self.tensor(types),
            positions=self.tensor(positions),
            norm=self.norm(norm),
            padding_id=padding_id,
        )

    def blocks(
        self, layers: Iterable[Any], read: Callable[[Reader, Any], Block]
    ) -> tuple[Block, ...]:
        """The blocks of all layers, each by `read`."""
        layers = list(layers)
        blocks = []
        for number, layer in enumerate(layers, start=1):
            first_tokens_only = self.pooling == "cls" and number == len(layers)
            blocks.append(read(replace(self, first_tokens_only=first_tokens_only), layer))
            if self.consume:
                layer.to("meta")
        return tuple(blocks)
