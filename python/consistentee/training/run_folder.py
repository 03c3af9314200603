"""The folder of a training run: what lets a killed run go on, and its output appear whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from consistentee.atomic_files import Json, write_json
from consistentee.training.distributed import processes

LOG_FILE = "training_log.json"
RUN_FILE = "run.json"


class RunFolder:
    """A training run on disk: work goes to ``<output>.partial``, whose result becomes `output`.

    In the work folder a phase first has a folder of checkpoints, then, complete, a folder with its
    result. All that marks progress appears by rename, so a run killed at any moment can go on. Of
    several processes the main one writes; the others wait for it.

    Args:
        output: the folder to make.
        identity: all that determines the result, as JSON values; a run of another identity is never
            continued.

    Raises:
        ValueError: `output` cannot be written, or it or its work folder holds something else.
    """

    def __init__(self, output: str | os.PathLike[str], identity: Json) -> None:
        self.output = Path(output)
        self.work = self.output.with_name(self.output.name + ".partial")
        self.identity: Json = json.loads(json.dumps(identity))
        try:
            if self.log() is None:
                self._open()
        except OSError as error:
            raise ValueError(
                f"output: expected a folder that can be written, got {output} ({error.strerror})"
            ) from error

    def _open(self) -> None:
        if self.output.is_file() or (self.output.is_dir() and any(self.output.iterdir())):
            raise ValueError(f"output: expected a new folder, got {self.output}, which holds files")
        self.work.mkdir(parents=True, exist_ok=True)
        if any(path.suffix != ".tmp" for path in self.work.iterdir()):
            self._check_identity(self.work, _read_json(self.work / RUN_FILE))
        else:
            write_json(self.work / RUN_FILE, self.identity)

    def _check_identity(self, folder: Path, found: Json | None) -> None:
        if found is None:
            raise ValueError(f"output: expected a folder of this run, got {folder}, which is none")
        different = [key for key in self.identity if found.get(key) != self.identity[key]]
        if different:
            raise ValueError(
                f"output: expected a folder of this run, got {folder}, which holds a run with "
                f"another {', '.join(different)}"
            )

    def log(self) -> Json | None:
        """The log of the finished run, or None while there is no output."""
        log = _read_json(self.output / LOG_FILE)
        if log is not None:
            self._check_identity(self.output, log.get("run"))
            shutil.rmtree(self.work, ignore_errors=True)  # a kill may have come before this
        return log

    def checkpoints(self, phase: str) -> Path:
        """The folder for the checkpoints of a phase."""
        return self.work / f"{phase}.checkpoints"

    def last_checkpoint(self, phase: str) -> str | None:
        """The newest whole checkpoint of a phase; what a kill left of another is removed.

        The Trainer writes the trainer's state last, after the weights and the optimizer.
        """
        with processes().main_process_first():
            return self._last_checkpoint(phase)

    def _last_checkpoint(self, phase: str) -> str | None:
        for folder in sorted(self.checkpoints(phase).glob("checkpoint-*"), key=_step, reverse=True):
            if _read_json(folder / "trainer_state.json") is not None:
                return str(folder)
            shutil.rmtree(folder)
        return None

    def result(self, phase: str) -> Path | None:
        """The folder with the result of a complete phase, else None."""
        folder = self.work / phase
        return folder if folder.is_dir() else None

    def complete(self, phase: str, save: Callable[[Path], object], log: Json) -> None:
        """Mark a phase as complete, with its log and the result that `save` puts into a folder."""
        if processes().is_main_process:
            self._publish(self.work / phase, save, log)
            shutil.rmtree(self.checkpoints(phase), ignore_errors=True)
        processes().wait_for_everyone()

    def finish(self, save: Callable[[Path], object], log: Json) -> None:
        """Let `save` fill the output and remove the work folder."""
        if processes().is_main_process:
            self._publish(self.output, save, {"run": self.identity, **log})
            shutil.rmtree(self.work)
        processes().wait_for_everyone()

    def _publish(self, folder: Path, save: Callable[[Path], object], log: Json) -> None:
        temporary = self.work / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save(temporary)
        write_json(temporary / LOG_FILE, log)
        temporary.replace(folder)  # an empty folder of that name gives way


def read_log(folder: Path) -> Json:
    """The log that `RunFolder` wrote beside a result."""
    return json.loads((folder / LOG_FILE).read_text(encoding="utf-8"))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read_json(file: Path) -> Json | None:
    """The object in a file, or None if the file is missing or was cut short."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
