"""The threshold that a guarantee allows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.decoder_folder import rows, save_decoder, tokenizer
from transformers import AutoModelForCausalLM

from consistentee.generation.backbone import with_exits
from consistentee.generation.calibrate import calibrate_generator
from consistentee.generation.data import answered_rows
from consistentee.generation.measure import teacher_forced
from consistentee.generation.rouge import rouge
from consistentee.measures.calibration import (
    GRID,
    drop_p_value,
    mean_p_value,
    rows_needed,
    threshold_for_mean_loss,
)
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule

NEW = 5


def test_p_values_of_losses_that_are_0_or_1_are_those_of_a_drop() -> None:
    losses = np.array([1.0] * 3 + [0.0] * 197)
    assert mean_p_value(losses, 0.05) == pytest.approx(drop_p_value(3, 0, 200, 0.05))
    assert mean_p_value(np.full(400, 0.02), 0.05) < 0.01
    assert mean_p_value(np.full(400, 0.05), 0.05) == 1.0


def test_a_p_value_is_seldom_small_where_the_mean_is_too_high() -> None:
    """Losses of mean 0.1 exactly: at most 5% of draws may prove a mean of at most 0.1."""
    generator = np.random.default_rng(0)
    draws = generator.beta(0.2, 1.8, size=(2000, 300))
    proved = [mean_p_value(losses, 0.1) <= 0.05 for losses in draws]
    assert np.mean(proved) < 0.05
    lower = [mean_p_value(losses, 0.16) <= 0.05 for losses in draws]
    assert np.mean(lower) > 0.5  # it is not for want of power


def test_thresholds_are_tested_from_the_slowest_to_the_first_that_fails() -> None:
    asked = []

    def losses(threshold: float) -> np.ndarray:
        asked.append(threshold)
        return np.full(400, 0.0 if threshold > 0.9 else 0.2)

    found = threshold_for_mean_loss(losses, 0.05, 0.95)
    assert asked == list(GRID[::4])[: len(asked)]
    assert found == asked[-2] > 0.9 >= asked[-1]
    needed = rows_needed(0.05, 0.95)
    with pytest.raises(ValueError, match=rf"^data: expected at least {needed} texts .*, got 9$"):
        threshold_for_mean_loss(lambda threshold: np.zeros(9), 0.05, 0.95)
    with pytest.raises(ValueError, match=r"^max_loss: expected a number above 0 and below 1"):
        threshold_for_mean_loss(losses, 1.0, 0.95)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    decoder = AutoModelForCausalLM.from_pretrained(save_decoder(tmp_path / "decoder"))
    model = with_exits(decoder, tokenizer(), exit_layers=[1, 3])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".policy." in name:
                parameter.normal_(std=0.4)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("goal", ["max_token_change", "max_rouge_loss"])
def test_a_checkpoint_gets_the_threshold_that_its_losses_allow(checkpoint: Path, goal: str) -> None:
    table = Dataset.from_list(rows(300, 9)).select_columns(["prompt"])
    most = 0.3
    found = calibrate_generator(checkpoint, table, **{goal: most}, max_new_tokens=NEW)
    model = ConsistentEEForCausalLM.from_pretrained(checkpoint).eval()
    assert json.loads((checkpoint / "config.json").read_text())["threshold"] == found.threshold
    assert model.config.threshold == found.threshold < 1.0
    read = tokenizer()
    prompts = [encode_prompt(read, text) for text in table["prompt"]]
    full = generate(model, prompts, NEW, PolicyRule(1.0)).tokens
    assert any(len(answer) == 1 for answer in full)  # no token of these can leave

    def losses(threshold: float) -> tuple[np.ndarray, float]:
        if goal == "max_token_change":
            forced = teacher_forced(model, answered_rows("", prompts, full), PolicyRule(threshold))
            right = iter(forced.right.double().tolist())
            shares = [
                1 - np.mean([next(right) for _ in answer[1:]]) if len(answer) > 1 else 0.0
                for answer in full
            ]
            return np.array(shares), forced.exit_layers.double().mean().item()
        made = generate(model, prompts, NEW, PolicyRule(threshold))
        texts, references = (
            [str(read.decode(ids, skip_special_tokens=True)) for ids in tokens]
            for tokens in (made.tokens, full)
        )
        layers = [layer for of_text in made.exit_layers for layer in of_text]
        scores = rouge(texts, references)["rougeL"]
        # Two texts without words have no ROUGE, and may still be the same.
        same = [a == b for a, b in zip(made.tokens, full, strict=True)]
        lost = [0.0 if s else 1 - score / 100 for s, score in zip(same, scores, strict=True)]
        return np.array(lost), float(np.mean(layers))

    expected, layers = losses(found.threshold)
    assert found.loss == pytest.approx(expected.mean())
    assert found.mean_exit_layer == pytest.approx(layers)
    assert mean_p_value(expected, most) <= 0.05
    lower = GRID[::4][GRID[::4].index(found.threshold) + 1]
    assert mean_p_value(losses(lower)[0], most) > 0.05


def test_a_goal_that_cannot_be_proved_leaves_the_checkpoint(checkpoint: Path) -> None:
    before = (checkpoint / "config.json").read_bytes()
    table = Dataset.from_list(rows(299, 9))
    for goals, message in (
        ({}, r"calibrate: expected one of .*, got neither"),
        ({"max_token_change": 0.1, "max_rouge_loss": 0.1}, r"calibrate: .*, got both"),
        ({"max_token_change": 0.1}, r"data: expected at least 300 prompts, got 299"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            calibrate_generator(checkpoint, table, **goals)  # type: ignore[arg-type]
    more = Dataset.from_list(rows(300, 9))
    with pytest.raises(ValueError, match=r"^data: expected at least \d+ texts to prove a loss of"):
        calibrate_generator(checkpoint, more, max_token_change=0.001, max_new_tokens=NEW)
    assert (checkpoint / "config.json").read_bytes() == before
