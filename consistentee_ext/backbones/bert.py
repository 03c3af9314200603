"""BertModel on packed tokens: BERT, MiniLM, bge, e5, gte."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext import ops
from consistentee_ext.linear import Linear
from consistentee_ext.packed import LayerNormWeights, PackedBatch


@dataclass(frozen=True)
class _Layer:
    query: Linear  # with keys and values, where `key_value` is None
    key_value: Linear | None
    attention_output: Linear
    attention_norm: LayerNormWeights
    up: Linear
    down: Linear
    output_norm: LayerNormWeights

    @property
    def linears(self) -> list[Linear]:
        own = [self.key_value] if self.key_value else []
        return [self.query, self.attention_output, self.up, self.down, *own]

    @property
    def norms(self) -> list[LayerNormWeights]:
        return [self.attention_norm, self.output_norm]


class PackedBert:
    """The embeddings and layers of a Hugging Face `BertModel`, run on packed tokens.

    Args:
        model: the `BertModel`; its weights are read, and left as they are unless `consume`.
        dtype: of weights and hidden states.
        device: where they live.
        backend: what runs attention and layer norms.
        pooling: what the exit of the last layer reads; where that is ``"cls"``, the last layer
            computes the first token of each row alone.
        consume: take each layer out of the model once it is packed, so that no more than one layer
            is in memory twice.

    Raises:
        ValueError: a decoder, or position embeddings that are not absolute.
    """

    def __init__(
        self,
        model: Any,
        dtype: torch.dtype,
        device: torch.device,
        backend: str,
        pooling: str,
        consume: bool = False,
    ) -> None:
        config = model.config
        if config.is_decoder:
            raise ValueError("model: expected an encoder, got a config with is_decoder=True")
        position = getattr(config, "position_embedding_type", None) or "absolute"
        if position != "absolute":
            raise ValueError(f"model: expected absolute position embeddings, got {position!r}")
        self.backend = backend
        self.num_heads: int = config.num_attention_heads
        self.max_positions: int = config.max_position_embeddings
        self.vocab_size: int = config.vocab_size
        self.type_vocab_size: int = config.type_vocab_size

        def place(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, dtype)

        def linear(*modules: nn.Linear, activation: str | None = None) -> Linear:
            weight = torch.cat([place(module.weight) for module in modules])
            bias = torch.cat([place(module.bias) for module in modules])
            return Linear(weight, bias, activation, backend)

        def norm(module: nn.LayerNorm) -> LayerNormWeights:
            return LayerNormWeights(place(module.weight), place(module.bias), module.eps)

        def pack(layer: Any, first_token_only: bool) -> _Layer:
            attention = layer.attention.self
            key_value = (attention.key, attention.value)
            packed = _Layer(
                query=linear(attention.query, *(() if first_token_only else key_value)),
                key_value=linear(*key_value) if first_token_only else None,
                attention_output=linear(layer.attention.output.dense),
                attention_norm=norm(layer.attention.output.LayerNorm),
                up=linear(layer.intermediate.dense, activation=config.hidden_act),
                down=linear(layer.output.dense),
                output_norm=norm(layer.output.LayerNorm),
            )
            if consume:
                layer.to("meta")
            return packed

        embeddings = model.embeddings
        self.tables = (
            place(embeddings.word_embeddings.weight),
            place(embeddings.token_type_embeddings.weight),
            place(embeddings.position_embeddings.weight),
        )
        self.embedding_norm = norm(embeddings.LayerNorm)
        *others, last = model.encoder.layer
        self.layers = [pack(layer, False) for layer in others]
        self.layers.append(pack(last, pooling == "cls"))

    def embed(self, ids: Tensor, types: Tensor, positions: Tensor) -> Tensor:
        """Embeddings ``[T, H]`` of tokens, from ids, segment ids and positions ``[T]`` int64."""
        return ops.embed((ids, types, positions), self.tables, self.embedding_norm, self.backend)

    def run_layer(
        self, index: int, batch: PackedBatch, max_length: int | None = None
    ) -> PackedBatch:
        """Layer `index` (from 0) on a packed batch; the last may leave first tokens alone.

        On a device, `max_length` bounds the rows' lengths.
        """
        out, down = self._before_last_norm(index, batch, max_length)
        norm = self.layers[index].output_norm
        return out._replace(hidden=ops.add_norm(down, out.hidden, norm, self.backend))

    def run_exit_layer(
        self, index: int, batch: PackedBatch, max_length: int, pooling: str, counters: Tensor
    ) -> tuple[PackedBatch, Tensor]:
        """The same on a device, with the pooling of the rows, ``[B, H]``, that its exit reads."""
        out, down = self._before_last_norm(index, batch, max_length)
        layer = self.layers[index]
        hidden, pooled = ops.add_norm_pool(
            down,
            out,
            layer.output_norm,
            max_length if layer.key_value is None else 1,
            pooling,
            counters,
            self.backend,
        )
        return out._replace(hidden=hidden), pooled

    def _before_last_norm(
        self, index: int, batch: PackedBatch, max_length: int | None
    ) -> tuple[PackedBatch, Tensor]:
        """The layer's tokens before its last layer norm: residual, and what is added to it."""
        layer = self.layers[index]
        if layer.key_value is None:
            out, max_queries = batch, max_length
            query, key, value = layer.query(batch.hidden).chunk(3, dim=-1)
        else:
            out, max_queries = batch.first_tokens(), 1
            query = layer.query(out.hidden)
            key, value = layer.key_value(batch.hidden).chunk(2, dim=-1)
        context = ops.attention(
            query,
            key,
            value,
            out.cu_seqlens,
            batch.cu_seqlens,
            self.num_heads,
            self.backend,
            max_queries,
            max_length,
        )
        hidden = ops.add_norm(
            layer.attention_output(context), out.hidden, layer.attention_norm, self.backend
        )
        return out._replace(hidden=hidden), layer.down(layer.up(hidden))
