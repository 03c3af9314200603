"""A run's folders: phases and output appear whole, whenever the run is killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consistentee.training.run_folder import LOG_FILE, RunFolder, read_log

IDENTITY = {"seed": 1, "config": {0: "no"}}


def save(folder: Path) -> None:
    (folder / "weights").write_text("w")


def content(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_phase_is_a_folder_once_it_is_complete(tmp_path):
    run = RunFolder(tmp_path / "out", IDENTITY)
    run.checkpoints("one").mkdir()
    assert run.result("one") is None
    run.complete("one", save, {"loss": 0.5})
    result = RunFolder(tmp_path / "out", IDENTITY).result("one")
    assert result is not None
    assert content(result) == {"weights", LOG_FILE}
    assert read_log(result) == {"loss": 0.5}
    assert not run.checkpoints("one").exists()
    assert run.result("two") is None


def test_the_output_appears_at_the_end(tmp_path):
    output = tmp_path / "new" / "out"
    run = RunFolder(output, IDENTITY)
    run.complete("one", save, {})
    assert run.log() is None
    assert not output.exists()
    run.finish(save, {"phases": {}})
    assert content(output) == {"weights", LOG_FILE}
    assert [path.name for path in output.parent.iterdir()] == ["out"]
    log = {"run": {"seed": 1, "config": {"0": "no"}}, "phases": {}}
    assert RunFolder(output, IDENTITY).log() == log


def test_an_empty_output_folder_gives_way(tmp_path):
    (tmp_path / "out").mkdir()
    RunFolder(tmp_path / "out", IDENTITY).finish(save, {})
    assert content(tmp_path / "out") == {"weights", LOG_FILE}


def test_a_kill_while_a_result_is_written_leaves_no_result(tmp_path):
    run = RunFolder(tmp_path / "out", IDENTITY)

    def killed(folder: Path) -> None:
        save(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.complete("one", killed, {})
    assert run.result("one") is None
    run.complete("one", lambda folder: None, {})
    result = run.result("one")
    assert result is not None
    assert content(result) == {LOG_FILE}


def test_a_kill_between_the_output_and_the_work_folder_is_cleaned_up(tmp_path):
    RunFolder(tmp_path / "out", IDENTITY).finish(save, {})
    work = tmp_path / "out.partial"
    work.mkdir()
    RunFolder(tmp_path / "out", IDENTITY).log()
    assert not work.exists()


def test_a_kill_before_the_run_has_a_name_leaves_room_for_it(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "run.json.tmp").write_text('{"se')
    RunFolder(tmp_path / "out", IDENTITY)
    with pytest.raises(ValueError, match=r"another seed$"):
        RunFolder(tmp_path / "out", {**IDENTITY, "seed": 2})


def test_the_last_checkpoint_is_the_newest_whole_one(tmp_path):
    run = RunFolder(tmp_path / "out", IDENTITY)
    assert run.last_checkpoint("one") is None
    states = {"checkpoint-9": "{}", "checkpoint-10": "{}", "checkpoint-11": '{"epo'}
    for name, state in states.items():
        folder = run.checkpoints("one") / name
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(state)
    (run.checkpoints("one") / "checkpoint-12").mkdir()
    assert run.last_checkpoint("one") == str(run.checkpoints("one") / "checkpoint-10")
    left = {path.name for path in run.checkpoints("one").iterdir()}
    assert left == {"checkpoint-9", "checkpoint-10"}


def test_another_run_is_refused_by_name(tmp_path):
    output = tmp_path / "out"
    RunFolder(output, IDENTITY)
    with pytest.raises(ValueError, match=r"^output: .*out\.partial, .* another seed$"):
        RunFolder(output, {**IDENTITY, "seed": 2})
    RunFolder(output, IDENTITY).finish(save, {})
    with pytest.raises(ValueError, match=r"^output: .*out, .* another config$"):
        RunFolder(output, {**IDENTITY, "config": {}})


@pytest.mark.parametrize("where", ["out", "out.partial"])
def test_a_folder_of_something_else_is_refused(tmp_path, where):
    (tmp_path / where).mkdir()
    (tmp_path / where / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match=r"^output: expected a "):
        RunFolder(tmp_path / "out", IDENTITY)
    assert content(tmp_path) == {f"{where}/thesis.tex"}


def test_an_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    for output in (tmp_path / "file", tmp_path / "file" / "out"):
        with pytest.raises(ValueError, match=r"^output: expected a "):
            RunFolder(output, IDENTITY)


def test_a_log_of_something_else_is_refused(tmp_path):
    (tmp_path / LOG_FILE).write_text(json.dumps({"phases": {}}))
    with pytest.raises(ValueError, match=r"^output: expected a folder of this run"):
        RunFolder(tmp_path, IDENTITY)
