"""Texts to windows of tokens, and to batches of so many tokens at most."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.letters import tokenizer
from support.models import tiny_model

from consistentee_ext import FastEarlyExitEncoder, tokens
from consistentee_ext.tokens import check_budget, token_budget_batches


def test_by_hand() -> None:
    # Longest first, ties in the order given: 9 | 5 4 | 4 3 2 with a budget of 9.
    assert token_budget_batches([4, 9, 5, 4, 2, 3], 9) == [[1], [2, 0], [3, 5, 4]]
    assert token_budget_batches([20, 1], 9) == [[0], [1]]
    assert token_budget_batches([], 9) == []


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 80))
def test_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    batches = token_budget_batches(lengths, budget)
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or sum(lengths[row] for row in batch) <= budget


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)])
def test_bad_budget(value: Any, error: type) -> None:
    with pytest.raises(error, match="batch_tokens: expected"):
        check_budget(value)


class Words:
    """A tokenizer: numbers for words; counts the texts of each call."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, *columns: list[str], max_length: int, **options: Any) -> dict[str, Any]:
        self.calls.append(len(columns[0]))
        rows = [
            [int(word) for text in row for word in text.split()]
            for row in zip(*columns, strict=True)
        ]
        return {"input_ids": [row[:max_length] for row in rows]}


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("window", [1, 3, 7, 100])
def test_windows_give_what_one_piece_gives(
    monkeypatch: pytest.MonkeyPatch, paired: bool, window: int
) -> None:
    encoder = FastEarlyExitEncoder(tiny_model(seed=3), threshold=0.6)
    texts: Any = [" ".join(map(str, range(n, 2 * n + 1))) for n in (3, 9, 1, 40, 2, 7, 7)]
    if paired:
        texts = [(text, "5 6") for text in texts]
    expected = encoder.predict(texts, Words())
    monkeypatch.setattr(tokens, "WINDOW", window)
    words = Words()
    found = encoder.predict(texts, words, batch_tokens=30)
    assert max(words.calls) <= window
    assert sum(words.calls) == len(texts)
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    assert encoder.predict([], words).logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("a", "expected a sequence of strings or of pairs, got str"),
        ([1, "a"], "expected a string in row 0, got int"),
        (["a", None], "expected a string in row 1, got NoneType"),
        ([("a", "b"), "a"], "expected a pair of strings in row 1, got str"),
        ([("a",)], "expected a pair of strings in row 0, got tuple"),
    ],
)
def test_bad_texts_are_named_before_any_work(texts: Any, message: str) -> None:
    words = Words()
    with pytest.raises(TypeError, match=f"texts: {message}"):
        FastEarlyExitEncoder(tiny_model()).predict(texts, words)
    assert words.calls == []


def test_half_a_character_is_named_by_its_row() -> None:
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=tokenizer())
    for texts in (["abc", "a\ud800b"], [("abc", "x"), ("a", "\ud800b")]):
        with pytest.raises(ValueError, match=r"texts: .* half a character, '\\ud800', in row 1$"):
            encoder.predict(texts)


def test_rows_that_were_done_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "WINDOW", 3)
    encoder = FastEarlyExitEncoder(tiny_model(), tokenizer=(words := Words()))
    texts = [" ".join(map(str, range(n, 2 * n + 1))) for n in (3, 9, 1, 4, 2, 7, 5, 6)]
    whole = encoder.predict(texts)
    words.calls.clear()
    parts = list(encoder.predict_windows(texts, first_row=2))
    assert words.calls == [len(part.logits) for part in parts] == [3, 3]
    found = torch.cat([part.logits for part in parts])
    torch.testing.assert_close(found, whole.logits[2:], atol=1e-5, rtol=0)
