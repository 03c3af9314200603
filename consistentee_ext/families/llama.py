"""Llama, Mistral, Qwen2, Qwen3, Gemma and Gemma 3 as classifiers: causal, the last token is read.

And EuroBERT and UltraBERT, which have the same modules without being causal.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from consistentee_ext.families.reader import ClassifierHead, Reader, expect
from consistentee_ext.layers import Block, Mlp, Stack
from consistentee_ext.weights import AttentionForm, Rotation

LAST_NORM: str | None = "norm"


def read_stack(model: Any, reader: Reader) -> Stack:
    """A `LlamaModel`, or a model with the same modules."""
    config = reader.config
    words = model.embed_tokens.weight
    scale = getattr(model.embed_tokens, "scalar_embed_scale", None)
    if scale is not None:
        words = words.detach() * scale
    causal = model.layers[0].self_attn.is_causal
    embedding = reader.embedding(
        words,
        None,
        None,
        None,
        by_place=True,
        trailing_id=config.pad_token_id if causal and reader.is_classifier else None,
    )
    rotations: dict[str, Rotation] = {}

    def read_block(reader: Reader, layer: Any) -> Block:
        kind = config.layer_types[number_of(layer)] if _has_kinds(model) else ""
        if kind not in rotations:
            prefix = f"{kind}_" if kind else ""
            rotations[kind] = reader.rotation(model.rotary_emb, prefix)
        return _read_block(reader, layer, causal, rotations[kind])

    numbers = {id(layer): number for number, layer in enumerate(model.layers)}

    def number_of(layer: Any) -> int:
        return numbers[id(layer)]

    return Stack(embedding, reader.blocks(model.layers, read_block))


def _has_kinds(model: Any) -> bool:
    """Whether the angles differ by the kind of layer."""
    return isinstance(model.rotary_emb.rope_type, dict)


def _read_block(reader: Reader, layer: Any, causal: bool, rotation: Rotation) -> Block:
    attention, mlp, config = layer.self_attn, layer.mlp, reader.config
    # The modules' windows count the query itself.
    window = getattr(attention, "sliding_window", None)
    if window is None and config.model_type == "mistral":
        window = config.sliding_window
    reach = None if window is None else window - 1
    low = 0 if causal else None if reach is None else -reach
    has_norms = hasattr(attention, "q_norm")
    form = AttentionForm(
        num_kv_heads=config.num_key_value_heads,
        scale=attention.scaling,
        low=low,
        high=reach,
        rotation=rotation,
        query_norm=reader.norm(attention.q_norm) if has_norms else None,
        key_norm=reader.norm(attention.k_norm) if has_norms else None,
    )
    sandwich = hasattr(layer, "pre_feedforward_layernorm")
    mlp_norm = layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    return Block(
        attention=reader.attention(
            attention.q_proj,
            attention.k_proj,
            attention.v_proj,
            attention.o_proj,
            config.num_attention_heads,
            form,
        ),
        attention_norm=reader.norm(layer.input_layernorm),
        mlp=Mlp(
            up=reader.linear(mlp.up_proj),
            down=reader.linear(mlp.down_proj),
            gate=reader.linear(mlp.gate_proj, activation=activation),
        ),
        mlp_norm=reader.norm(mlp_norm),
        norm_first=True,
        attention_out_norm=reader.norm(layer.post_attention_layernorm) if sandwich else None,
        mlp_out_norm=reader.norm(layer.post_feedforward_layernorm) if sandwich else None,
    )


def read_head(model: Any) -> ClassifierHead:
    """The head of a `LlamaForSequenceClassification`, or of an encoder with its modules."""
    if hasattr(model, "score"):
        return ClassifierHead(model.score, pooling="last")
    if hasattr(model, "dense"):  # EuroBERT
        expect(model.activation, nn.GELU, "the head's activation")
        late = model.classifier_pooling == "late"
        pooling = "cls" if model.classifier_pooling == "bos" else "mean"
        return ClassifierHead(model.classifier, model.dense, "gelu", pooling, pools_states=late)
    expect(model.head, nn.Identity, "the head")
    return ClassifierHead(model.classifier, pooling=model.config.classifier_pooling)
