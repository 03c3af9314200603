"""Every family, small, with what may differ within it; weights at which every mistake shows."""

from __future__ import annotations

from typing import Any

import torch
from support.models import scramble
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from consistentee_ext import FastEarlyExitEncoder

VOCABULARY, PAD = 60, 1
FIELDS: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": PAD,
    "num_labels": 3,
}
DEBERTA: dict[str, Any] = {
    "relative_attention": True,
    "position_buckets": 8,  # so few that the longest rows come to the logarithmic ones
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "type_vocab_size": 0,
    "pooler_hidden_size": 32,
}
MODERN: dict[str, Any] = {
    "local_attention": 6,
    "global_attn_every_n_layers": 2,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "cls_token_id": 2,
    "sep_token_id": 3,
}
DECODER: dict[str, Any] = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3}
# What a case changes of its family.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "albert": ("albert", {"embedding_size": 16, "num_hidden_groups": 1}),
    "albert with groups": (
        "albert",
        {"embedding_size": 16, "num_hidden_groups": 2, "inner_group_num": 2},
    ),
    "bert": ("bert", {}),
    "bert with one segment": ("bert", {"type_vocab_size": 1, "hidden_act": "relu"}),
    "bert with another gelu": ("bert", {"hidden_act": "gelu_new"}),
    "camembert": ("camembert", {"type_vocab_size": 1}),
    "data2vec-text": ("data2vec-text", {"layer_norm_eps": 1e-5}),
    "deberta": ("deberta", DEBERTA),
    "deberta, few distances": (
        "deberta",
        DEBERTA | {"max_relative_positions": 7, "position_biased_input": True},
    ),
    "deberta-v3": ("deberta-v2", DEBERTA),
    "deberta-v2, keys of their own": (
        "deberta-v2",
        DEBERTA | {"share_att_key": False, "position_buckets": -1, "type_vocab_size": 2},
    ),
    "deberta-v2, one term": (
        "deberta-v2",
        DEBERTA | {"pos_att_type": ["c2p"], "norm_rel_ebd": "none", "position_biased_input": True},
    ),
    "deberta-v2 with a convolution": ("deberta-v2", DEBERTA | {"conv_kernel_size": 3}),
    "deberta-v2 with a wide convolution": (
        "deberta-v2",
        DEBERTA | {"conv_kernel_size": 5, "conv_act": "gelu", "num_hidden_layers": 2},
    ),
    "deberta-v2, narrow": ("deberta-v2", DEBERTA | {"embedding_size": 16}),
    "distilbert": ("distilbert", {"activation": "gelu"}),
    "distilbert with sinusoids": ("distilbert", {"sinusoidal_pos_embds": True}),
    "electra": ("electra", {"embedding_size": 32}),
    "electra, narrow": ("electra", {"embedding_size": 16}),
    "ernie": ("ernie", {}),
    "ernie with tasks": ("ernie", {"use_task_id": True}),
    "eurobert": ("eurobert", DECODER | {"classifier_pooling": "late"}),
    "eurobert, mean": ("eurobert", DECODER | {"classifier_pooling": "mean"}),
    "eurobert, first": ("eurobert", DECODER | {"classifier_pooling": "bos"}),
    "gemma": ("gemma", DECODER | {"head_dim": 16}),
    "gemma3": (
        "gemma3_text",
        DECODER
        | {
            "head_dim": 16,
            "query_pre_attn_scalar": 10,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "gte": ("gte", {"type_vocab_size": 2}),
    "gte without segments": ("gte", {"type_vocab_size": 0}),
    "jina": ("jina_embeddings_v3", {"type_vocab_size": 1}),
    "llama": ("llama", DECODER),
    "llama with biases": ("llama", DECODER | {"attention_bias": True, "num_key_value_heads": 4}),
    "mistral": ("mistral", DECODER | {"sliding_window": 5}),
    "modernbert": ("modernbert", MODERN | {"classifier_pooling": "cls"}),
    "modernbert, mean": (
        "modernbert",
        MODERN
        | {
            "classifier_pooling": "mean",
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
        },
    ),
    "megatron-bert": ("megatron-bert", {}),
    "mpnet": ("mpnet", {}),
    "nomic": ("nomic_bert", {"type_vocab_size": 2}),
    "qwen2": ("qwen2", DECODER),
    "qwen3": ("qwen3", DECODER | {"head_dim": 16}),
    "rembert": ("rembert", {"input_embedding_size": 16}),
    "roberta": ("roberta", {"type_vocab_size": 1}),
    "roberta, padding id 0": ("roberta", {"type_vocab_size": 2, "pad_token_id": 0}),
    "roberta-prelayernorm": ("roberta-prelayernorm", {"type_vocab_size": 1}),
    "roformer": ("roformer", {"embedding_size": 16, "hidden_act": "gelu"}),
    "roformer, as wide": ("roformer", {"embedding_size": 32, "hidden_act": "relu"}),
    "ultrabert": (
        "ultrabert",
        DECODER
        | {
            "sliding_window": 3,
            "classifier_pooling": "mean",
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "ultrabert, first": ("ultrabert", DECODER | {"sliding_window": 3, "classifier_pooling": "cls"}),
    "xlm-roberta": ("xlm-roberta", {"type_vocab_size": 1}),
    "xlm-roberta-xl": ("xlm-roberta-xl", {"type_vocab_size": 1}),
}


def blown_up(model: nn.Module, seed: int) -> nn.Module:
    """Weights at which a wrong position, segment, norm or activation changes every logit."""
    scramble(model, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name.lower() and name.endswith("weight"):
                parameter.normal_(1.0, 0.3, generator=generator)
            elif "policy" in name:  # its probabilities stay apart from 0 and 1
                parameter.normal_(0.0, 0.1, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.3, generator=generator)
            elif "embed_positions" in name:  # angles
                pass
            elif "embed" in name:
                parameter.normal_(0.0, 0.7, generator=generator)
            else:
                parameter.normal_(0.0, 0.35, generator=generator)
    return model.eval()


def config_of(case: str) -> Any:
    kind, changes = CASES[case]
    return AutoConfig.for_model(kind, **(FIELDS | changes))


def classifier_of(config: Any, seed: int = 0) -> Any:
    torch.manual_seed(0)  # tables aside, every weight is drawn again
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    return blown_up(model, seed)


def classifier(case: str, seed: int = 0) -> Any:
    return classifier_of(config_of(case), seed)


def sixteen_bit_errors(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean distance of bfloat16 logits to float32 ones, ours and Hugging Face's, ``[2]``."""
    with torch.no_grad():
        exact = model(**batch).logits
        found = FastEarlyExitEncoder(model, dtype=torch.bfloat16)(**batch).logits
        eager = model.bfloat16()(**batch).logits.float()
    return torch.stack([(found - exact).abs().mean(), (eager - exact).abs().mean()])
