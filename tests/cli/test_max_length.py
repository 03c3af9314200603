"""`train --max-length`: what reads the checkpoint cuts rows there as well."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command_line import Run, check_one_line
from support.files import write
from transformers import AutoTokenizer

from consistentee.data.encode import encode_for
from consistentee.data.tables import load_table, load_texts
from consistentee.evaluation.evaluate import load_model
from consistentee_ext import FastEarlyExitEncoder

# Four tokens are [CLS], two words and [SEP]: these differ behind the second word.
LONG = ["film was good good good good", "plot the bad bad bad", "a very lovely"]
CUT = ["film was", "plot the", "a very"]


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory, data: Path, backbone: Path) -> Path:
    from consistentee.data.tables import load_splits
    from consistentee.training.prepare import train_on_splits
    from consistentee.training.settings import TrainingSettings

    output = tmp_path_factory.mktemp("short") / "model"
    train_on_splits(str(backbone), load_splits([data]), output, TrainingSettings(epochs=1), 4)
    return output


def test_the_checkpoint_keeps_it(short: Path, checkpoint: Path) -> None:
    assert json.loads((short / "config.json").read_text())["max_tokens"] == 4
    assert AutoTokenizer.from_pretrained(short).model_max_length == 4
    # Without the option: the encoder has positions for 16.
    assert json.loads((checkpoint / "config.json").read_text())["max_tokens"] == 16


def test_predict_cuts_rows_there(run: Callable[..., Run], short: Path, tmp_path: Path) -> None:
    encoder = FastEarlyExitEncoder.from_pretrained(short)
    assert (encoder.config.max_tokens, encoder.max_positions) == (4, 16)
    found, expected = encoder.predict(LONG), encoder.predict(CUT)
    assert torch.equal(found.logits, expected.logits)
    # The words behind do matter to a call with all tokens.
    tokens = AutoTokenizer.from_pretrained(short)(LONG[:1], return_tensors="pt", truncation=False)
    assert not torch.allclose(encoder(tokens["input_ids"]).logits, found.logits[:1])
    output = tmp_path / "out.jsonl"
    done = run("predict", short, write(tmp_path / "in.tsv", "text\n" + "\n".join(LONG) + "\n"),
               "--output", output)  # fmt: skip
    assert done.code == 0, done.err
    rows, _ = load_texts(output)
    assert rows["exit_score"][:] == pytest.approx(expected.exit_scores.tolist(), rel=1e-6)


def test_evaluate_and_calibrate_cut_rows_there(short: Path, tmp_path: Path) -> None:
    lines = "".join(f"{text}\tpraise\n" for text in LONG)
    table = load_table(write(tmp_path / "t.tsv", "text\tlabel\n" + lines))
    model = load_model(short)
    tokenizer = AutoTokenizer.from_pretrained(short)
    data = encode_for(model.config, table, tokenizer, model.max_length)
    assert data["length"][:] == [4, 4, 4]


def test_more_than_the_encoder_has_positions_for(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "model"
    train = ("train", "--model", backbone, "--data", data, "--output", output)
    check_one_line(
        run(*train, "--max-length", 17),
        "max_length: expected at most 16, the encoder's number of positions, got 17",
    )
    check_one_line(run(*train, "--max-length", 2), "max_length: expected above 2")
    assert not output.exists()
