"""Small random models that the tests share; no test needs a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel, BertTokenizer

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.inputs import PackedInputs, pack_inputs
from consistentee_ext.packed import InputLimits

VOCABULARY = 120
SEPARATOR = 3
SEEDS = {"cls": 3, "mean": 3, "pair": 4}  # of models whose rows leave at many layers, by pooling
Model = TypeVar("Model", bound=torch.nn.Module)


def tiny_bert_config(**changes: Any) -> BertConfig:
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 512,
    }
    return BertConfig(**(fields | changes))


def scramble(model: Model, seed: int) -> Model:
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
    problem_type: str | None = None,
    **bert: Any,
) -> ConsistentEEForSequenceClassification:
    config = ConsistentEEConfig(
        tiny_bert_config(**bert),
        pooling=pooling,
        policy_input=policy_input,
        num_labels=classes,
        problem_type=problem_type,
        separator_id=SEPARATOR if pooling == "pair" else None,
    )
    return scramble(ConsistentEEForSequenceClassification(config), seed)


def tiny_classifier(classes: int = 3, seed: int = 0, **bert: Any) -> BertForSequenceClassification:
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


def as_pairs(batch: dict[str, torch.Tensor], seed: int = 0) -> dict[str, torch.Tensor]:
    """The batch with a separator somewhere in each row; where it is the last token, the row is one
    text.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = batch["attention_mask"].sum(dim=1, keepdim=True)
    places = (torch.rand(lengths.shape, generator=generator) * lengths).long()
    return batch | {"input_ids": batch["input_ids"].scatter(1, places, SEPARATOR)}


def save_backbone(folder: Path, words: Sequence[str], **bert: Any) -> None:
    """A random encoder of three layers, and a tokenizer of whole words."""
    torch.manual_seed(0)
    shape = {"num_hidden_layers": 3, "num_attention_heads": 2, "max_position_embeddings": 16}
    config = tiny_bert_config(vocab_size=len(words), **shape, **bert)
    BertModel(config).save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(words)}
    BertTokenizer(vocab=numbers).save_pretrained(folder)


def pack(batch: dict[str, torch.Tensor], limits: InputLimits, backend: str = "cpu") -> PackedInputs:
    """The packed tokens of a padded batch on the CPU."""
    names = ("input_ids", "attention_mask", "token_type_ids")
    ids, mask, types = (batch.get(name) for name in names)
    return pack_inputs(ids, mask, types, limits, torch.device("cpu"), backend)
