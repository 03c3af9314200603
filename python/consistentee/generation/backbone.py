"""A pretrained decoder, given exits."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from consistentee.generation.extra import needing
from consistentee.generation.settings import DecoderFields
from consistentee.model.modeling import finding_backbone
from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig, check_backbone
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.source import Source

if TYPE_CHECKING:
    from typing_extensions import Unpack

_EXPECTED = "a folder or hub name of a decoder with its tokenizer, or a .gguf file"


def load_backbone(
    name_or_path: str | os.PathLike[str],
) -> tuple[Any, PreTrainedTokenizerBase, str | None]:
    """A decoder with its LM head in float32, and its tokenizer.

    Args:
        name_or_path: a Hugging Face folder or hub name with safetensors weights, or a file
            ``.gguf``, which is dequantised.

    Returns:
        The decoder; its tokenizer; and the end token that was taken for padding, where the
        tokenizer has none of its own.

    Raises:
        ValueError: there is no such decoder, it is a classifier, or weights are missing.
    """
    path = Path(name_or_path)
    options: dict[str, Any] = {"trust_remote_code": False}
    source: str | os.PathLike[str] = name_or_path
    if path.suffix == ".gguf":
        source, options["gguf_file"] = path.parent, path.name
    Source(name_or_path).checked()
    with needing("gguf"), _finding(name_or_path):
        config = AutoConfig.from_pretrained(source, **options)
    check_backbone(config)
    classifiers = [n for n in config.architectures or () if "Classification" in n]
    if classifiers:
        raise ValueError(f"backbone: expected a decoder with its LM head, got a {classifiers[0]}")
    with needing("gguf"), _finding(name_or_path):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
        )
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    decoder, info = loaded
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise ValueError(f"backbone: expected all weights of {name_or_path}, missing: {missing}")
    if tokenizer.eos_token is None:
        raise ValueError(f"backbone: expected a tokenizer with an end token, got {name_or_path}")
    padding = None
    if tokenizer.pad_token is None:
        padding = tokenizer.pad_token = tokenizer.eos_token
    return decoder, tokenizer, padding


@contextmanager
def _finding(name_or_path: str | os.PathLike[str]) -> Iterator[None]:
    with finding_backbone(name_or_path, _EXPECTED):
        try:
            yield
        except (KeyError, struct.error) as error:  # of a file .gguf that is cut or lacks a field
            raise ValueError(f"{type(error).__name__}: {error}") from error


def with_exits(
    decoder: Any, tokenizer: PreTrainedTokenizerBase, **fields: Unpack[DecoderFields]
) -> ConsistentEEForCausalLM:
    """The model with a decoder's weights and untrained exits.

    Args:
        decoder: from `load_backbone`; its weights are copied.
        tokenizer: says which token is padding, and which ends a text where the decoder does not.
        fields: of the configuration.

    Raises:
        ValueError: a field is outside its range.
    """
    config = decoder.config
    config.name_or_path = ""  # a local path is no part of a model
    if hasattr(config, "quantization_config"):  # of a GGUF file, which is dequantised
        del config.quantization_config
    ends = decoder.generation_config.eos_token_id
    model = ConsistentEEForCausalLM(
        ConsistentEECausalLMConfig(
            config,
            eos_token_id=tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            **fields,
        )
    )
    model.backbone.load_state_dict(decoder.state_dict())
    model.eval()
    return model
