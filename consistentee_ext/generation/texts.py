"""From prompts to tokens, and from answers to texts in the order of the prompts."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

from tqdm.std import tqdm

from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.refill import Answer


class GeneratedText(NamedTuple):
    """What a prompt is answered with.

    Attributes:
        text: without special tokens.
        tokens: the ids, the end token included.
        exit_layers: 1-based, of each token: the number of layers that ran for it, L for the first
            one, which comes with the prompt.
    """

    text: str
    tokens: list[int]
    exit_layers: list[int]


def encode_rows(
    prompts: object, first_row: int, tokenizer: Any, vocab_size: int
) -> list[list[int]]:
    """The token ids of prompts from `first_row` on.

    Raises:
        TypeError: `prompts` is no sequence of strings.
        ValueError: a prompt has no token, or one that the model has no embedding of.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise TypeError(f"prompts: expected a sequence of strings, got {type(prompts).__name__}")
    rows = []
    for number, prompt in enumerate(prompts[first_row:], start=first_row):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompts: expected a string in row {number}, got {type(prompt).__name__}"
            )
        ids = encode_prompt(tokenizer, prompt)
        if not ids:
            raise ValueError(f"prompts: expected at least one token in row {number}, got none")
        if max(ids) >= vocab_size:
            raise ValueError(
                f"tokenizer: expected ids below {vocab_size}, the model's embeddings, got "
                f"{max(ids)} in row {number}"
            )
        rows.append(ids)
    return rows


def texts_in_order(
    found: Iterator[tuple[int, Answer]], tokenizer: Any, bar: tqdm[Any]
) -> Generator[GeneratedText]:
    """The texts of answers, each as soon as it and those of smaller number are there."""
    ended: dict[int, Answer] = {}
    following = 0
    with bar:
        for number, answer in found:
            ended[number] = answer
            bar.update()
            while following in ended:
                tokens, exit_layers = ended.pop(following)
                text = tokenizer.decode(tokens, skip_special_tokens=True)
                yield GeneratedText(text, tokens, exit_layers)
                following += 1
