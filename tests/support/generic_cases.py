"""Models of no family here that run as they are, small; weights at which every mistake shows."""

from __future__ import annotations

from typing import Any

from support.family_cases import DECODER, FIELDS, classifier_of
from transformers import AutoConfig

MOE: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
HALF = 4  # of a head's numbers, whose angles LongRoPE scales one by one
# What a case changes of its model type.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "arcee": ("arcee", DECODER),
    "ctrl": ("ctrl", {"dff": 48}),
    "deepseek_v3, values of another size": (
        "deepseek_v3",
        {
            "bos_token_id": 2,
            "eos_token_id": 3,
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 4,
            "v_head_dim": 6,
            "first_k_dense_replace": 3,
        },
    ),
    "esm": ("esm", {"mask_token_id": 4, "position_embedding_type": "rotary"}),
    "esm, a table of positions": (
        "esm",
        {"mask_token_id": 4, "position_embedding_type": "absolute", "token_dropout": False},
    ),
    "exaone4": (
        "exaone4",
        DECODER
        | {
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gemma2": (
        "gemma2",
        DECODER
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 3.0,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "glm": ("glm", DECODER | {"head_dim": 8}),
    "gpt2": ("gpt2", {"bos_token_id": 2, "eos_token_id": 3}),
    "gpt_neox": ("gpt_neox", {"bos_token_id": 2, "eos_token_id": 3}),
    "helium": ("helium", DECODER | {"head_dim": 8}),
    "llama, dynamic angles": (
        "llama",
        DECODER | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "mixtral": ("mixtral", DECODER | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "modernbert-decoder": (
        "modernbert-decoder",
        {
            "bos_token_id": 2,
            "eos_token_id": 3,
            "local_attention": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "nemotron": ("nemotron", DECODER),
    "olmo": ("olmo", DECODER),
    "olmo2": ("olmo2", DECODER),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "phi": ("phi", DECODER),
    "phi3": ("phi3", DECODER | {"sliding_window": 5}),
    "phi3, long angles": (
        "phi3",
        DECODER
        | {
            "max_position_embeddings": 80,
            "original_max_position_embeddings": 40,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 1.0,
                "original_max_position_embeddings": 40,
                "short_factor": [1.0 + i / HALF for i in range(HALF)],
                "long_factor": [4.0 + i for i in range(HALF)],
            },
        },
    ),
    "qwen2_moe": ("qwen2_moe", DECODER | MOE),
    "roc_bert": ("roc_bert", {"enable_pronunciation": False, "enable_shape": False}),
    "smollm3": ("smollm3", DECODER),
    "starcoder2": ("starcoder2", DECODER | {"sliding_window": 5}),
}
# Of which transformers has no classifier: backbones of ours alone.
BACKBONES: dict[str, tuple[str, dict[str, Any]]] = {
    "cohere": ("cohere", DECODER),
    "granite": ("granite", DECODER | {"embedding_multiplier": 3.0, "residual_multiplier": 0.5}),
}


def config_of(case: str) -> Any:
    kind, changes = (CASES | BACKBONES)[case]
    return AutoConfig.for_model(kind, **(FIELDS | changes))


def classifier(case: str, seed: int = 0) -> Any:
    return classifier_of(config_of(case), seed)
