"""`predict` of a file: stopped runs go on, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from support.command_line import Run, check_one_line

from consistentee.evaluation.kept_rows import KeptRows
from consistentee.evaluation.predict import Texts
from consistentee_ext import tokens


@pytest.fixture
def stopped(
    run: Callable[..., Run],
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """An output of which 16 of 40 rows are kept, and half a line of the 17th."""
    monkeypatch.setattr(tokens, "WINDOW", 16)
    output, append = tmp_path / "out.tsv", KeptRows.append

    def stop(kept: KeptRows, *arguments: object) -> None:
        if kept.number:
            raise KeyboardInterrupt
        append(kept, *arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(KeptRows, "append", stop)
        done = run("predict", checkpoint, data / "test.tsv", "--output", output)
    assert done.code == 130
    assert done.err.splitlines()[-1] == "consistentee: interrupted"
    assert [path.name for path in tmp_path.iterdir()] == ["out.tsv.resume"]
    with (tmp_path / "out.tsv.resume").open("a") as file:
        file.write('["praise", 1, 0.')
    return output


def test_a_stopped_run_goes_on(
    run: Callable[..., Run], checkpoint: Path, data: Path, stopped: Path
) -> None:
    whole = stopped.with_name("whole.tsv")
    done = run("predict", checkpoint, data / "test.tsv", "--output", whole, "--resume")
    assert done.err == "predict: 40 of 40 in 00:00, 00:00 left\n"
    before = stopped.with_name("out.tsv.resume").read_text().splitlines()
    assert len(before) == 1 + 16 + 1

    check_one_line(
        run("predict", checkpoint, data / "test.tsv", "--output", stopped),
        "out.tsv.resume: expected none, or --resume; it has 16 of 40 rows",
    )
    resume = ("--output", stopped, "--resume")
    check_one_line(
        run("predict", checkpoint, data / "test.tsv", *resume, "--threshold", 0.99),
        "out.tsv.resume: expected rows of this run, got those of one with another threshold",
    )
    check_one_line(run("predict", checkpoint, data / "dev.tsv", *resume), "one with another input")
    assert stopped.with_name("out.tsv.resume").read_text().splitlines() == before

    done = run("predict", checkpoint, data / "test.tsv", *resume)
    assert done.code == 0, done.err
    assert stopped.read_bytes() == whole.read_bytes()
    assert {path.name for path in stopped.parent.iterdir()} == {"out.tsv", "whole.tsv"}


def test_another_checkpoint_of_that_name_is_no_resume(
    run: Callable[..., Run], data: Path, checkpoint: Path, stopped: Path
) -> None:
    (checkpoint / "model.safetensors").touch()
    done = run("predict", checkpoint, data / "test.tsv", "--output", stopped, "--resume")
    check_one_line(done, "those of one with another checkpoint")


def test_a_tab_in_the_text_is_said_before_the_work(
    run: Callable[..., Run], checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "in.csv").write_text('text,note\na film,"a\tb"\n')
    done = run("predict", checkpoint, tmp_path / "in.csv", "--output", tmp_path / "out.tsv")
    check_one_line(done, "out.tsv: expected no tab or line break in a TSV's text")
    done = run("predict", checkpoint, tmp_path / "in.csv", "--output", tmp_path / "OUT.CSV")
    assert done.code == 0, done.err
    assert (tmp_path / "OUT.CSV").read_text().startswith("text,note,prediction,")


def test_texts_are_read_from_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistentee.evaluation.predict.READ_ROWS", 3)
    columns = {"sentence1": list("abcdefg"), "sentence2": list("hijklmn")}
    pairs = Texts(Dataset.from_dict(columns))
    expected = list(zip(*columns.values(), strict=True))
    assert list(pairs) == expected == [pairs[row] for row in range(7)]
    assert pairs[2:5] == expected[2:5]
    singles = Texts(Dataset.from_dict({"sentence1": columns["sentence1"]}))
    assert list(singles) == columns["sentence1"] == [singles[row] for row in range(7)]
    assert singles[5:9] == ["f", "g"]
    assert len(singles) == len(pairs) == 7
