"""Reads the weights of Hugging Face modules into layers: cast, placed and prepacked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from consistentee_ext.families.measured_norm import measured_norm
from consistentee_ext.layers import Attention, Block, Embedding
from consistentee_ext.ops import layout, onednn_int8
from consistentee_ext.packed import InputLimits
from consistentee_ext.weights import AttentionForm, LinearWeights, NormWeights, Rotation

# Names in transformers' configurations for what is one function.
_SAME_FUNCTION = {
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_new": "gelu_pytorch_tanh",
    "swish": "silu",
}
# Of transformers: what the name says, by the weight or, in Gemma, by one more than it.
_RMS_NORMS_OF_ONE_MORE = ("GemmaRMSNorm", "Gemma2RMSNorm", "Gemma3RMSNorm")
_RMS_NORMS = (
    "EuroBertRMSNorm",
    "LlamaRMSNorm",
    "MistralRMSNorm",
    "Qwen2RMSNorm",
    "Qwen3RMSNorm",
    "UltrabertRMSNorm",
    *_RMS_NORMS_OF_ONE_MORE,
)
# The RoPE types whose angles depend on the position alone, not on the length of the row.
_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True)
class ClassifierHead:
    """The head of a Hugging Face classifier: ``classifier(activation(pooler(pooled row)))``.

    Attributes:
        classifier: a product; its bias may be absent.
        pooler: None for none.
        activation: by transformers' name, ``"none"`` without pooler.
        pooling: what of a row is read: ``"cls"``, ``"last"`` or ``"mean"``.
        state_norm: behind the activation.
        pools_states: whether pooler and activation come before the pooling, for each token.
    """

    classifier: nn.Linear
    pooler: nn.Linear | None = None
    activation: str = "none"
    pooling: str = "cls"
    state_norm: nn.Module | None = None
    pools_states: bool = False


def expect(module: Any, kind: type[nn.Module], name: str) -> Any:
    """The module, which must be of this kind; `name` says where it is.

    Raises:
        ValueError: it is of another kind.
    """
    if not isinstance(module, kind):
        raise ValueError(
            f"model: expected {name} to be a {kind.__name__}, got {type(module).__name__}"
        )
    return module


@dataclass(frozen=True)
class Reader:
    """What the families share in reading a model.

    Attributes:
        config: the encoder's configuration.
        dtype: of weights and hidden states.
        device: where they live.
        one_query: which token of a row the exit of the last layer reads alone, ``"cls"`` or
            ``"last"``: the last block computes no other. None where it reads all.
        is_classifier: whether it is a Hugging Face classifier that is read, whose rule of what it
            reads holds.
        consume: take each layer out of the model once it is read, so that no more than one layer
            is in memory twice.
        weights: of the blocks' products, one of `consistentee_ext.weights.WEIGHT_FORMATS`; None for
            `dtype`.
        is_last: whether it is the last block that is being read.
        in_block: whether it is a block that is being read.
        few_rows: whether products are of few rows: their weights are then not laid out anew, and
            with `consume` they are the model's own.
    """

    config: Any
    dtype: torch.dtype
    device: torch.device
    one_query: str | None = None
    is_classifier: bool = False
    consume: bool = False
    weights: str | None = None
    is_last: bool = False
    in_block: bool = False
    few_rows: bool = False

    def tensor(self, tensor: Tensor) -> Tensor:
        """A weight in the dtype and on the device of the engine."""
        own = self.few_rows and not self.consume  # a change of the model's must not reach it
        return tensor.detach().to(self.device, self.dtype, copy=own)

    def exact(self, tensor: Tensor) -> Tensor:
        """A table in float32 on the device of the engine."""
        return tensor.detach().to(self.device, torch.float32).contiguous()

    def linear(self, *modules: nn.Linear, activation: str | None = None) -> LinearWeights:
        """Products of one input side by side, as one."""
        parts = []
        for module in modules:
            expect(module, nn.Linear, "every product of a layer")
            parts.append((module.weight, module.bias))
        return self.product(*parts, activation=activation)

    def product(
        self, *parts: tuple[Tensor, Tensor | None], activation: str | None = None
    ) -> LinearWeights:
        """Weights ``[O, I]`` and biases ``[O]`` of products of one input side by side, as one."""
        int8 = self.weights == "int8" and self.in_block
        read = self.exact if int8 else self.tensor
        read_parts = [read(weight) for weight, _ in parts]
        weight = read_parts[0] if len(parts) == 1 else torch.cat(read_parts)
        bias = None
        if any(offset is not None for _, offset in parts):
            offsets = [w.new_zeros(len(w)) if offset is None else offset for w, offset in parts]
            bias = torch.cat([read(offset) for offset in offsets])
        activation = _SAME_FUNCTION.get(activation or "", activation)
        if self.few_rows:
            return LinearWeights(weight.contiguous(), bias, activation, few_rows=True)
        scale, levels = None, 0
        if int8:
            weight, scale = onednn_int8.round_weight(weight)
            levels = onednn_int8.LEVELS[0]  # at most
        return layout.lay_out(weight, bias, activation, scale, levels)

    def norm(self, module: Any) -> NormWeights:
        """A norm with its eps: a layer norm, whose bias may be absent, or a root-mean-square norm
        of transformers, or another module that computes one of the two.
        """
        name = type(module).__name__
        if name in _RMS_NORMS:
            weight = module.weight + 1 if name in _RMS_NORMS_OF_ONE_MORE else module.weight
            eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
            return NormWeights(self.tensor(weight), None, eps)
        if name == "DebertaLayerNorm":  # a layer norm of its own
            weight, bias = self.tensor(module.weight), self.tensor(module.bias)
            return NormWeights(weight, bias, module.variance_epsilon)
        if type(module) is not nn.LayerNorm:  # one of its kin may compute something else
            measured = measured_norm(module, self.config.hidden_size)
            if measured is not None:
                own = None if measured.bias is None else self.tensor(measured.bias)
                return NormWeights(self.tensor(measured.weight), own, measured.eps)
            raise ValueError(
                f"model: expected every norm to be a LayerNorm, got {type(module).__name__}"
            )
        weight = self.tensor(module.weight)
        bias = torch.zeros_like(weight) if module.bias is None else self.tensor(module.bias)
        return NormWeights(weight, bias, module.eps)

    def rotation(self, rotary: Any, prefix: str = "") -> Rotation:
        """The angles of a model's rotary module, up to its last position.

        Args:
            rotary: the module.
            prefix: of its tensors, where kinds of layers differ.

        Raises:
            ValueError: they depend on the length of the row.
        """
        kind = rotary.rope_type
        kind = kind[prefix.rstrip("_")] if isinstance(kind, dict) else kind
        if kind not in _ROPE_TYPES:
            raise ValueError(f"model: expected rotary positions of {_ROPE_TYPES}, got {kind!r}")
        frequencies = getattr(rotary, f"{prefix}inv_freq").detach().float()
        scaling = getattr(rotary, f"{prefix}attention_scaling")
        places = torch.arange(self.config.max_position_embeddings, device=frequencies.device)
        angles = places.float()[:, None] * frequencies
        return Rotation(self.exact(angles.cos() * scaling), self.exact(angles.sin() * scaling))

    def attention(
        self,
        query: nn.Linear,
        key: nn.Linear,
        value: nn.Linear,
        out: nn.Linear,
        num_heads: int,
        form: AttentionForm | None = None,
    ) -> Attention:
        """Self-attention from the modules of its four products."""
        for module in (query, key, value):
            expect(module, nn.Linear, "every product of a layer")
        parts = tuple((module.weight, module.bias) for module in (query, key, value))
        return self.fused_attention(parts, out, num_heads, form)

    def fused_attention(
        self,
        parts: tuple[tuple[Tensor, Tensor | None], ...],
        out: nn.Linear,
        num_heads: int,
        form: AttentionForm | None = None,
    ) -> Attention:
        """Self-attention from weight and bias of queries, keys and values."""
        form = form or AttentionForm()
        query, *rest = parts
        size = len(query[0]) // num_heads
        behind = self.linear(out)
        if self.is_last and self.one_query:
            form = form._replace(last_queries=self.one_query == "last")
            first, others = self.product(query), self.product(*rest)
            return Attention(first, others, behind, num_heads, size, form)
        return Attention(self.product(*parts), None, behind, num_heads, size, form)

    def embedding(
        self,
        words: Tensor,
        types: Tensor | None,
        positions: Tensor | None,
        norm: nn.LayerNorm | None,
        padding_id: int | None = None,
        by_place: bool = False,
        trailing_id: int | None = None,
        **options: Any,
    ) -> Embedding:
        """The tables ``[entries, E]``; see `consistentee_ext.layers.Embedding`.

        In a model with positions but no segments, one row of zeros stands for these.
        """
        if types is None and positions is not None:
            types = torch.zeros_like(words[:1])
        limits = InputLimits(
            vocab_size=len(words),
            type_vocab_size=1 if types is None else len(types),
            num_positions=self.config.max_position_embeddings
            if positions is None
            else len(positions),
            padding_id=padding_id,
            by_place=by_place,
            trailing_id=trailing_id,
        )
        return Embedding(
            words=self.tensor(words),
            types=None if types is None else self.tensor(types),
            positions=None if positions is None else self.tensor(positions),
            norm=None if norm is None else self.norm(norm),
            limits=limits,
            **options,
        )

    def normed_words(
        self, words: Tensor, norm: nn.LayerNorm, types: Tensor | None = None
    ) -> Tensor:
        """``norm(word + type 0)`` of the whole vocabulary, where nothing else is added: embedding
        is then a copy.
        """
        total = words.detach().float()
        if types is not None:
            total = total + types.detach().float()[0]
        bias = None if norm.bias is None else norm.bias.detach().float()
        weight = norm.weight.detach().float()
        return nn.functional.layer_norm(total, weight.shape, weight, bias, norm.eps)

    def blocks(
        self, layers: Iterable[Any], read: Callable[[Reader, Any], Block]
    ) -> tuple[Block, ...]:
        """The blocks of all layers, each by `read`; layers that are one module are one block."""
        layers = list(layers)
        blocks: list[Block] = []
        shared: dict[int, Block] = {}
        for number, layer in enumerate(layers, start=1):
            is_last = number == len(layers)
            again = any(layer is other for other in layers[number:])
            block = shared.get(id(layer))
            if block is None or is_last:
                block = read(replace(self, is_last=is_last, in_block=True), layer)
            if again:
                shared[id(layer)] = block
            elif self.consume:
                layer.to("meta")
            blocks.append(block)
        return tuple(blocks)
