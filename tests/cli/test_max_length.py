"""`train --max-length` is a part of the checkpoint: whatever reads texts cuts them there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.command_line import TRAINED_WITH, Run

from consistentee_ext import FastEarlyExitEncoder


@pytest.mark.slow
def test_every_reader_cuts_where_training_did(
    run: Callable[..., Run], data: Path, backbone: Path, tmp_path: Path
) -> None:
    output = tmp_path / "short"
    arguments = ["--model", backbone, "--data", data, "--output", output, "--max-length", 5]
    assert run("train", *arguments, *TRAINED_WITH).code == 0
    encoder = FastEarlyExitEncoder.from_pretrained(output)
    assert encoder.config.max_tokens == 5
    words = (data / "dev.tsv").read_text().splitlines()[1].split("\t")[0].split()
    texts = [" ".join((words * 4)[:length]) for length in (2, 3, 4, 9)]
    found = encoder.predict(texts)
    ids = encoder.tokenizer(texts, truncation=True, max_length=5, padding=True, return_tensors="pt")
    assert ids["input_ids"].shape == (4, 5)
    torch.testing.assert_close(found.logits, encoder(**ids).logits, atol=1e-5, rtol=1e-5)
    # Texts that agree in what is kept have one answer on the command line, too.
    rows = tmp_path / "rows.tsv"
    rows.write_text("sentence\n" + "\n".join(texts[1:]) + "\n")
    done = run("predict", output, rows, "--output", tmp_path / "out.tsv")
    assert done.code == 0
    lines = (tmp_path / "out.tsv").read_text().splitlines()[1:]
    assert len({line.split("\t", 1)[1] for line in lines}) == 1
