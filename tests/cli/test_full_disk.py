"""A disk without room, in every command that writes: one line that names the file or folder."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import TRAINED_WITH, Run, check_one_line
from support.full_disk import largest_file


@pytest.mark.parametrize("size", [20_000, 200_000])
def test_train_keeps_what_it_has(
    run: Callable[..., Run], backbone: Path, data: Path, tmp_path: Path, size: int
) -> None:
    """The weights of a checkpoint do not fit, or those fit and the optimizer's state does not."""
    output = tmp_path / "model"
    command = ("train", "--model", backbone, "--data", data, "--output", output, *TRAINED_WITH)
    with largest_file(size):
        done = run(*command)
    folder = "model.partial/trunk.held_out.checkpoints"
    check_one_line(done, f"{folder}: cannot be written, ", " MB free: ")
    assert not output.exists()
    assert run(*command).code == 0


def test_predict_keeps_what_it_has(
    run: Callable[..., Run], checkpoint: Path, tmp_path: Path
) -> None:
    input, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    input.write_text('{"text": "a film was very good"}\n' * 1000)
    command = ("predict", checkpoint, input, "--output", output, "--resume")
    for size, file in ((20_000, "out.jsonl.resume"), (80_000, "out.jsonl")):
        with largest_file(size):
            done = run(*command)
        check_one_line(done, "[Errno 27] File too large: ", f"/{file}'")
        assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl.resume"}
    assert run(*command).code == 0
    assert len(output.read_text().splitlines()) == 1000
    assert {path.name for path in tmp_path.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_the_temporary_folder(run: Callable[..., Run], checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "in.tsv"
    file.write_text("text\n" + "a film\n" * 3000)
    with largest_file(1000):
        done = run("predict", checkpoint, file, "--output", tmp_path / "out.tsv")
    check_one_line(done, f"{tempfile.gettempdir()}, the temporary folder: File too large")
