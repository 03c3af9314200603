"""`train --generation` as a user types it, and the one line where it cannot."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.command_line import Run, check_one_line
from support.decoder_folder import POSITIONS, save_decoder, save_rows, tokenizer
from support.files import write
from support.models import save_backbone
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

SHORT = ("--tokens", 80, "--policy-tokens", 20, "--max-new-tokens", 6, "--batch-size", 4)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "decoder")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("texts"))


def test_train_makes_a_generator(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    done = run(
        *("train", "--generation", "--model", decoder, "--data", texts, "--output", output, *SHORT),
        *("--exit-layer", 3, "--exit-layer", 1, "--alpha", 0.05, "--seed", 7),
    )
    assert done.code == 0, done.err
    for said in ("mean exit layer", "of 4", "cost ratio", "pad token", "</s>, the end token"):
        assert said in done.out
    config = json.loads((output / "config.json").read_text())
    assert (config["exit_layers"], config["alpha"], config["readout"]) == (
        [1, 3],
        0.05,
        "translator",
    )
    settings = json.loads((output / "training_log.json").read_text())["run"]["settings"]
    assert (settings["target"], settings["tokens"], settings["seed"]) == ("teacher", 80, 7)
    assert not (tmp_path / "model.partial").exists()


def test_prompts_alone(run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path) -> None:
    lines = (texts / "train.jsonl").read_text().splitlines()
    prompts = [json.dumps({"prompt": json.loads(line)["prompt"]}) + "\n" for line in lines]
    file = write(tmp_path / "prompts.jsonl", "".join(prompts))
    output = tmp_path / "model"
    command = ("train", "--generation", "--model", decoder, "--prompts", file, "--output", output)
    done = run(*command, *SHORT)
    assert done.code == 0, done.err
    data = json.loads((output / "training_log.json").read_text())["data"]
    assert data["dev"]["rows"] == 4
    check_one_line(run(*command, "--target", "gold"), "prompts: expected --target teacher")
    check_one_line(run(*command, "--data", texts), "data: expected one folder, or --prompts")
    check_one_line(run(*command[:4], "--output", output), "data: expected one folder")


def test_the_papers_way(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    done = run(
        *("train", "--generation", "--model", decoder, "--data", texts, "--output", output),
        *(*SHORT, "--paper", "--joint-tokens", 20, "--samples", 3),
    )
    assert done.code == 0, done.err
    assert "as in the completions" in done.out
    config = json.loads((output / "config.json").read_text())
    assert config["exit_layers"] == [1, 2, 3]
    assert (config["policy"], config["readout"]) == ("linear", "trunk")
    settings = json.loads((output / "training_log.json").read_text())["run"]["settings"]
    assert (settings["estimator"], settings["samples"]) == ("reinforce", 3)
    assert (settings["policy_loss"], settings["held_out"]) == ("cross-entropy", 0.0)


def test_train_says_in_one_line_what_is_wrong(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"

    def train(*more: object, model: Path = decoder, data: Path = texts) -> Run:
        command = ("train", "--generation", "--model", model, "--data", data, "--output", output)
        return run(*command, *SHORT, *more)

    def rows(name: str, *lines: dict[str, str]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(texts / "dev.jsonl", folder)
        write(folder / "train.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
        return folder

    good = {"prompt": "say a", "completion": "b"}
    empty = rows("empty", good, {"prompt": " ", "completion": "b"})
    check_one_line(train(data=empty), "train.jsonl: row 2: expected text in 'prompt', got ' '")
    silent = rows("silent", good, {"prompt": "say a", "completion": ""})
    check_one_line(
        train("--target", "gold", data=silent), "row 2: expected text in 'completion', got ''"
    )
    long = rows("long", good, {"prompt": "say " + "a " * POSITIONS, "completion": "b"})
    check_one_line(
        train(data=long), f"expected a prompt of 1 to {POSITIONS - 6} tokens, as", "got 33"
    )
    check_one_line(train(data=tmp_path / "nowhere"), "nowhere: expected a file or a folder")
    (tmp_path / "half").mkdir()
    shutil.copy(texts / "train.jsonl", tmp_path / "half")
    check_one_line(train(data=tmp_path / "half"), "dev.jsonl: expected a file, found none")
    check_one_line(train("--exit-layer", 4), "exit_layers: expected layers in 1..3", "got [4]")
    check_one_line(train("--exit-layer", 0), "exit_layers: expected layers in 1..3", "got [0]")
    check_one_line(train("--max-new-tokens", 1), "max_new_tokens: expected at least 2, got 1")
    check_one_line(train("--max-new-tokens", 32), "max_new_tokens: expected less than 32", "got 32")
    check_one_line(train("--tokens", 0), "tokens: expected a number above 0, got 0")
    check_one_line(train("--target", "silver"), "silver")
    check_one_line(train("--lora-rank", -1), "lora_rank: expected at least 0, got -1")
    check_one_line(train("--lora-rank", 4), "lora_rank: expected the readout 'trunk' beside it")
    for option in (("--pooling", "mean"), ("--task", "rte"), ("--epochs", 3), ("--max-length", 9)):
        check_one_line(train(*option), f"{option[0][2:]}: expected none with --generation")
    encoder = tmp_path / "encoder"
    save_backbone(encoder, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"])
    check_one_line(train(model=encoder), "backbone: expected a decoder of model_type", "'bert'")
    classifier = tmp_path / "classifier"
    config = AutoModelForCausalLM.from_pretrained(decoder).config
    config.pad_token_id = 1
    LlamaForSequenceClassification(config).save_pretrained(classifier)
    tokenizer().save_pretrained(classifier)
    check_one_line(train(model=classifier), "LM head, got a LlamaForSequenceClassification")
    headless = save_decoder(tmp_path / "headless", tie_word_embeddings=False)
    weights = load_file(headless / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, headless / "model.safetensors", metadata={"format": "pt"})
    check_one_line(train(model=headless), "expected all weights", "missing: lm_head.weight")
    pickled = save_decoder(tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    check_one_line(train(model=pickled), "backbone: expected a folder or hub name of a decoder")
    endless = save_decoder(tmp_path / "endless")
    tokenizer(eos_token=None).save_pretrained(endless)
    check_one_line(train(model=endless), "backbone: expected a tokenizer with an end token")
    check_one_line(train(model=tmp_path / "none"), "none: expected a folder")
    check_one_line(
        run("train", "--model", decoder, "--data", texts, "--output", output, "--tokens", 9),
        "tokens: expected --generation beside it",
    )
    assert not output.exists()
    assert not (tmp_path / "out.partial").exists()


def test_a_loss_that_is_not_finite_ends_in_one_line(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    """A trunk whose weights overflow."""
    broken = save_decoder(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1e38
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    output = tmp_path / "out"
    command = ("train", "--generation", "--model", broken, "--data", texts, "--output", output)
    done = run(*command, *SHORT, "--target", "gold")
    assert done.code == 2
    (message,) = (line for line in done.err.splitlines() if line.startswith("consistentee: "))
    assert message.startswith("consistentee: readouts: expected a finite loss, got nan at step 1;")
    assert "Traceback" not in done.err
    assert not output.exists()


def test_evaluate_a_generator(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output, file = tmp_path / "model", tmp_path / "figures.json"
    command = ("train", "--generation", "--model", decoder, "--data", texts, "--output", output)
    assert run(*command, *SHORT).code == 0
    on_dev = ("--data", texts / "dev.jsonl", "--max-new-tokens", 6)
    done = run("evaluate", output, *on_dev, "--json", file)
    assert done.code == 0, done.err
    for said in ("ROUGE-L to the text at full depth", "mean exit layer", "of 4", "cost ratio"):
        assert said in done.out
    figures = json.loads(file.read_text())
    assert figures["rows"] == 8
    assert 0.0 <= figures["free_running"]["identical"] <= 1.0
    assert figures["rouge"].keys() == {"rouge1", "rouge2", "rougeL"}
    full = tmp_path / "full.json"
    assert run("evaluate", output, *on_dev, "--threshold", 1, "--json", full).code == 0
    assert json.loads(full.read_text())["free_running"]["identical"] == 1.0
    assert "rules" not in figures
    done = run("evaluate", output, *on_dev, "--rules", "--json", file)
    assert done.code == 0, done.err
    for said in ("policy", "confidence", "saturation", "truncation", "depth by position"):
        assert said in done.out
        assert json.loads(file.read_text())["rules"][said]
    evaluate = ("evaluate", output, *on_dev)
    check_one_line(run(*evaluate, "--alpha", 1), "alpha: expected none with a generator")
    check_one_line(run(*evaluate, "--threshold", 0), "threshold: expected a number")
    empty = write(tmp_path / "empty.jsonl", "")
    check_one_line(run("evaluate", output, "--data", empty), "empty.jsonl: expected at least one")
    predict = ("predict", output, texts / "dev.jsonl", "--output", tmp_path / "x.csv")
    check_one_line(run(*predict), "model: expected a classifier, got a generator")


def test_report_on_a_generator(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output, page = tmp_path / "model", tmp_path / "page.html"
    command = ("train", "--generation", "--model", decoder, "--data", texts, "--output", output)
    assert run(*command, *SHORT).code == 0
    report = ("report", output, "--data", texts / "dev.jsonl", "--max-new-tokens", 6)
    done = run(*report, "--output", page)
    assert done.code == 0, done.err
    assert page.read_text(encoding="utf-8").count("<article>") == 8
    check_one_line(run(*report, "--output", page, "--alpha", 1), "alpha: expected none with a gen")
    check_one_line(run(*report, "--output", tmp_path / "x.pdf"), "x.pdf", ".html")


def test_calibrate_a_generator(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    command = ("train", "--generation", "--model", decoder, "--data", texts, "--output", output)
    assert run(*command, *SHORT).code == 0
    lines = (texts / "train.jsonl").read_text() * 8
    many = write(tmp_path / "many.jsonl", lines)
    calibrate = ("calibrate", output, "--data", many, "--max-new-tokens", 6)
    done = run(*calibrate, "--max-token-change", 0.2)
    assert done.code == 0, done.err
    for said in ("tokens as not at full depth", "cost ratio", "320 rows"):
        assert said in done.out
    threshold = json.loads((output / "config.json").read_text())["threshold"]
    assert f"{threshold:.4f}" in done.out
    assert run(*calibrate, "--max-rouge-loss", 0.2).code == 0
    check_one_line(run(*calibrate, "--layer-ratio", 1.1), "layer-ratio: expected none with a gen")
    check_one_line(run(*calibrate), "calibrate: expected one of max_token_change")
    few = ("calibrate", output, "--data", texts / "dev.jsonl", "--max-token-change", 0.2)
    check_one_line(run(*few), "data: expected at least 300 prompts, got 8")


def test_a_classifier_takes_no_generators_option(
    run: Callable[..., Run], checkpoint: Path, data: Path
) -> None:
    done = run("evaluate", checkpoint, "--data", data / "test.tsv", "--max-new-tokens", 3)
    check_one_line(done, "max-new-tokens: expected a generator's checkpoint beside it")
    done = run("evaluate", checkpoint, "--data", data / "test.tsv", "--rules")
    check_one_line(done, "rules: expected a generator's checkpoint beside it")
    done = run("calibrate", checkpoint, "--data", data / "test.tsv", "--max-token-change", 0.1)
    check_one_line(done, "max-token-change: expected a generator's checkpoint beside it")


def test_compare_exit_rules(
    run: Callable[..., Run], decoder: Path, texts: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(texts, data)
    command = ("compare", "--generation", "--model", decoder, "--output", tmp_path / "out")
    more = ("--readout", "trunk", "--seeds", 1, "--seed", 9, "--learning-rate", 1e-3)
    check_one_line(run(*command, *SHORT), "data: expected a folder with train, dev and test.jsonl")
    check_one_line(run(*command, *SHORT, "--data", data), "test.jsonl: expected a file, found none")
    shutil.copy(data / "dev.jsonl", data / "test.jsonl")
    check_one_line(
        run(*command, "--data", data, "--prompts", data / "dev.jsonl"),
        "prompts: expected none with --generation",
    )
    check_one_line(
        run(*command, "--data", data, "--task", "rte"), "task: expected none with --generation"
    )
    done = run(*command, *SHORT, *more, "--data", data)
    assert done.code == 0, done.err
    for said in ("cost ratio 1.25", "cost ratio 1.5", "policy minus it", "truncation", "8 texts"):
        assert said in done.out
    result = json.loads((tmp_path / "out" / "comparison.json").read_text())
    policy = result["methods"]["policy"][0]
    assert f"{policy['rougeL']['mean']:.2f}" in done.out
    assert f"[{policy['over_full_depth']['low']:+.2f}," in done.out
    log = json.loads((tmp_path / "out" / "seed-9" / "model" / "training_log.json").read_text())
    assert log["run"]["settings"]["learning_rate"] == 1e-3
    check_one_line(
        run("compare", "--model", decoder, "--data", data, "--output", tmp_path, "--tokens", 9),
        "tokens: expected --generation beside it",
    )
