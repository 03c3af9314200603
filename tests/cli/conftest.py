"""The command line, called in this process, and a checkpoint that it has trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import TRAINED_WITH, VOCABULARY, Run, write_rows
from support.models import save_backbone

from consistentee import cli


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    def call(*arguments: object) -> Run:
        monkeypatch.setattr("sys.argv", ["consistentee", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return Run(int(stopped.value.code or 0), out, err)

    return call


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, rows) in enumerate({"train": 96, "dev": 24, "test": 40}.items()):
        write_rows(folder / f"{name}.tsv", rows, seed)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, VOCABULARY)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data: Path, backbone: Path) -> Path:
    """Trained by the command itself."""
    output = tmp_path_factory.mktemp("run") / "model"
    with pytest.MonkeyPatch.context() as patch:
        arguments = ["train", "--model", backbone, "--data", data, "--output", output]
        patch.setattr("sys.argv", ["consistentee", *map(str, [*arguments, *TRAINED_WITH])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
    assert stopped.value.code in (0, None)
    return output
