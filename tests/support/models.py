"""Small random models that the tests share; no test needs a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizerFast

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext.configuration import ConsistentEEConfig

VOCABULARY = 120


def tiny_bert_config(**changes: object) -> BertConfig:
    fields: dict = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    }
    return BertConfig(**(fields | changes))


def scramble(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Weights large enough that layers, classes and policies disagree from row to row."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "LayerNorm" not in name:
                scale = 0.3 if "heads" in name or "classifier" in name else 0.15
                parameter.normal_(std=scale, generator=generator)
    return model.eval()


def tiny_model(
    pooling: str = "mean",
    policy_input: str = "both",
    classes: int = 3,
    seed: int = 1,
    **bert: object,
) -> ConsistentEEForSequenceClassification:
    config = ConsistentEEConfig(
        tiny_bert_config(**bert), pooling=pooling, policy_input=policy_input, num_labels=classes
    )
    return scramble(ConsistentEEForSequenceClassification(config), seed)


def tiny_classifier(
    classes: int = 3, seed: int = 0, **bert: object
) -> BertForSequenceClassification:
    config = tiny_bert_config(num_labels=classes, **bert)
    return scramble(BertForSequenceClassification(config), seed)


def random_batch(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """A padded batch of rows of the given lengths, with random padding ids that must not matter."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths, default=0))
    columns = torch.arange(shape[1])
    return {
        "input_ids": torch.randint(0, VOCABULARY, shape, generator=generator),
        "attention_mask": (columns < torch.tensor(lengths)[:, None]).long(),
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }


def save_backbone(folder: Path, words: Sequence[str], **bert: object) -> None:
    """A random encoder of three layers, and a tokenizer of whole words."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = tiny_bert_config(vocab_size=len(words), **shape, **bert)
    BertModel(config).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(words)}
    BertTokenizerFast(vocab=numbers).save_pretrained(folder)
