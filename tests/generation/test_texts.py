"""Many prompts through few rows: each answer is the one that its prompt gets alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.decoder_folder import LETTERS, WORDS, save_decoder, tokenizer
from support.decoders import random_rows, tiny_causal_lm

from consistentee_ext import FastEarlyExitDecoder, GeneratedText
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.refill import answer_prompts
from consistentee_ext.generation.rules import PolicyRule

ENDS = [2, *range(5, 60, 11)]


@hypothesis.settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=0, max_size=9),
    batch_size=st.integers(1, 10),
    max_new_tokens=st.integers(1, 12),
    threshold=st.sampled_from([1.0, 0.6, 0.4]),
    seed=st.integers(0, 50),
)
def test_refill_changes_no_answer(
    lengths: list[int], batch_size: int, max_new_tokens: int, threshold: float, seed: int
) -> None:
    model = tiny_causal_lm()
    model.config.eos_token_id = ENDS
    engine = FastEarlyExitDecoder(model, threshold=threshold)._engine
    prompts = random_rows(lengths, seed)
    found = dict(answer_prompts(engine, prompts, max_new_tokens, ENDS, batch_size))
    assert sorted(found) == list(range(len(prompts)))
    for row, prompt in enumerate(prompts):
        alone = generate(model, [prompt], max_new_tokens, PolicyRule(threshold))
        assert found[row].tokens == alone.tokens[0]
        assert found[row].exit_layers == [4, *alone.exit_layers[0]]


def test_rows_are_refilled_at_once() -> None:
    """Steps run as many rows as there are prompts for them."""
    model = tiny_causal_lm()
    engine: Any = FastEarlyExitDecoder(model, threshold=0.6)._engine
    rows: list[int] = []
    step = engine._step

    def counted(cache: Any, tokens: Any, slots: Any, positions: Any) -> Any:
        rows.append(len(slots))
        return step(cache, tokens, slots, positions)

    engine._step = counted
    prompts = random_rows([3] * 12, seed=2)
    answers = dict(answer_prompts(engine, prompts, 9, ENDS, 4))
    steps = sum(len(answer.tokens) - 1 for answer in answers.values())
    assert sum(rows) == steps
    tail = next(i for i, n in enumerate(rows) if n < 4)
    assert rows[:tail] == [4] * tail
    assert rows[tail:] == sorted(rows[tail:], reverse=True)
    assert tail >= 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder"))


TEXTS = ["say a b", "say c", "say d e f g h", "say p", "say n o", "say b a", "say f"]


def test_texts_come_in_their_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = FastEarlyExitDecoder.from_pretrained(folder)
    words = tokenizer()
    found = decoder.generate_texts(TEXTS, max_new_tokens=8, batch_size=3, show_progress_bar=True)
    assert "generate: 7 of 7" in capsys.readouterr().err
    assert [type(one) for one in found] == [GeneratedText] * 7
    for text, one in zip(TEXTS, found, strict=True):
        ids = torch.tensor([encode_prompt(words, text)])
        whole = decoder.generate(ids, max_new_tokens=8)
        assert one.tokens == whole[0, ids.shape[1] :].tolist()
        assert one.exit_layers == [4] * len(one.tokens)
        said = [WORDS[token] for token in one.tokens]
        assert one.text.split() == [word for word in said if word in [*LETTERS, "say"]]
    assert len({one.text for one in found}) >= 4
    part = decoder.iterate_texts(TEXTS, max_new_tokens=8, batch_size=2, first_row=4)
    assert list(part) == found[4:]
    assert decoder.generate_texts([], max_new_tokens=3) == []


def test_a_chat_template_is_used(folder: Path) -> None:
    decoder = FastEarlyExitDecoder.from_pretrained(folder)
    plain = decoder.generate_texts(["say a b"], max_new_tokens=4)
    words = tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.content }} p{% endfor %}"
    assert decoder.generate_texts(["say a b"], words, 4) == decoder.generate_texts(
        ["say a b p"], max_new_tokens=4
    )
    assert plain == decoder.generate_texts(["say a b"], max_new_tokens=4)


def test_autocast_and_callers_modes_stay_as_they_are(folder: Path) -> None:
    decoder = FastEarlyExitDecoder.from_pretrained(folder)
    expected = decoder.generate_texts(TEXTS, max_new_tokens=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one, other in zip(
            decoder.iterate_texts(TEXTS, max_new_tokens=6), expected, strict=True
        ):
            assert one == other
            assert torch.is_autocast_enabled("cpu")
            assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize(
    ("prompts", "options", "kind", "message"),
    [
        ("say a", {}, TypeError, "prompts: expected a sequence of strings, got str"),
        (["a", 3], {}, TypeError, "prompts: expected a string in row 1, got int"),
        (["a", ""], {}, ValueError, "prompts: expected at least one token in row 1, got none"),
        (["a"], {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        (["a"], {"batch_size": 1.5}, TypeError, "batch_size: expected an integer, got float"),
        (["a"], {"max_new_tokens": True}, TypeError, "max_new_tokens: expected an integer"),
        (
            ["a", "a b c"],
            {"max_new_tokens": 31},
            ValueError,
            "max_new_tokens: expected at most 30 behind a prompt of 3 tokens",
        ),
    ],
)
def test_wrong_prompts_by_message(
    folder: Path, prompts: Any, options: Any, kind: type[Exception], message: str
) -> None:
    decoder = FastEarlyExitDecoder.from_pretrained(folder)
    with pytest.raises(kind, match=f"^{message}"):
        decoder.generate_texts(prompts, **options)


def test_wrong_tokenizers_by_message(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"^tokenizer: expected one, as the decoder was made"):
        FastEarlyExitDecoder(tiny_causal_lm()).generate_texts(["a"])
    decoder = FastEarlyExitDecoder.from_pretrained(folder)
    words = tokenizer()
    words.add_tokens(["new"])
    with pytest.raises(ValueError, match=r"^tokenizer: expected ids below 20, .* got 20 in row 1"):
        decoder.generate_texts(["a", "a new"], words)
