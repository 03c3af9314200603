"""A checkpoint that version 0.1 wrote gives what version 0.1 gave."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder

FOLDER = Path(__file__).parents[1] / "support" / "checkpoint_0_1"
EXPECTED = json.loads((FOLDER / "expected.json").read_text(encoding="utf-8"))
BATCH = {name: torch.tensor(EXPECTED[name]) for name in ("input_ids", "attention_mask")}


@pytest.mark.parametrize("case", EXPECTED["cases"], ids=lambda case: str(case["options"]))
def test_the_engine_reads_it(case: dict, backend: str) -> None:
    encoder = FastEarlyExitEncoder.from_pretrained(
        FOLDER, tokenizer=object(), backend=backend, **case["options"]
    )
    output = encoder(**BATCH)
    assert output.exit_layers.tolist() == case["exit_layers"]
    assert len(set(case["exit_layers"])) > 1
    torch.testing.assert_close(output.logits, torch.tensor(case["logits"]), atol=1e-5, rtol=1e-5)
    assert encoder.config.id2label == {0: "no", 1: "yes"}


def test_training_reads_it() -> None:
    model = ConsistentEEForSequenceClassification.from_pretrained(FOLDER).eval()
    assert (model.config.metric, model.config.alpha_range) == ("f1", [0.02, 0.2])
    with torch.no_grad():
        logits = model(**BATCH).exit_logits
    for case in EXPECTED["cases"]:
        layers = torch.tensor(case["exit_layers"])
        found = logits[torch.arange(len(layers)), layers - 1]
        torch.testing.assert_close(found, torch.tensor(case["logits"]), atol=1e-5, rtol=1e-5)
