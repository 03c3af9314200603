"""From a prompt's text to what a decoder reads."""

from __future__ import annotations

from typing import Any


def encode_prompt(tokenizer: Any, text: str) -> list[int]:
    """The token ids of a prompt.

    Where the tokenizer has a chat template, the text is what the user says, and the answer's role
    follows; else it is the text with the tokenizer's own special tokens.
    """
    if tokenizer.chat_template is None:
        return list(tokenizer(text)["input_ids"])
    said = [{"role": "user", "content": text}]
    encoded = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)
    return list(encoded["input_ids"])
