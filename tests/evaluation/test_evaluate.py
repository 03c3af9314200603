"""Evaluation against a row by row count, with a tokenizer that only pads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from datasets import Dataset
from support.models import random_batch, tiny_model
from transformers import BertTokenizer

from consistentee.data.batch import Batch
from consistentee.evaluation.evaluate import (
    evaluate,
    full_depth_logits,
    padded_batches,
    time_passes,
)
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names

LENGTHS = [5, 2, 9, 30, 9, 1, 12, 7, 3]
TOKENIZER = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})


def rows_of(lengths: list[int], classes: int) -> Dataset:
    batch = random_batch(lengths, seed=3)
    columns = {
        name: [row[:length].tolist() for row, length in zip(values, lengths, strict=True)]
        for name, values in batch.items()
    }
    labels = [row % classes for row in range(len(lengths))]
    return Dataset.from_dict({**columns, "length": lengths, "labels": labels})


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_full_depth_is_the_models_last_layer(pooling: str) -> None:
    model = tiny_model(pooling)
    inputs = random_batch(LENGTHS, seed=3)
    with torch.no_grad():
        torch.testing.assert_close(full_depth_logits(model, inputs), model(**inputs).logits)


def test_evaluate_counts_rows() -> None:
    model, data = tiny_model(classes=3), rows_of(LENGTHS, 3)
    encoder = FastEarlyExitEncoder(model)
    found = evaluate(encoder, model, data, TOKENIZER, batch_size=4, repeats=1)
    alone = [encoder(torch.tensor([ids]), None, torch.tensor([types])) for ids, types in
             zip(data["input_ids"], data["token_type_ids"], strict=True)]  # fmt: skip
    layers = [output.exit_layers.item() for output in alone]
    right = [output.logits.argmax().item() == row % 3 for row, output in enumerate(alone)]
    metrics = found.metrics
    assert found.exit_layers == layers
    assert metrics["accuracy"] == sum(right) / 9
    assert metrics["mean_exit_layer"] == pytest.approx(sum(layers) / 9)
    assert metrics["layer_ratio"] == pytest.approx(4 / (sum(layers) / 9))
    assert metrics["exit_histogram"] == [layers.count(layer) for layer in (1, 2, 3, 4)]
    assert metrics["rows"] == 9
    encoder.threshold = 1.0
    at_full_depth = evaluate(encoder, model, data, TOKENIZER, batch_size=4, repeats=1).metrics
    assert at_full_depth["accuracy"] == metrics["full_depth_accuracy"]


def test_batches_keep_order_and_pad_to_their_longest_row() -> None:
    batches = padded_batches(rows_of(LENGTHS, 3), TOKENIZER, 4)
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(4, 30), (4, 12), (1, 3)]
    assert [batch["attention_mask"].sum(1).tolist() for batch in batches] == [
        [5, 2, 9, 30], [9, 1, 12, 7], [3],
    ]  # fmt: skip
    assert not set(batches[0]) & {"labels", "length"}


BATCHES: list[Batch] = [{"input_ids": torch.tensor([[number]])} for number in (1, 2)]


def test_passes_are_timed_in_turn(capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []

    def pass_of(name: str) -> Callable[[Batch], None]:
        return lambda batch: calls.append(f"{name}{batch['input_ids'].item()}")

    passes = {name: pass_of(name) for name in "ab"}
    seconds = time_passes(passes, BATCHES, 2, "stage")
    assert calls == ["a1", "a2", "b1", "b2"] * 3  # the first of each warms up
    assert [len(times) for times in seconds.values()] == [2, 2]
    assert all(time >= 0 for times in seconds.values() for time in times)
    assert capsys.readouterr().err == "stage: 12 of 12 in 00:00, 00:00 left\n"


def test_slow_passes_are_timed_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: 6 * next(clock))
    seconds = time_passes({"a": len, "b": len}, BATCHES, 3)
    assert seconds == {"a": [12], "b": [12]}
    assert capsys.readouterr().err == ""


def test_class_names_are_in_the_order_of_their_numbers() -> None:
    model = tiny_model(classes=12)
    assert class_names(model.config) == [f"LABEL_{index}" for index in range(12)]
