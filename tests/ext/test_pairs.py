"""Heads that compare the two texts of a row: training model and engines give the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_device import Device
from support.family_cases import VOCABULARY, blown_up, config_of
from support.models import pack

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.graphs import PassGraphs
from consistentee_ext.packed import ExitResults
from consistentee_ext.segments import first_lengths

SEPARATOR = 3
CASES = ["bert", "roberta", "distilbert", "modernbert", "deberta-v3"]


def model_of(case: str = "bert", seed: int = 3, **fields: Any) -> Any:
    options: dict[str, Any] = {"pooling": "pair", "separator_id": SEPARATOR, "policy_input": "both"}
    config = ConsistentEEConfig(config_of(case), num_labels=3, **(options | fields))
    return blown_up(ConsistentEEForSequenceClassification(config), seed)


# Tokens of each row: two texts, one, none behind a separator, three, a separator first, one token.
ROWS = [
    [7, 8, 9, SEPARATOR, 10, 11, SEPARATOR],
    [12, 13, 14, 15],
    [16, 17, SEPARATOR],
    [18, SEPARATOR, 19, SEPARATOR, 20, 21, 22, 23, SEPARATOR],
    [SEPARATOR, 24, 25],
    [26],
    [27, 28, SEPARATOR, 29],
]
FIRST_LENGTHS = [4, 4, 3, 2, 1, 1, 3]


def batch_of(rows: list[list[int]] = ROWS) -> dict[str, torch.Tensor]:
    """Padded with the separator, which must not matter."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [SEPARATOR] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def check(model: Any, encoder: FastEarlyExitEncoder) -> None:
    """The same rows leave at the same layers, with the same logits."""
    batch = batch_of()
    with torch.no_grad():
        output = model(**batch)
    certain = torch.ones(len(ROWS), 1)
    leaves = torch.cat((output.policy_logits.sigmoid(), certain), dim=1)
    threshold = leaves[:, 0].median().item() + 1e-4
    stay = leaves <= threshold
    stay[:, -1] = False
    layers = (~stay).int().argmax(dim=1)
    encoder.threshold = threshold
    found = encoder(**batch)
    assert found.exit_layers.tolist() == (layers + 1).tolist()
    assert len(set(layers.tolist())) > 1
    expected = output.exit_logits[torch.arange(len(ROWS)), layers]
    assert (found.logits - expected).abs().max() <= 2e-5 * expected.abs().max()


@pytest.mark.parametrize("case", CASES)
def test_exits_match_the_padded_model(case: str, backend: str) -> None:
    model = model_of(case)
    check(model, FastEarlyExitEncoder(model, backend=backend))


@pytest.mark.parametrize("case", ["bert", "modernbert"])
@pytest.mark.parametrize("sync", ["eager", "lagged"])
def test_exits_match_on_the_path_of_a_device(
    monkeypatch: pytest.MonkeyPatch, case: str, sync: str
) -> None:
    """With blocks that norm last, whose norm pools, and first, where the pooling is apart; without
    graphs and with them."""
    monkeypatch.setattr("consistentee_ext.engines.load_device_ops", lambda backend: Device())
    monkeypatch.setattr(
        "consistentee_ext.packed_module.select_backend", lambda device, backend: "cuda"
    )
    model = model_of(case)
    encoder = FastEarlyExitEncoder(model, backend="cuda", sync=sync)
    engine = encoder._engine
    assert isinstance(engine, DeviceEngine)
    check(model, encoder)
    graphs = PassGraphs(engine.stack, engine.exits, engine._ops, lambda: lambda run: run)
    encoder._engine = DeviceEngine(engine.stack, engine.exits, engine._ops, sync, graphs)
    for _ in range(2):
        check(model, encoder)


def test_a_state_is_what_the_definition_says() -> None:
    model, batch = model_of(), batch_of()
    with torch.no_grad():
        hidden = model.backbone(**batch, output_hidden_states=True).hidden_states[1]
        states = model(**batch).states[:, 0]
        for row, (ids, first) in enumerate(zip(ROWS, FIRST_LENGTHS, strict=True)):
            u = hidden[row, :first].mean(dim=0)
            v = hidden[row, first : len(ids)].mean(dim=0) if first < len(ids) else u
            x = torch.cat([u, v, (u - v).abs(), u * v])
            expected = torch.tanh(model.heads[0].pooler(x))
            torch.testing.assert_close(states[row], expected, atol=1e-5, rtol=1e-5)


def test_first_lengths() -> None:
    model = model_of()
    inputs = pack(batch_of(), FastEarlyExitEncoder(model)._limits)
    assert inputs.row_ids.tolist() != list(range(len(ROWS)))
    assert first_lengths(inputs, SEPARATOR).tolist() == FIRST_LENGTHS


def test_a_pass_in_two_parts(backend: str) -> None:
    encoder = FastEarlyExitEncoder(model_of(), backend=backend, threshold=0.6)
    engine, batch = encoder._engine, batch_of()
    whole = encoder(**batch)
    inputs, results = pack(batch, encoder._limits), ExitResults.empty(len(ROWS), 3)
    with torch.inference_mode():
        rest = engine.advance(inputs, 0, 1, results)
        engine.advance(rest, 1, 3, results, engine.exits.first_lengths(inputs))
    assert torch.equal(results.exit_layers, whole.exit_layers)
    torch.testing.assert_close(results.logits, whole.logits)


def test_a_last_head_with_a_pooling_of_its_own(backend: str) -> None:
    model = model_of(last_pooling="cls")
    assert model.heads[-1].pooler.in_features == 32
    check(model, FastEarlyExitEncoder(model, backend=backend))


def test_checkpoints(tmp_path: Path) -> None:
    model = model_of()
    model.save_pretrained(tmp_path)
    check(model, FastEarlyExitEncoder.from_pretrained(tmp_path, tokenizer=object()))
    loaded = ConsistentEEForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch_of()).logits, model(**batch_of()).logits)


def test_texts_are_compared_as_rows_are() -> None:
    encoder = FastEarlyExitEncoder(model_of())

    def tokenizer(*columns: object, **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": ROWS}

    found = encoder.predict(["text"] * len(ROWS), tokenizer).logits
    torch.testing.assert_close(found, encoder(**batch_of()).logits, atol=1e-5, rtol=1e-5)
    assert max(map(max, ROWS)) < VOCABULARY


def test_a_pair_needs_a_separator() -> None:
    with pytest.raises(ValueError, match="separator_id: expected that of the tokenizer"):
        ConsistentEEConfig(config_of("bert"), pooling="pair")
