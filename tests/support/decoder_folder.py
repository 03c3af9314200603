"""A decoder's folder as a user has it, and rows to train it on: answers go on in the alphabet."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from consistentee.generation.settings import GenerationSettings

LETTERS = list("abcdefghijklmnop")
WORDS = ["<s>", "</s>", "<unk>", "say", *LETTERS]
SETTINGS = GenerationSettings(
    max_new_tokens=6,
    tokens=240,
    policy_tokens=60,
    batch_size=4,
    exit_learning_rate=1e-2,
    policy_learning_rate=1e-2,
    bf16=False,
)
POSITIONS = 32


def tokenizer(**special: Any) -> PreTrainedTokenizerFast:
    model = Tokenizer(WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    model.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **special},
    )


def save_decoder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Random, with weights at which its greedy text varies, tied, without a pad token."""
    fields: dict[str, Any] = {
        "vocab_size": len(WORDS),
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": POSITIONS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "tie_word_embeddings": True,
    }
    torch.manual_seed(seed)
    decoder = LlamaForCausalLM(LlamaConfig(**(fields | changes)))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "norm" not in name:
                parameter.normal_(std=0.2)
    decoder.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def rows(number: int, seed: int) -> list[dict[str, str]]:
    choose = random.Random(seed)
    found = []
    for _ in range(number):
        said = choose.choices(LETTERS, k=choose.randint(1, 4))
        said[-1] = choose.choice(LETTERS[:-4])
        first = LETTERS.index(said[-1]) + 1
        answer = LETTERS[first : first + choose.randint(2, 4)]
        found.append({"prompt": f"say {' '.join(said)}", "completion": " ".join(answer)})
    return found


def tables(train: int = 40, dev: int = 8) -> tuple[Dataset, Dataset]:
    return Dataset.from_list(rows(train, 1)), Dataset.from_list(rows(dev, 2))


def save_rows(folder: Path, train: int = 40, dev: int = 8) -> Path:
    for name, number, seed in (("train", train, 1), ("dev", dev, 2)):
        lines = [json.dumps(row) + "\n" for row in rows(number, seed)]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder
