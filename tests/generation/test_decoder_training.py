"""Whole trainings of a tiny decoder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.decoder_folder import SETTINGS, save_decoder, tables, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from consistentee.generation.settings import (
    PAPER_FIELDS,
    PAPER_SETTINGS,
    DecoderFields,
    GenerationSettings,
)
from consistentee.generation.train import train
from consistentee.training.trainer import PhaseTrainer
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule

FIELDS: DecoderFields = {"rank": 8, "alpha": 0.1}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "decoder")


@pytest.fixture(scope="module")
def trained(backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "model"
    train(backbone, *tables(), output, SETTINGS, **FIELDS)
    return output


def load(folder: Path) -> ConsistentEEForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_a_run_makes_a_checkpoint(trained: Path) -> None:
    names = {path.name for path in trained.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "training_log.json"} <= names
    assert not any(path.suffix in (".bin", ".pt", ".pth", ".pkl") for path in trained.iterdir())
    assert not trained.with_name("model.partial").exists()
    log = json.loads((trained / "training_log.json").read_text())
    assert list(log["phases"]) == ["readouts", "policies"]
    assert log["pad_token"] == "</s>"
    assert log["data"]["dev"]["rows"] <= 8
    assert log["data"]["learning"]["answer_tokens"] > log["data"]["policies"]["answer_tokens"] > 0
    config = load(trained).config
    assert (config.exit_layers, config.eos_token_ids, config.pad_token_id) == ([1, 2, 3], (1,), 1)
    assert config.backbone.name_or_path == ""
    assert str(trained.parents[1]) not in (trained / "config.json").read_text()


def test_translators_learn_and_the_trunk_stays(backbone: Path, trained: Path) -> None:
    model, decoder = load(trained), AutoModelForCausalLM.from_pretrained(backbone)
    for name, weight in decoder.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], weight), name
    prompts, answers = dev_answers(model)
    learned = divergences(model, prompts, answers)
    with torch.no_grad():
        for layer in model.config.exit_layers:
            translator = model.exit(layer).translator
            assert translator is not None
            translator.up.zero_()
    plain = divergences(model, prompts, answers)
    assert all(now < 0.9 * before for now, before in zip(learned, plain, strict=True))


def dev_answers(model: ConsistentEEForCausalLM) -> tuple[list[list[int]], list[list[int]]]:
    prompts = [encode_prompt(tokenizer(), text) for text in tables()[1]["prompt"]]
    return prompts, generate(model, prompts, 6, PolicyRule(1.0)).tokens


@torch.no_grad()
def divergences(model, prompts, answers) -> list[float]:
    """The mean of KL(p_L || p_l) over the answers' tokens, from the library's hidden states."""
    total, count = [0.0] * 3, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        out = model.backbone(torch.tensor([prompt + answer]), output_hidden_states=True)
        places = slice(len(prompt), len(prompt) + len(answer) - 1)
        p = out.logits[0, places].double().softmax(-1)
        for number, layer in enumerate(model.config.exit_layers):
            hidden = out.hidden_states[layer][0, places]
            q = model.logits(model.readout(layer, hidden)).double().softmax(-1)
            total[number] += float((p * (p / q).log()).sum())
        count += len(answer) - 1
    return [value / count for value in total]


def test_full_depth_says_what_the_decoder_said(backbone: Path, trained: Path) -> None:
    model, decoder = load(trained), AutoModelForCausalLM.from_pretrained(backbone).eval()
    read = AutoTokenizer.from_pretrained(trained)
    assert read.pad_token == "</s>"
    prompts = [encode_prompt(read, text) for text in tables()[1]["prompt"]]
    found = generate(model, prompts, 12, PolicyRule(1.0)).tokens
    for prompt, answer in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        options = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 1}
        expected = decoder.generate(ids, attention_mask=mask, **options)[0, len(prompt) :]
        assert answer == expected.tolist()


def test_an_epochs_end_is_where_a_killed_run_goes_on(
    backbone: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With several parts a phase: killed in the middle of the second of each."""
    monkeypatch.setattr("consistentee.generation.sampler.CHECKPOINT_TOKENS", 60)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = replace(SETTINGS, joint_tokens=120)
    train(backbone, *tables(), whole, settings, **FIELDS)

    class Killed(BaseException):
        pass

    for phase, step in (("readouts", 7), ("policies", 2), ("joint", 5)):
        compute_loss = PhaseTrainer.compute_loss

        def dies(self, *args, phase=phase, step=step, compute_loss=compute_loss, **kwargs):
            if self.phase == phase and self.state.global_step == step:
                raise Killed
            return compute_loss(self, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PhaseTrainer, "compute_loss", dies)
            with pytest.raises(Killed):
                train(backbone, *tables(), killed, settings, **FIELDS)
        assert not killed.exists()
    log = train(backbone, *tables(), killed, settings, **FIELDS)
    assert list(log["phases"]) == ["readouts", "policies", "joint", "policies.2"]
    assert len(log["phases"]["readouts"]["losses"]) == 4
    weights, expected = (load_file(folder / "model.safetensors") for folder in (killed, whole))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert train(backbone, *tables(), killed, settings, **FIELDS) == log  # it is finished


def test_answers_that_are_there_are_not_made_again(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two blocks of prompts; other answers in the first would be seen."""
    from consistentee.generation import answers

    monkeypatch.setattr(answers, "BLOCK_SIZE", 16)
    calls = []

    def counted(model, prompts, *rest):
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(model, prompts, *rest)

    monkeypatch.setattr(answers, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        train(backbone, *tables(), tmp_path / "model", SETTINGS, **FIELDS)
    assert calls == [16, 16]
    train(backbone, *tables(), tmp_path / "model", SETTINGS, **FIELDS)
    assert calls == [16, 16, 16, 8, 8]


GOLD = GenerationSettings(
    target="gold",
    max_new_tokens=8,
    tokens=3000,
    policy_tokens=1000,
    batch_size=8,
    learning_rate=3e-3,
    policy_learning_rate=1e-2,
    bf16=False,
)


def test_a_trunk_learns_gold_answers(backbone: Path, tmp_path: Path) -> None:
    log = train(backbone, *tables(200, 20), tmp_path / "model", GOLD, readout="trunk")
    dev = log["phases"]["readouts"]["dev"]
    # All but where an answer ends, which is a coin's choice of three lengths.
    assert min(dev["agreement"]) > 0.6
    model = load(tmp_path / "model")
    decoder = AutoModelForCausalLM.from_pretrained(backbone)
    moved = [
        name
        for name, weight in decoder.state_dict().items()
        if not torch.equal(model.backbone.state_dict()[name], weight)
    ]
    assert moved == list(decoder.state_dict())
    assert not any("translator" in name for name in model.state_dict())
    last = log["phases"]["policies"]["dev"]
    assert last["agreement"] == dev["agreement"]  # phase 2 trains policies alone


def test_the_price_of_a_layer_moves_the_exits(backbone: Path, tmp_path: Path) -> None:
    """Free, dear, and between: there policies leave early where that costs no token."""
    layers = {}
    for alpha in (0.0, 0.1, 0.4):
        output = tmp_path / str(alpha)
        log = train(backbone, *tables(200, 20), output, GOLD, readout="trunk", alpha=alpha)
        dev = log["phases"]["policies"]["dev"]
        layers[alpha] = dev["mean_exit_layer"]
        if alpha == 0.1:
            assert dev["agreement_at_exits"] > dev["agreement"][-1] - 0.05
            assert dev["cost_ratio"] > 1.2
    assert layers[0.0] > 3.5
    assert layers[0.4] < 1.5


def test_the_papers_settings(backbone: Path, tmp_path: Path) -> None:
    short: dict[str, Any] = {"max_new_tokens": 8, "tokens": 80, "policy_tokens": 40, "bf16": True}
    settings = GenerationSettings(**{**PAPER_SETTINGS, **short, "joint_tokens": 40})
    log = train(backbone, *tables(), tmp_path / "model", settings, every_layer=True, **PAPER_FIELDS)
    assert list(log["phases"]) == ["readouts", "policies", "joint", "policies.2"]
    config = load(tmp_path / "model").config
    assert (config.exit_layers, config.policy, config.readout) == ([1, 2, 3], "linear", "trunk")
    assert (settings.estimator, settings.samples, settings.target) == ("reinforce", 4, "gold")
    assert log["data"]["learning"]["rows"] == 40


def test_a_loss_that_is_not_finite_stops_the_run(backbone: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, exit_learning_rate=1e30)
    with pytest.raises(RuntimeError, match=r"^readouts: expected a finite loss, got nan at step"):
        train(backbone, *tables(), tmp_path / "model", settings, **FIELDS)
    assert not (tmp_path / "model").exists()


def test_another_run_is_refused(backbone: Path, trained: Path) -> None:
    with pytest.raises(ValueError, match=r"^output: .* another config, settings$"):
        train(backbone, *tables(), trained, replace(SETTINGS, seed=1), rank=8)


PROCESS = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import torch
from test_decoder_training import SETTINGS, replace, tables, train
torch.set_num_threads(1)
train(Path({backbone!r}), *tables(), {output!r}, replace(SETTINGS, **{settings!r}), **{fields!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({}, FIELDS),
        ({"target": "gold", "learning_rate": 1e-2, "lora_rank": 3}, {"readout": "trunk"}),
    ],
    ids=["translators", "lora"],
)
def test_two_processes_share_the_rows_of_a_step(
    backbone: Path, tmp_path: Path, settings: dict[str, Any], fields: DecoderFields
) -> None:
    """A step's loss is then the mean of two means, of about as many tokens each."""
    alone, output = tmp_path / "one", tmp_path / "two"
    train(backbone, *tables(), alone, replace(SETTINGS, **settings), **fields)
    path = [*map(str, (Path(__file__).parent, Path(__file__).parents[1])), *sys.path]
    script = tmp_path / "train.py"
    names = {"backbone": str(backbone), "output": str(output), "path": path}
    script.write_text(PROCESS.format(**names, settings=settings, fields=fields))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    found, expected = (
        json.loads((folder / "training_log.json").read_text())["phases"]
        for folder in (output, alone)
    )
    assert list(found) == list(expected)
    for name in expected:
        assert found[name]["losses"] == pytest.approx(expected[name]["losses"], rel=0.05)
    weights, names_alone = (load_file(f / "model.safetensors") for f in (output, alone))
    assert weights.keys() == names_alone.keys()
