"""Rows of prompts and answers, from files to batches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from support.decoder_folder import WORDS, tokenizer
from support.files import write

from consistentee.generation.data import (
    answered_rows,
    collate,
    encode_completions,
    encode_prompts,
    load_folder,
    load_rows,
    split_prompts,
    tokens_of_rows,
)
from consistentee.generation.sampler import TokenSampler
from consistentee_ext.generation.prompts import encode_prompt


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


def test_a_folder_of_rows(tmp_path: Path) -> None:
    for name in ("train", "dev"):
        write(tmp_path / f"{name}.jsonl", json.dumps({"prompt": name, "completion": "a"}) + "\n")
    train, dev = load_folder(tmp_path, completions=True)
    assert train.to_dict() == {"prompt": ["train"], "completion": ["a"]}
    assert dev["prompt"] == ["dev"]
    write(tmp_path / "train.jsonl", '{"prompt": "alone", "more": 1}\n')
    assert load_folder(tmp_path, completions=False)[0].to_dict() == {"prompt": ["alone"]}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"}', "expected a column 'prompt', got text"),
        ('{"prompt": "a"}', "expected a column 'completion', got prompt"),
        ('{"prompt": " ", "completion": "b"}', "row 1: expected text in 'prompt', got ' '"),
        ('{"prompt": "a", "completion": ""}', "row 1: expected text in 'completion', got ''"),
        ('{"prompt": 3, "completion": "b"}', "expected text in 'prompt', got int64"),
        ("{", "expected jsonl in UTF-8, got: line 1: .*"),
        ("", "expected at least one row, got none"),
    ],
)
def test_rows_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    file = write(tmp_path / "train.jsonl", line + "\n")
    with pytest.raises(ValueError, match=rf"train.jsonl: {message}$"):
        load_rows(file, completions=True)


def test_prompts_are_split_once(tmp_path: Path) -> None:
    rows = Dataset.from_dict({"prompt": [str(n) for n in range(40)]})
    train, dev = split_prompts(rows, seed=3)
    assert (len(train), len(dev)) == (36, 4)
    assert sorted([*train["prompt"], *dev["prompt"]], key=int) == rows["prompt"][:]
    assert split_prompts(rows, seed=3)[1]["prompt"] == dev["prompt"]
    assert split_prompts(rows, seed=4)[1]["prompt"] != dev["prompt"]
    with pytest.raises(ValueError, match=r"^prompts: expected at least two, got 1$"):
        split_prompts(rows.select([0]), seed=3)


def test_a_prompt_as_it_stands_and_through_a_chat_template() -> None:
    assert encode_prompt(tokenizer(), "say b") == ids("say b")
    chat = tokenizer()
    chat.chat_template = (
        "{% for m in messages %}<s> {{ m['content'] }} </s>{% endfor %}"
        "{% if add_generation_prompt %} say{% endif %}"
    )
    assert encode_prompt(chat, "b a") == ids("<s> b a </s> say")


def test_prompts_and_completions_as_tokens() -> None:
    rows = Dataset.from_dict({"prompt": ["say a", "say a b c"], "completion": ["d", "a b c d"]})
    assert encode_prompts("train", rows, tokenizer(), 4) == [ids("say a"), ids("say a b c")]
    with pytest.raises(
        ValueError, match=r"^dev: row 2: expected a prompt of 1 to 3 tokens, .*, got 4$"
    ):
        encode_prompts("dev", rows, tokenizer(), 3)
    completions = encode_completions(rows, tokenizer(), 1, 4)
    assert completions == [ids("d </s>"), ids("a b c d")]


def test_rows_and_batches() -> None:
    prompts, answers = [[3, 4], [3], [3, 5, 6]], [[7, 8, 1], [1], [9, 1]]
    rows = answered_rows("train", prompts, answers)
    assert rows["input_ids"] == [[3, 4, 7, 8, 1], [3, 5, 6, 9, 1]]  # an end alone cannot leave
    assert tokens_of_rows(rows) == [2, 1]
    one = {"input_ids": [3, 7, 1], "prompt_length": 1, "length": 3, "hardness": [0, 2, 0]}
    other = {"input_ids": [3, 1], "prompt_length": 1, "length": 2, "hardness": [0, 0]}
    batch = {name: tensor.tolist() for name, tensor in collate([one, other]).items()}
    assert batch == {
        "input_ids": [[3, 7, 1], [3, 1, 0]],
        "hardness": [[0, 2, 0], [0, 0, 0]],
        "prompt_lengths": [1, 1],
        "lengths": [3, 2],
    }
    with pytest.raises(ValueError, match=r"^dev: expected answers of at least two tokens, got n"):
        answered_rows("dev", [[3]], [[1]])


@pytest.mark.parametrize(("budget", "batch_size"), [(1, 2), (30, 2), (100, 3), (500, 4)])
def test_a_budget_in_tokens(monkeypatch: pytest.MonkeyPatch, budget: int, batch_size: int) -> None:
    monkeypatch.setattr("consistentee.generation.sampler.CHECKPOINT_TOKENS", 30)
    tokens = [1 + row % 5 for row in range(20)]  # 60 in all
    sampler = TokenSampler(tokens, tokens, budget, batch_size, seed=1)
    assert sampler.epochs == max(1, round(budget / 30))
    parts = []
    for epoch in range(sampler.epochs):
        sampler.set_epoch(epoch)
        parts.append(list(sampler))
        assert list(sampler) == parts[-1]
        assert len(parts[-1]) == len(sampler) == sampler.steps * batch_size
    rows = [row for part in parts for row in part]
    total = sum(tokens[row] for row in rows)
    assert budget <= total < budget + 5 * batch_size * sampler.epochs + 5
    passes = [sorted(rows[first : first + 20]) for first in range(0, len(rows) - 19, 20)]
    assert passes == [list(range(20))] * len(passes)
    assert len(rows) < 40 or rows[:20] != rows[20:40]
    other = TokenSampler(tokens, tokens, budget, batch_size, seed=2)
    assert other.rows != sampler.rows
