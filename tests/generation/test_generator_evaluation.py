"""Figures of evaluation against sums by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from support.decoder_folder import WORDS, rows, save_decoder, tokenizer
from support.decoders import PatternRule, random_exits, random_rows, tiny_causal_lm
from transformers import AutoModelForCausalLM, LlamaConfig

from consistentee.generation.answers import BATCH_SIZE, batches, generate_all
from consistentee.generation.data import answered_rows
from consistentee.generation.evaluate import evaluate_generator, load_generator
from consistentee.generation.measure import cost_ratio, teacher_forced
from consistentee.generation.rouge import rouge
from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Untrained exits whose policies scatter."""
    folder = tmp_path_factory.mktemp("model")
    decoder = AutoModelForCausalLM.from_pretrained(save_decoder(folder / "decoder"))
    config = ConsistentEECausalLMConfig(decoder.config, eos_token_id=1, threshold=0.55)
    model = ConsistentEEForCausalLM(config)
    model.backbone.load_state_dict(decoder.state_dict())
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".policy." in name:
                parameter.normal_(std=0.4)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    return folder / "model"


def f_measure(text: list[str], reference: list[str], size: int) -> float:
    """ROUGE-N of two texts by counting."""
    a, b = (
        [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
        for words in (text, reference)
    )
    common = sum(min(a.count(gram), b.count(gram)) for gram in set(a))
    return 200 * common / (len(a) + len(b)) if common else 0.0


def longest_common(a: list[str], b: list[str]) -> int:
    if not a or not b:
        return 0
    if a[-1] == b[-1]:
        return 1 + longest_common(a[:-1], b[:-1])
    return max(longest_common(a[:-1], b), longest_common(a, b[:-1]))


def test_rouge_by_counting() -> None:
    texts = ["the cat sat down", "a dog", "no word in common"]
    references = ["the cat was sat on", "a big dog", "else"]
    found = rouge(texts, references)
    for row, (text, reference) in enumerate(zip(texts, references, strict=True)):
        a, b = text.split(), reference.split()
        assert found["rouge1"][row] == pytest.approx(f_measure(a, b, 1))
        assert found["rouge2"][row] == pytest.approx(f_measure(a, b, 2))
        expected = 200 * longest_common(a, b) / (len(a) + len(b))
        assert found["rougeL"][row] == pytest.approx(expected)
    assert rouge(["dogs running"], ["dog runs"])["rouge1"] == [100.0]  # by their stems


def test_figures_of_an_evaluation(checkpoint: Path) -> None:
    model, read = load_generator(checkpoint)
    table = Dataset.from_list(rows(12, 5))
    found = evaluate_generator(model, read, table, max_new_tokens=9).metrics
    prompts = [encode_prompt(read, text) for text in table["prompt"]]
    full = generate(model, prompts, 9, PolicyRule(1.0))
    exits = generate(model, prompts, 9, PolicyRule(0.55))
    layers = [layer for of_text in exits.exit_layers for layer in of_text]
    assert len(set(layers)) >= 3
    free = found["free_running"]
    assert free["mean_exit_layer"] == pytest.approx(sum(layers) / len(layers))
    assert free["cost_ratio"] == pytest.approx(cost_ratio(model, sum(layers) / len(layers)))
    same, before = 0, 0
    for a, b in zip(exits.tokens, full.tokens, strict=True):
        same += a == b
        place = 0
        while place < min(len(a), len(b)) and a[place] == b[place]:
            place += 1
        before += place
    assert free["identical"] == pytest.approx(same / 12)
    assert free["tokens_before_difference"] == pytest.approx(before / 12)
    texts, full_texts = (
        [" ".join(WORDS[i] for i in ids if i > 2) for ids in found.tokens]
        for found in (exits, full)
    )
    expected = rouge(texts, full_texts)["rougeL"]
    assert free["rouge"]["rougeL"] == pytest.approx(sum(expected) / 12)
    for name, said in (("rouge", texts), ("full_depth_rouge", full_texts)):
        expected = rouge(said, table["completion"][:])["rouge1"]
        assert found[name]["rouge1"] == pytest.approx(sum(expected) / 12)
    forced = teacher_forced(model, answered_rows("", prompts, full.tokens), PolicyRule(0.55))
    assert found["teacher_forced"]["agreement"] == pytest.approx(forced.right.double().mean())
    assert (found["rows"], found["threshold"], found["num_layers"]) == (12, 0.55, 4)


def test_at_threshold_1_nothing_differs(checkpoint: Path) -> None:
    model, read = load_generator(checkpoint)
    table = Dataset.from_list(rows(5, 6)).select_columns(["prompt"])
    found = evaluate_generator(model, read, table, threshold=1.0, max_new_tokens=5).metrics
    assert found["teacher_forced"] == {"agreement": 1.0, "mean_exit_layer": 4.0, "cost_ratio": 1.0}
    free = found["free_running"]
    assert (free["identical"], free["mean_exit_layer"], free["cost_ratio"]) == (1.0, 4.0, 1.0)
    assert free["rouge"]["rougeL"] == pytest.approx(100.0)
    assert found.keys().isdisjoint({"rouge", "rules"})  # no completions, not asked for
    with pytest.raises(ValueError, match=r"^threshold: expected a number in \(0, 1\], got 1.5$"):
        evaluate_generator(model, read, table, threshold=1.5)
    with pytest.raises(ValueError, match=r"^max_new_tokens: expected at least 2, got 1$"):
        evaluate_generator(model, read, table, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"^data: row 3: expected a prompt of 1 to 2 tokens"):
        evaluate_generator(model, read, table, max_new_tokens=30)


def test_many_prompts_in_batches_of_like_length() -> None:
    model = tiny_causal_lm().double()
    lengths = [1 + (7 * n) % 11 for n in range(BATCH_SIZE + 5)]
    prompts = random_rows(lengths, seed=2)
    parts = batches(prompts)
    assert [len(part) for part in parts] == [BATCH_SIZE, 5]
    assert max(lengths[row] for row in parts[0]) <= min(lengths[row] for row in parts[1])
    rule = PolicyRule(0.6)
    found = generate_all(model, prompts, 6, rule, "answers")
    for row, prompt in enumerate(prompts):
        alone = generate(model, [prompt], 6, rule)
        assert [part[row] for part in found] == [part[0] for part in alone]
    pattern = PatternRule(random_exits(3, 6))
    assert generate(model, prompts[:3], 6, pattern).exit_layers == pattern.exits[:, :5].tolist()


def test_what_is_no_generators_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    plain = save_decoder(tmp_path / "plain")
    with pytest.raises(ValueError, match=r"expected a checkpoint of model_type .*, got 'llama'$"):
        load_generator(plain)
    assert LlamaConfig.from_pretrained(plain).model_type == "llama"
    model, read = load_generator(checkpoint)
    model.save_pretrained(tmp_path / "cut")
    read.save_pretrained(tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    weights = load_file(file)
    del weights["exits.2.policy.0.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"missing or unknown: exits.2.policy.0.weight$"):
        load_generator(tmp_path / "cut")
    with pytest.raises(FileNotFoundError, match=r"none: expected a folder, found none$"):
        load_generator(tmp_path / "none")
