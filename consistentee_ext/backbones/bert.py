"""BertModel on packed tokens: BERT, MiniLM, bge, e5, gte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from consistentee_ext.attention import packed_attention
from consistentee_ext.linear import Linear


@dataclass(frozen=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class _Layer:
    qkv: Linear
    attention_output: Linear
    attention_norm: _Norm
    up: Linear
    down: Linear
    output_norm: _Norm


class PackedBert:
    """The embeddings and layers of a Hugging Face `BertModel`, run on packed tokens.

    Args:
        model: the `BertModel`; its weights are read, never changed.
        dtype: of weights and hidden states.
        device: where they live.

    Raises:
        ValueError: a decoder, or position embeddings that are not absolute.
    """

    def __init__(self, model: Any, dtype: torch.dtype, device: torch.device) -> None:
        config = model.config
        if config.is_decoder:
            raise ValueError("model: expected an encoder, got a config with is_decoder=True")
        position = getattr(config, "position_embedding_type", None) or "absolute"
        if position != "absolute":
            raise ValueError(f"model: expected absolute position embeddings, got {position!r}")
        self.num_heads: int = config.num_attention_heads
        self.max_positions: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size
        self.type_vocab_size: int = config.type_vocab_size
        fused_gelu = config.hidden_act == "gelu"
        self._activation = None if fused_gelu else ACT2FN[config.hidden_act]

        def place(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype)

        def linear(*modules: nn.Linear, gelu: bool = False) -> Linear:
            weight = torch.cat([place(module.weight) for module in modules])
            return Linear(weight, torch.cat([place(module.bias) for module in modules]), gelu)

        def norm(module: nn.LayerNorm) -> _Norm:
            return _Norm(place(module.weight), place(module.bias), module.eps)

        embeddings = model.embeddings
        self._words = place(embeddings.word_embeddings.weight)
        self._positions = place(embeddings.position_embeddings.weight)
        self._types = place(embeddings.token_type_embeddings.weight)
        self._embedding_norm = norm(embeddings.LayerNorm)
        self.layers = [
            _Layer(
                qkv=linear(
                    layer.attention.self.query,
                    layer.attention.self.key,
                    layer.attention.self.value,
                ),
                attention_output=linear(layer.attention.output.dense),
                attention_norm=norm(layer.attention.output.LayerNorm),
                up=linear(layer.intermediate.dense, gelu=fused_gelu),
                down=linear(layer.output.dense),
                output_norm=norm(layer.output.LayerNorm),
            )
            for layer in model.encoder.layer
        ]

    def embed(self, ids: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        """Embeddings ``[T, H]`` of tokens, from ids, segment ids and positions ``[T]`` int64."""
        hidden = self._words[ids] + self._types[types]
        return self._embedding_norm(hidden + self._positions[positions])

    def run_layer(self, index: int, hidden: Tensor, lengths: list[int]) -> Tensor:
        """Layer `index` (from 0) on ``hidden [T, H]``; `lengths` are the rows' tokens."""
        layer = self.layers[index]
        context = packed_attention(layer.qkv(hidden), lengths, self.num_heads)
        hidden = layer.attention_norm(layer.attention_output(context) + hidden)
        inner = layer.up(hidden)
        if self._activation is not None:
            inner = self._activation(inner)
        return layer.output_norm(layer.down(inner) + hidden)
