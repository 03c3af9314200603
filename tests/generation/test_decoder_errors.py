"""What the decoder does not do, and wrong input: refused by message, in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.decoder_folder import save_decoder
from support.decoders import left_padded, random_rows, tiny_causal_lm, tiny_decoder
from transformers import LlamaConfig, LlamaForSequenceClassification

from consistentee_ext import FastEarlyExitDecoder

BATCH = left_padded(random_rows([5, 1, 9, 3], seed=3))
ONLY = "FastEarlyExitDecoder only supports"
UNUSED = r"The following `model_kwargs` are not used by the model: \['{}'\]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 2}, ONLY),
        ({"prompt_lookup_num_tokens": 2}, ONLY),
        ({"assistant_early_exit": 2}, ONLY),
        ({"inputs_embeds": torch.zeros(4, 9, 32)}, UNUSED.format("inputs_embeds")),
        ({"max_tokens": 3}, UNUSED.format("max_tokens")),
        ({"position_ids": torch.zeros(4, 9, dtype=torch.long)}, "position_ids: expected none"),
        ({"use_cache": False}, "use_cache: expected True, .*, got False"),
        ({"cache_implementation": "static"}, "cache_implementation: expected None, .* 'static'"),
        ({"guidance_scale": 2.0}, "guidance_scale: expected None, .* got 2.0"),
        ({"output_attentions": True}, "output_attentions: expected False"),
        ({"output_hidden_states": True}, "output_hidden_states: expected False"),
        (
            {"max_new_tokens": 57},
            "max_new_tokens: expected at most 56 behind a prompt of 9 tokens, as the decoder has "
            "64 positions, got 57",
        ),
    ],
)
def test_what_is_not_done_is_refused(options: dict[str, Any], message: str) -> None:
    ours = FastEarlyExitDecoder(tiny_causal_lm())
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        ours.generate(**BATCH, **{"max_new_tokens": 4, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of the argument's name
def test_a_callers_cache_is_refused() -> None:
    model = tiny_decoder()
    used = model(torch.tensor([[5, 6]]), use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"not used by the model: \['(cache|past_key_values)'\]"):
        FastEarlyExitDecoder(model).generate(torch.tensor([[5, 6, 7]]), past_key_values=used)


def test_wrong_inputs_by_message() -> None:
    ours = FastEarlyExitDecoder(tiny_causal_lm())
    inputs = BATCH
    right = {name: tensor.flip(1) for name, tensor in inputs.items()}
    empty = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    empty["attention_mask"][1] = 0
    holes = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    holes["attention_mask"][2, 4] = 0
    large = {**inputs, "input_ids": inputs["input_ids"] + 60}
    long = {"input_ids": torch.full((1, 65), 5)}
    for given, message in (
        (right, "attention_mask: expected padding on the left, got some on the right"),
        (empty, "attention_mask: expected at least one token a row, got none in row 1"),
        (holes, "attention_mask: expected no zeros between the tokens of a row"),
        (large, "input_ids: expected ids from 0 to 60, got 116"),
        (long, "input_ids: expected at most 64 positions, got 65"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            ours.generate(**given, max_new_tokens=4)
    with pytest.raises(TypeError, match=r"^input_ids: expected int64 or int32"):
        ours.generate(inputs["input_ids"].float(), max_new_tokens=4)
    broken = tiny_causal_lm()
    broken.backbone.model.layers[3].mlp.down_proj.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match=r"^model: expected finite logits, got nan$"):
        FastEarlyExitDecoder(broken).generate(**inputs, max_new_tokens=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, r"threshold: expected a number in \(0, 1\], got 0.0"),
        ({"threshold": 1.5}, r"threshold: expected a number in \(0, 1\], got 1.5"),
        ({"threshold": [0.5, 0.5]}, "threshold: expected 3 numbers, one for each"),
        ({"exit_layers": [5]}, r"exit_layers: expected some of \[1, 2, 3, 4\], got 5"),
        ({"dtype": "int8"}, "dtype: expected one of .*, got 'int8'"),
        ({"dtype": torch.float64}, "dtype: expected one of .*, got torch.float64"),
        ({"device": "mars"}, "device: expected one that torch can use here, got mars"),
        ({"backend": "fast"}, "backend: expected one of .*, got 'fast'"),
    ],
)
def test_wrong_settings_by_message(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        FastEarlyExitDecoder(tiny_causal_lm(), **options)
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run"):
        FastEarlyExitDecoder(tiny_causal_lm(), backend="cuda")


def test_wrong_models_by_message(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"^model: expected a causal language model, got str$"):
        FastEarlyExitDecoder("model")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^model: expected a ConsistentEE decoder or .* Linear$"):
        FastEarlyExitDecoder(torch.nn.Linear(2, 2))
    config = LlamaConfig(**tiny_decoder().config.to_diff_dict())
    classifier = LlamaForSequenceClassification(config)
    with pytest.raises(ValueError, match=r"^model: expected a ConsistentEE decoder or"):
        FastEarlyExitDecoder(classifier)
    classifier.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match=r"expected a decoder with its LM head, got a LlamaForSeq"):
        FastEarlyExitDecoder.from_pretrained(tmp_path / "classifier")
    with pytest.raises(FileNotFoundError, match=r"none: expected a folder, found none$"):
        FastEarlyExitDecoder.from_pretrained(tmp_path / "none")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ValueError, match=r"expected a config of model_type .*, got 'bert'$"):
        FastEarlyExitDecoder.from_pretrained(tmp_path / "bert")
    folder = save_decoder(tmp_path / "short")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(
        ValueError, match=r"expected weights in safetensors, got a file that is cut"
    ):
        FastEarlyExitDecoder.from_pretrained(folder)
