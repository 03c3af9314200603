"""`FastEarlyExitEncoder.predict`: texts in any order and number, in batches of so many tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.models import tiny_model

from consistentee_ext import FastEarlyExitEncoder


class WordTokenizer:
    """Enough of a tokenizer for `predict`: a word's id is its length."""

    def __call__(self, first: list[str], second: list[str] | None = None, **options: Any) -> dict:
        assert options["padding"] is False
        pairs = zip(first, second or [""] * len(first), strict=True)
        rows = [[len(word) for word in f"{a} {b}".split()] for a, b in pairs]
        return {"input_ids": [row[: options["max_length"]] for row in rows]}


@pytest.mark.parametrize("batch_tokens", [1, 7, 64, 4096])
def test_predict_keeps_order(batch_tokens: int) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=WordTokenizer())
    texts = [" ".join("a" * (1 + (i * j) % 9) for j in range(1 + i * 7 % 11)) for i in range(25)]
    found = encoder.predict(texts, batch_tokens=batch_tokens)
    for row, text in enumerate(texts):
        ids = torch.tensor([[len(word) for word in text.split()]])
        alone = encoder(ids)
        assert alone.exit_layers[0] == found.exit_layers[row]
        torch.testing.assert_close(alone.logits[0], found.logits[row], atol=1e-4, rtol=0)


def test_predict_takes_pairs_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=WordTokenizer())
    pairs = encoder.predict([("a bb", "ccc"), ("a", "bb")], show_progress_bar=True)
    singles = encoder.predict(["a bb ccc", "a bb"])
    assert torch.equal(pairs.logits, singles.logits)
    assert capsys.readouterr().err == "predict: 2 of 2 in 00:00, 00:00 left\n"
    assert encoder.predict([]).logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "texts: expected a sequence of strings or of pairs, got str"),
        (["a", 3], "texts: expected a string in row 1, got int"),
        ([("a", "b"), "c"], "texts: expected a pair of strings in row 1, got str"),
        ([("a", "b", "c")], "texts: expected a pair of strings in row 0, got tuple"),
    ],
)
def test_predict_names_what_is_wrong(texts: Any, message: str) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=WordTokenizer())
    with pytest.raises(TypeError, match=message):
        encoder.predict(texts)


def test_predict_needs_a_tokenizer_and_a_budget() -> None:
    with pytest.raises(ValueError, match="tokenizer: expected one"):
        FastEarlyExitEncoder(tiny_model()).predict(["a"])
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=WordTokenizer())
    with pytest.raises(ValueError, match="batch_tokens: expected at least 1, got 0"):
        encoder.predict(["a"], batch_tokens=0)
