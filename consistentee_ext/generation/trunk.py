"""A Hugging Face decoder, layer by layer, with keys and values in the caller's hands.

Early exit needs what the library's own pass hides: the keys and values of a token that does not run
a layer, and attention to keys of two streams. The weights are the library's modules, so gradients
reach them. Letters: B rows, S tokens of a row, U keys of a row, H hidden size, D head size, L
layers, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from consistentee_ext.families.guard import check_modules
from consistentee_ext.generation.configuration import check_backbone

Angles = dict[str, tuple[Tensor, Tensor]]  # cosines and sines [B, S, D] for each kind of layer


class Trunk:
    """The layers of a decoder, numbered from 1 to L.

    Args:
        model: a Hugging Face decoder with its LM head, of a ``model_type`` in
            `consistentee_ext.generation.configuration.BACKBONES`.

    Attributes:
        num_layers: L.
        head_layers: what the LM head costs, in layers: its weights over those of a layer.

    Raises:
        ValueError: another model, or one whose modules are not the library's own.
    """

    def __init__(self, model: Any) -> None:
        check_backbone(model.config)
        check_modules(model)
        self.config = model.config
        self.num_layers: int = self.config.num_hidden_layers
        self._model = model.model
        self._lm_head = model.lm_head
        layer = sum(parameter.numel() for parameter in self._layer(1).parameters())
        self.head_layers: float = self._lm_head.weight.numel() / layer
        self._kinds = isinstance(self._model.rotary_emb.rope_type, dict)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Hidden states ``[..., H]`` before layer 1, of tokens ``[...]`` int64."""
        hidden: Tensor = self._model.embed_tokens(input_ids)
        return hidden

    def angles(self, positions: Tensor, like: Tensor) -> Angles:
        """The rotations at positions ``[B, S]`` int64, in the dtype of `like`."""
        rotary = self._model.rotary_emb
        if not self._kinds:
            return {"": rotary(like, positions)}
        return {kind: rotary(like, positions, kind) for kind in rotary.layer_types}

    def window(self, layer: int) -> int | None:
        """How many tokens a query of this layer sees, itself included; None for all before it."""
        if self.config.model_type == "mistral":
            found: int | None = self.config.sliding_window
            return found
        return getattr(self._layer(layer).self_attn, "sliding_window", None)

    def keys_values(self, layer: int, hidden: Tensor, angles: Angles) -> tuple[Tensor, Tensor]:
        """What tokens show to later ones at this layer, ``K = rope(W_K N(h))``, ``V = W_V N(h)``.

        Args:
            layer: in 1..L.
            hidden: h, ``[B, S, H]``, what the layer reads of them.
            angles: of their positions.

        Returns:
            Two ``[B, heads, S, D]``.
        """
        block = self._layer(layer)
        attention = block.self_attn
        inner = rms_norm(block.input_layernorm, hidden)
        keys = _heads(attention.k_proj(inner), attention, "k_norm")
        values = _heads(attention.v_proj(inner), attention, "")
        return _rotate(keys, *angles[self._kind(layer)]), values

    def block(
        self,
        layer: int,
        hidden: Tensor,
        angles: Angles,
        keys: Tensor,
        values: Tensor,
        mask: Tensor,
    ) -> Tensor:
        """Hidden states ``[B, S, H]`` behind this layer.

        Args:
            layer: in 1..L.
            hidden: ``[B, S, H]``, before it.
            angles: of the S tokens.
            keys: ``[B, heads, U, D]``.
            values: ``[B, heads, U, D]``.
            mask: ``[B or 1, 1, S, U]`` bool, the keys that each token sees: at least one.
        """
        block = self._layer(layer)
        attention = block.self_attn
        inner = rms_norm(block.input_layernorm, hidden)
        queries = _heads(attention.q_proj(inner), attention, "q_norm")
        queries = _rotate(queries, *angles[self._kind(layer)])
        seen = scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, scale=attention.scaling, enable_gqa=True
        )
        inner = attention.o_proj(seen.transpose(1, 2).flatten(2))
        # Gemma 3 norms what attention and MLP return as well as what they read.
        norms_results = hasattr(block, "pre_feedforward_layernorm")
        if norms_results:
            inner = rms_norm(block.post_attention_layernorm, inner)
        hidden = hidden + inner
        norm = block.pre_feedforward_layernorm if norms_results else block.post_attention_layernorm
        inner = block.mlp(rms_norm(norm, hidden))
        if norms_results:
            inner = rms_norm(block.post_feedforward_layernorm, inner)
        return hidden + inner

    def last_norm(self, hidden: Tensor) -> Tensor:
        """``N_f(h)``, the norm before the LM head, ``[..., H]``."""
        return rms_norm(self._model.norm, hidden)

    def logits(self, state: Tensor) -> Tensor:
        """The LM head's logits ``[..., V]`` of states ``[..., H]`` behind `last_norm`."""
        logits: Tensor = self._lm_head(state)
        cap = getattr(self.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def _layer(self, layer: int) -> Any:
        return self._model.layers[layer - 1]

    def _kind(self, layer: int) -> str:
        kind: str = self.config.layer_types[layer - 1] if self._kinds else ""
        return kind


def causal_mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """Which keys each query sees: those of its own position and before, within the window.

    Args:
        queries: positions ``[..., S]``.
        keys: positions ``[..., U]``.
        window: as `Trunk.window` says.

    Returns:
        ``[..., S, U]`` bool.
    """
    distance = queries[..., :, None] - keys[..., None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def rms_norm(module: Any, hidden: Tensor) -> Tensor:
    """``w * h / sqrt(mean(h^2) + eps)`` in float32 at least; Gemma's w is its weight and 1.

    The library's modules compute in float32 whatever the dtype; here float64 stays float64.
    """
    is_gemma = type(module).__name__.startswith("Gemma")
    eps: float = module.eps if is_gemma else module.variance_epsilon
    wide = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
    if is_gemma:
        scaled: Tensor = normed * (1.0 + module.weight.to(wide.dtype))
        return scaled.to(hidden.dtype)
    weight: Tensor = module.weight
    return weight * normed.to(hidden.dtype)


def _heads(projected: Tensor, attention: nn.Module, norm: str) -> Tensor:
    """From ``[B, S, heads * D]`` to ``[B, heads, S, D]``, normed where the family does."""
    size: Any = attention.head_dim
    split: Tensor = projected.unflatten(-1, (-1, size))
    if norm and hasattr(attention, norm):
        split = rms_norm(getattr(attention, norm), split)
    return split.transpose(1, 2)


def _rotate(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions: pairs are the two halves of D."""
    first, second = heads.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return heads * cosines[:, None] + turned * sines[:, None]
