"""Exits added to classifiers of every family and kind, and what their answers are then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.models import random_batch, scramble, tiny_bert_config
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertTokenizer,
    set_seed,
)

from consistentee.evaluation.checkpoints import calibrate_checkpoint
from consistentee.training import addition
from consistentee.training.add_exits import add_exits, split_rows
from consistentee.training.settings import AddExitsSettings
from consistentee_ext import FastEarlyExitEncoder

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SETTINGS = AddExitsSettings(
    max_disagreement=0.2,
    epochs=2,
    policy_epochs=2,
    trunk_epochs=1,
    batch_size=8,
    bf16=False,
    seed=3,
)
KINDS: dict[str, dict[str, Any]] = {
    "classes": {"num_labels": 3},
    "sets": {"num_labels": 3, "problem_type": "multi_label_classification"},
    "score": {"num_labels": 1},
    "number": {"num_labels": 1, "problem_type": "regression"},
}


def save_classifier(folder: Path, family: str = "bert", dtype: Any = None, **fields: Any) -> Path:
    sizes = tiny_bert_config(num_hidden_layers=3, vocab_size=len(WORDS)).to_dict()
    names = (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
        "intermediate_size", "max_position_embeddings",
    )  # fmt: skip
    values = {n: sizes[n] for n in names} | {"num_key_value_heads": 2, "head_dim": 8}
    config = AutoConfig.for_model(family, **values, pad_token_id=0, **fields)
    set_seed(0)
    model = scramble(AutoModelForSequenceClassification.from_config(config), seed=5)
    model.to(dtype or torch.float32).save_pretrained(folder)
    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder)
    return folder


def texts(rows: int, paired: bool = False) -> Dataset:
    choose = np.random.default_rng(1)
    names = ("sentence1", "sentence2") if paired else ("sentence1",)
    columns = {
        name: [" ".join(choose.choice(list(WORDS[5:]), choose.integers(1, 9))) for _ in range(rows)]
        for name in names
    }
    return Dataset.from_dict(columns)


def rows_of(table: Dataset) -> list[Any]:
    if "sentence2" not in table.column_names:
        return list(table["sentence1"])
    return list(zip(table["sentence1"], table["sentence2"], strict=True))


@pytest.mark.parametrize("tune_trunk", [False, True], ids=["frozen", "tuned"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_answer(kind: str, tune_trunk: bool, tmp_path: Path) -> None:
    plain, output = save_classifier(tmp_path / "plain", **KINDS[kind]), tmp_path / "exits"
    table = texts(80, paired=kind == "score")
    settings = AddExitsSettings(**(vars(SETTINGS) | {"tune_trunk": tune_trunk}))
    log = add_exits(plain, table, output, settings)
    folds = [f"heads.{number}of4" for number in (1, 2, 3, 4)]
    first = ["heads", "trunk"] if tune_trunk else [*folds, "heads"]
    assert list(log["phases"]) == [*first, "policies"]
    found = FastEarlyExitEncoder.from_pretrained(output)
    before = FastEarlyExitEncoder.from_pretrained(plain)
    assert found.exit_layers == (1, 2, 3)
    assert found.config.problem_type == before.config.problem_type
    assert found.config.id2label == before.config.id2label
    assert found.threshold == log["calibration"]["threshold"]
    exits = found.predict(rows_of(table))
    found.threshold = 1.0
    full, expected = found.predict(rows_of(table)), before.predict(rows_of(table))
    assert torch.equal(full.logits, expected.logits) is not tune_trunk
    # What the log says of the rows held out, counted from what the engine answers.
    rows = torch.from_numpy(split_rows(80, settings).calibration)
    same = agree(kind, exits.logits[rows], full.logits[rows])
    assert log["calibration"]["rows"] == len(rows) == 40
    assert log["calibration"]["disagreement"] == pytest.approx(1 - same.float().mean().item())
    ratio = 3 / exits.exit_layers[rows].double().mean().item()
    assert log["calibration"]["layer_ratio"] == pytest.approx(ratio)
    if tune_trunk:
        moved = 1 - agree(kind, full.logits[rows], expected.logits[rows]).float().mean().item()
        assert log["calibration"]["full_depth_disagreement"] == pytest.approx(moved)


def agree(kind: str, logits: torch.Tensor, full: torch.Tensor) -> torch.Tensor:
    if kind == "classes":
        return logits.argmax(-1) == full.argmax(-1)
    if kind == "sets":
        return ((logits > 0) == (full > 0)).all(dim=-1)
    if kind == "score":
        logits, full = logits.sigmoid(), full.sigmoid()
    return (logits - full).abs()[:, 0] <= 0.05


# What a family's own head reads, and what it applies before its last product.
FAMILIES = {
    "bert": ("cls", "tanh"),
    "roberta": ("cls", "tanh"),
    "distilbert": ("cls", "relu"),
    "megatron-bert": ("cls", "tanh"),  # a norm behind the last block
    "qwen3": ("last", "none"),  # that too, and one product without bias
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_last_answers_are_the_models_bit_for_bit(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    """Its pooling, its activation, its dtype; the new heads read means."""
    plain = save_classifier(tmp_path / "plain", family, dtype, num_labels=3)
    add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)
    config = json.loads((tmp_path / "exits" / "config.json").read_text())
    assert config["pooling"] == "mean"
    assert (config["last_pooling"], config["last_activation"]) == FAMILIES[family]
    batch = random_batch([5, 2, 9], seed=2)
    batch["input_ids"] %= len(WORDS)
    batch.pop("token_type_ids")
    for backend in ("cpu", "torch"):
        before, after = (
            FastEarlyExitEncoder.from_pretrained(folder, backend=backend, dtype="auto")
            for folder in (plain, tmp_path / "exits")
        )
        assert after.dtype == dtype
        after.threshold = 1.0
        assert torch.equal(after(**batch).logits, before(**batch).logits)


def test_heads_and_policies_learn(tmp_path: Path) -> None:
    """Heads come to agree with the last one, and more rows may leave early."""
    plain = save_classifier(tmp_path / "plain", num_labels=3)
    change = {"epochs": 30, "policy_epochs": 20, "max_disagreement": 0.05}
    settings = AddExitsSettings(**(vars(SETTINGS) | change))
    log = add_exits(plain, texts(200), tmp_path / "exits", settings)
    untrained = AddExitsSettings(**(vars(settings) | {"epochs": 1, "head_learning_rate": 1e-9}))
    before = add_exits(plain, texts(200), tmp_path / "untrained", untrained)
    first, last = log["phases"]["heads"]["losses"][0], log["phases"]["heads"]["losses"][-1]
    assert last < first / 2
    learned, chance = (
        np.mean(run["phases"]["heads.1of4"]["dev"]["layer_agreement"][:-1]) for run in (log, before)
    )
    assert learned > chance + 0.1
    assert log["calibration"]["layer_ratio"] > before["calibration"]["layer_ratio"]


def test_labels_are_learned_too(tmp_path: Path) -> None:
    plain = save_classifier(tmp_path / "plain", num_labels=2)
    table = texts(60)
    labels = [f"LABEL_{int(text[0] > 'm')}" for text in table["sentence1"]]
    log = add_exits(plain, table.add_column("label", labels), tmp_path / "a", SETTINGS)
    without = add_exits(plain, table, tmp_path / "b", SETTINGS)
    assert log["phases"]["heads"]["losses"][0] > without["phases"]["heads"]["losses"][0]
    assert 0 <= log["calibration"]["accuracy"] <= 1
    assert "accuracy" not in without["calibration"]


def test_a_stopped_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = save_classifier(tmp_path / "plain", num_labels=3)
    whole = add_exits(plain, texts(60), tmp_path / "whole", SETTINGS)

    def stop(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(addition, "PolicyNetwork", stop)
        with pytest.raises(KeyboardInterrupt):
            add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)
    assert not (tmp_path / "exits").exists()
    with monkeypatch.context() as patch:
        patch.setattr(addition, "pooled_states", stop)  # they are in the folder
        log = add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)
    assert log["calibration"] == whole["calibration"]
    assert (tmp_path / "exits" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model.safetensors"
    ).read_bytes()
    assert add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)["phases"] == log["phases"]
    with pytest.raises(ValueError, match=r"output: .* a run with another model"):
        add_exits(
            save_classifier(tmp_path / "other", num_labels=3, hidden_act="relu"),
            texts(60),
            tmp_path / "exits",
            SETTINGS,
        )
    with pytest.raises(ValueError, match=r"output: .* a run with another data"):
        add_exits(plain, texts(61), tmp_path / "exits", SETTINGS)


def test_calibrate_by_agreement(tmp_path: Path) -> None:
    """The same rows give the threshold that adding found; fewer disagreements a higher one."""
    plain = save_classifier(tmp_path / "plain", num_labels=3)
    table = texts(80)
    log = add_exits(plain, table, tmp_path / "exits", SETTINGS)
    rows = table.select(split_rows(80, SETTINGS).calibration)
    found = calibrate_checkpoint(tmp_path / "exits", rows, max_disagreement=0.2)
    assert found.threshold == log["calibration"]["threshold"]
    assert found.disagreement == pytest.approx(log["calibration"]["disagreement"])
    assert found.layer_ratio == pytest.approx(log["calibration"]["layer_ratio"])
    assert found.quality is None
    with pytest.raises(ValueError, match="expected at least 59 rows to prove a disagreement"):
        calibrate_checkpoint(tmp_path / "exits", rows, max_disagreement=0.05)
    with pytest.raises(ValueError, match="max_accuracy_drop: expected labels"):
        calibrate_checkpoint(tmp_path / "exits", rows, max_accuracy_drop=0.5)


@pytest.mark.parametrize(
    ("rows", "change", "message"),
    [
        (1, {}, "data: expected at least 14 rows held out, .* got 1 rows"),
        (
            80,
            {"max_disagreement": 0.01},
            "at least 299 rows held out, .* 0.01 with confidence 0.95",
        ),
        (80, {"max_disagreement": 0.02}, "at least 149 rows held out"),
        (80, {"confidence": 1.0}, "confidence: expected a number above 0 and below 1, got 1.0"),
        (80, {"tolerance": 0.0}, "tolerance: expected a number above 0, got 0.0"),
    ],
)
def test_what_cannot_be_is_said(
    rows: int, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        add_exits(
            tmp_path, texts(rows), tmp_path / "out", AddExitsSettings(**(vars(SETTINGS) | change))
        )
    assert not (tmp_path / "out.partial").exists()


def test_a_padding_token_at_the_end_of_texts_is_refused(tmp_path: Path) -> None:
    """A causal classifier reads the token before it; its exits would read another."""
    plain = save_classifier(tmp_path / "plain", "qwen3", num_labels=3)
    tokenizer = BertTokenizer.from_pretrained(plain, pad_token="[SEP]")
    tokenizer.save_pretrained(plain)
    with pytest.raises(ValueError, match=r"model: expected a tokenizer that does not end texts wi"):
        add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)
    assert not (tmp_path / "exits.partial").exists()


@pytest.mark.parametrize("fields", [{}, {"classifier_pooling": "mean"}], ids=str)
def test_a_head_that_exits_cannot_compute_is_refused(fields: Any, tmp_path: Path) -> None:
    plain = save_classifier(tmp_path / "plain", "modernbert", num_labels=3, **fields)
    with pytest.raises(ValueError, match="to which no exits can be added yet"):
        add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)


def test_parts_are_apart_and_of_their_sizes() -> None:
    for rows, held_out in ((100, 50), (900, 450), (1200, 500), (10_000, 3000)):
        parts = split_rows(rows, SETTINGS)
        assert sorted(np.concatenate(parts)) == list(range(rows))
        assert len(parts.calibration) == held_out


def test_a_model_with_exits_is_refused(tmp_path: Path) -> None:
    plain = save_classifier(tmp_path / "plain", num_labels=3)
    add_exits(plain, texts(60), tmp_path / "exits", SETTINGS)
    with pytest.raises(ValueError, match="model: expected a classifier without exits"):
        add_exits(tmp_path / "exits", texts(60), tmp_path / "again", SETTINGS)
