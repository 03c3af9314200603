"""The decoder in transformers' hands, beside the model itself in the same hands."""

from __future__ import annotations

import copy
import pickle
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from support.decoder_folder import LETTERS, save_decoder, tokenizer
from support.decoders import CASES, left_padded, random_rows, tiny_causal_lm, tiny_decoder
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GenerationConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
    set_seed,
)

from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule

NEW = 14
PROMPTS = random_rows([5, 1, 9, 3], seed=3)
BATCH = left_padded(PROMPTS)


def both(model: Any, ours: Any, inputs: dict[str, torch.Tensor], **options: Any) -> tuple[Any, Any]:
    found = []
    for one in (model, ours):
        set_seed(5)
        found.append(one.generate(**inputs, **{"max_new_tokens": NEW, **options}))
    return found[0], found[1]


@pytest.mark.parametrize("backend", ["cpu", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_full_depth_gives_hugging_faces_tokens(case: str, backend: str) -> None:
    """Greedy, in a batch and alone; and with ConsistentEE's exits at threshold 1."""
    model = tiny_decoder(case)
    ours = FastEarlyExitDecoder(model, backend=backend)
    expected, found = both(model, ours, BATCH, do_sample=False)
    assert torch.equal(found, expected)
    alone = {"input_ids": torch.tensor(PROMPTS[2:3])}
    expected, found = both(model, ours, alone, do_sample=False)
    assert torch.equal(found, expected)
    exits = tiny_causal_lm(case)
    ours = FastEarlyExitDecoder(exits, threshold=1.0, backend=backend)
    exits.backbone.generation_config = copy.deepcopy(ours.generation_config)
    expected, found = both(exits.backbone, ours, BATCH, do_sample=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 1}, {"num_key_value_heads": 4}, {"num_key_value_heads": 1}]
)
def test_other_shapes(changes: dict[str, Any]) -> None:
    model = tiny_decoder(**changes)
    expected, found = both(model, FastEarlyExitDecoder(model), BATCH, do_sample=False)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("fill", ["deferred", "immediate"])
@pytest.mark.parametrize("threshold", [1.0, 0.7, 0.6, 0.3])
@pytest.mark.parametrize("case", ["llama", "qwen2, windows", "gemma 3"])
def test_tokens_and_exits_are_the_references(case: str, threshold: float, fill: Any) -> None:
    model = tiny_causal_lm(case)
    expected = generate(model, PROMPTS, NEW, PolicyRule(threshold), fill)
    ours = FastEarlyExitDecoder(model, threshold=threshold)
    out = ours.generate(**BATCH, max_new_tokens=NEW, return_dict_in_generate=True)
    longest = max(map(len, expected.tokens))
    assert out.exit_layers.dtype == torch.int64
    assert out.exit_layers.shape == (4, longest)
    for row, tokens in enumerate(expected.tokens):
        rest = longest - len(tokens)
        width = max(map(len, PROMPTS))
        assert out.sequences[row, width:].tolist() == tokens + [0] * rest
        layers = [4, *expected.exit_layers[row]]
        assert out.exit_layers[row].tolist() == layers + [0] * rest


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm": {"temperature": 1.7},
    "top k": {"top_k": 5},
    "nucleus": {"top_p": 0.7, "temperature": 0.8},
    "floor": {"min_p": 0.05},
    "no repeats": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "three each": {"num_return_sequences": 3},
    "ends": {"eos_token_id": [*range(3, 40, 4)]},
    "longer": {"eos_token_id": [*range(3, 40, 4)], "min_new_tokens": 6},
    "banned": {"bad_words_ids": [[5], [7, 9]], "suppress_tokens": [11, 12]},
    "allowed": {"prefix_allowed_tokens_fn": lambda row, ids: [*range(3, 9 + 3 * row)]},
    "total length": {"max_new_tokens": None, "max_length": 15},
}


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_transformers_own(name: str, do_sample: bool) -> None:
    """The same tokens, scores and logits at full depth, sampled with the same seed."""
    model = tiny_decoder()
    options = {"do_sample": do_sample, "return_dict_in_generate": True, **OPTIONS[name]}
    if not do_sample and name == "three each":
        options["do_sample"] = True  # as the library asks for it
    options |= {"output_scores": True, "output_logits": True}
    expected, found = both(model, FastEarlyExitDecoder(model), BATCH, **options)
    assert torch.equal(found.sequences, expected.sequences)
    for field in ("scores", "logits"):
        ours, theirs = found[field], expected[field]
        assert len(ours) == len(theirs) == found.exit_layers.shape[1]
        for one, other, layers in zip(ours, theirs, found.exit_layers.T, strict=True):
            running = layers > 0
            assert bool(running.any())
            torch.testing.assert_close(one[running], other[running], atol=1e-4, rtol=1e-4)


def test_processors_and_criteria_of_a_callers_own() -> None:
    class Shift(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            assert scores.dtype == torch.float32
            assert scores.shape[0] == input_ids.shape[0] == 4
            scores[:, 7] += 0.5  # in place
            return scores.roll(1, dims=1)

    class Enough(StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **rest: Any) -> Any:
            return (input_ids[:, -4:] % 5 == 0).any(dim=1)

    model = tiny_decoder()
    ours = FastEarlyExitDecoder(model)
    for ends in (2, None):  # without an end token rows go on until all are done
        options = {
            "logits_processor": LogitsProcessorList([Shift()]),
            "stopping_criteria": StoppingCriteriaList([Enough()]),
            "do_sample": True,
            "eos_token_id": ends,
        }
        expected, found = both(model, ours, BATCH, **options)
        assert torch.equal(found, expected)
        assert found.shape[1] < max(map(len, PROMPTS)) + NEW


def bytes_tokenizer() -> Any:
    vocabulary = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
    words = Tokenizer(BPE(vocabulary, []))
    words.pre_tokenizer = ByteLevel(add_prefix_space=False)
    words.decoder = ByteLevelDecoder()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_stop_strings_and_streamers(capsys: pytest.CaptureFixture[str]) -> None:
    words = bytes_tokenizer()
    model = tiny_decoder(vocab_size=256, eos_token_id=None)
    ours = FastEarlyExitDecoder(model)
    inputs = dict(words(["say it"], return_tensors="pt", return_token_type_ids=False))
    letters = words("abcdefghij")["input_ids"]
    options: dict[str, Any] = {"prefix_allowed_tokens_fn": lambda row, ids: letters}
    whole, _ = both(model, ours, inputs, do_sample=True, **options)
    text = words.decode(whole[0])
    stops = {"stop_strings": [text[-5:-3]], "tokenizer": words}
    expected, found = both(model, ours, inputs, do_sample=True, **options, **stops)
    assert torch.equal(found, expected)
    assert found.shape[1] < whole.shape[1]
    said = []
    one: Any
    for one in (model, ours):
        set_seed(5)
        streamer = TextStreamer(words)
        one.generate(**inputs, max_new_tokens=NEW, do_sample=True, streamer=streamer, **options)
        said.append(capsys.readouterr().out)
    assert said == [text + "\n"] * 2
    pieces = TextIteratorStreamer(words, skip_prompt=True)
    set_seed(5)
    ours.generate(**inputs, max_new_tokens=NEW, do_sample=True, streamer=pieces, **options)
    assert "say it" + "".join(pieces) == text


def test_time_is_up() -> None:
    class Slow(LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            time.sleep(0.05)
            return scores

    ours = FastEarlyExitDecoder(tiny_decoder(eos_token_id=None))
    slow = LogitsProcessorList([Slow()])
    found = ours.generate(**BATCH, max_new_tokens=50, max_time=0.2, logits_processor=slow)
    assert 1 <= found.shape[1] - 9 <= 5


def test_pipeline(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path)
    model, words = LlamaForCausalLM.from_pretrained(folder), tokenizer()
    words.pad_token, words.padding_side = "<unk>", "left"
    words.model_input_names = ["input_ids", "attention_mask"]
    ours = FastEarlyExitDecoder.from_pretrained(folder)
    found = []
    one: Any
    for one in (model, ours):
        made: Any = pipeline("text-generation", model=one, tokenizer=words)
        set_seed(1)
        texts = made(["say a b", "say c", "say d e f"], batch_size=2, max_new_tokens=6)
        found.append(
            [texts, made("say a", do_sample=False, max_new_tokens=5, return_full_text=False)]
        )
    assert found[0] == found[1]
    assert set(found[0][1][0]["generated_text"].split()) <= {*LETTERS, "say"}


def test_from_pretrained(tmp_path: Path) -> None:
    """Exits, thresholds and end tokens are the checkpoint's, or the caller's."""
    model = tiny_causal_lm(threshold=0.25)
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    ours = FastEarlyExitDecoder.from_pretrained(tmp_path, exit_layers=[3, 1], dtype="float32")
    assert (ours.threshold, ours.exit_layers, ours.num_layers) == (0.25, (1, 3, 4), 4)
    assert ours.max_positions == 64
    assert ours.generation_config.eos_token_id == 2
    out = ours.generate(**BATCH, max_new_tokens=NEW, return_dict_in_generate=True)
    assert {1, 3, 4} >= set(out.exit_layers.flatten().tolist()) - {0} > {4}
    whole = FastEarlyExitDecoder(model)
    whole.threshold = {1: 0.25, 2: 1.0, 3: 0.25}
    assert torch.equal(whole.generate(**BATCH, max_new_tokens=NEW), out.sequences)
    assert whole.threshold == {1: 0.25, 2: 1.0, 3: 0.25}
    ours.threshold = 1.0
    deep = ours.generate(**BATCH, max_new_tokens=NEW, return_dict_in_generate=True)
    assert set(deep.exit_layers.flatten().tolist()) <= {0, 4}


def test_copies(tmp_path: Path) -> None:
    ours = FastEarlyExitDecoder(tiny_causal_lm(), threshold=0.6)
    expected = ours.generate(**BATCH, max_new_tokens=NEW)
    torch.save(ours, tmp_path / "whole.pt")
    copies = [
        copy.deepcopy(ours),
        pickle.loads(pickle.dumps(ours)),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        ours.to("cpu").eval(),
    ]
    for one in copies:
        assert one.threshold == 0.6
        assert torch.equal(one.generate(**BATCH, max_new_tokens=NEW), expected)
    copies[0].threshold = 0.3
    assert ours.threshold == 0.6
    for call, message in (
        (lambda: ours.train(), "train: expected False"),
        (lambda: ours.state_dict(), "state_dict: not kept"),
        (lambda: ours.save_pretrained("x"), "save_pretrained: not kept"),
        (lambda: ours(**BATCH), "forward: call generate"),
        (lambda: ours.generate_batch([[1]]), "generate_batch: call generate_texts"),
    ):
        with pytest.raises(RuntimeError, match=f"^{message}"):
            call()
    with pytest.raises(ValueError, match=r"^dtype: expected torch.float32, got torch.float16"):
        ours.half()


def test_generation_config_is_the_models() -> None:
    model = tiny_decoder()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.5, eos_token_id=[2, 9], pad_token_id=0, max_new_tokens=7
    )
    found = []
    one: Any
    for one in (model, FastEarlyExitDecoder(model)):
        set_seed(5)
        found.append(one.generate(**BATCH))
    assert torch.equal(found[0], found[1])
    assert found[0].shape[1] == 9 + 7
