"""Small random decoders of every backbone, at whose weights every mistake shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.rules import Arrival

VOCABULARY = 61
FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
SLIDING = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
# What a case changes of its family.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, biases and tied": (
        "llama",
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "llama 3": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "qwen2": ("qwen2", {}),
    "qwen2, windows": ("qwen2", SLIDING | {"use_sliding_window": True}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, window": ("mistral", {"sliding_window": 6, "head_dim": 16}),
    "gemma": ("gemma", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma 3": (
        "gemma3_text",
        SLIDING
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 20,
            "final_logit_softcapping": 3.0,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        },
    ),
}


def tiny_decoder(case: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    kind, fields = CASES[case]
    config = AutoConfig.for_model(kind, **(FIELDS | fields | changes))
    return _scrambled(AutoModelForCausalLM.from_config(config), seed)


def tiny_causal_lm(
    case: str = "llama", seed: int = 0, decoder: dict[str, Any] | None = None, **fields: Any
) -> ConsistentEEForCausalLM:
    """A model whose exits disagree, and whose policies do from token to token."""
    kind, of_case = CASES[case]
    backbone = AutoConfig.for_model(kind, **(FIELDS | of_case | (decoder or {})))
    defaults: dict[str, Any] = {"exit_layers": [1, 2, 3], "rank": 4}
    fields = defaults | fields
    return _scrambled(ConsistentEEForCausalLM(ConsistentEECausalLMConfig(backbone, **fields)), seed)


def _scrambled(model: Any, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.5 if ".policy." in name else 0.25
            noise = torch.empty_like(parameter).normal_(std=scale, generator=generator)
            parameter.copy_(parameter + noise if "norm" in name else noise)
    return model.eval()


def random_rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    """Token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths
    ]


def left_padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """As a tokenizer gives them that pads on the left, with 0."""
    width = max(map(len, rows))
    ids = [[0] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


@dataclass(frozen=True)
class PatternRule:
    """Answer token n of row b leaves behind layer ``exits[b, n - 1]``."""

    exits: torch.Tensor

    def __call__(self, arrival: Arrival) -> torch.Tensor:
        numbers = arrival.numbers.clamp(1, self.exits.shape[1])
        return self.exits[arrival.rows, numbers - 1] == arrival.layer

    def reads_logits(self, layer: int) -> bool:
        return False


def random_exits(rows: int, tokens: int, seed: int = 0) -> torch.Tensor:
    """Layers of 1 to 4."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 5, (rows, tokens), generator=generator)
