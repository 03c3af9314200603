"""Outputs of all layers and their report, against a loop over rows."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from support.models import random_batch, tiny_model
from transformers import BertTokenizer, DataCollatorWithPadding

from consistentee.measures.layer_outputs import exit_report, pooled_states


def test_states_keep_the_order_of_the_rows():
    model = tiny_model()
    lengths = [5, 2, 9, 3, 9, 1]
    batch = random_batch(lengths)
    rows = {
        name: [row[:length].tolist() for row, length in zip(values, lengths, strict=True)]
        for name, values in batch.items()
    }
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3})
    data = Dataset.from_dict({**rows, "length": lengths, "labels": [0] * 6})
    states = pooled_states(model, data, DataCollatorWithPadding(tokenizer), batch_size=4)
    with torch.no_grad():
        expected = model.pooled_states(**batch)
    torch.testing.assert_close(states, expected)


def test_report_against_a_loop():
    model = tiny_model(policy_input="state", classes=2, seed=3)
    states = torch.randn(64, 4, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 2
    with torch.no_grad():
        output = model(pooled_states=states)
    model.config.threshold = output.policy_logits.sigmoid().median().item()
    exits, right = [], []
    for row in range(64):
        layer = next(
            (
                i
                for i, p in enumerate(output.policy_logits[row])
                if p.sigmoid() > model.config.threshold
            ),
            3,
        )
        exits.append(layer + 1)
        right.append(output.exit_logits[row, layer].argmax().item() == labels[row].item())
    assert len(set(exits)) == 4
    report = exit_report(output, labels, model.config)
    correct = output.exit_logits.argmax(-1) == labels[:, None]
    assert report["layer_accuracy"] == pytest.approx(correct.float().mean(0).tolist())
    assert report["full_depth_accuracy"] == report["layer_accuracy"][-1]
    assert report["accuracy"] == pytest.approx(sum(right) / 64)
    assert report["mean_exit_layer"] == pytest.approx(sum(exits) / 64)
    assert report["layer_ratio"] == pytest.approx(4 / (sum(exits) / 64))


def test_report_in_the_metric_of_the_task():
    model = tiny_model(policy_input="state", classes=2, seed=3)
    states = torch.randn(64, 4, 32, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64) % 2
    with torch.no_grad():
        output = model(pooled_states=states)
    model.config.metric = "f1"
    predicted = output.exit_logits[:, -1].argmax(-1)
    hits = int((predicted & labels).sum())
    expected = 2 * hits / int(predicted.sum() + labels.sum())
    assert exit_report(output, labels, model.config)["full_depth_f1"] == pytest.approx(expected)
