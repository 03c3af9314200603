"""The folder of a training run: a killed run can resume, and the output appears complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from consistentee.atomic_files import Json, naming_file, read_json, write_json
from consistentee.training.distributed import processes

LOG_FILE = "training_log.json"
RUN_FILE = "run.json"


class RunFolder:
    """A training run on disk: work in ``<output>.partial``, the result in `output`.

    In the work folder a phase has a folder of checkpoints while it runs and a folder with its
    result once it is complete. Every sign of progress is made by renaming, so a run killed at any
    moment can resume. If there are several processes, the main one writes and the others wait.

    Args:
        output: the folder to make.
        identity: all that determines the result, as JSON values; a run with another identity is not
            resumed.

    Raises:
        ValueError: `output` cannot be written, or it or its work folder has other files.
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
            raise ValueError(
                f"output: expected a folder of this run, got {folder}, which is of no run"
            )
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
            shutil.rmtree(self.work, ignore_errors=True)  # left by a kill inside `finish`
        return log

    def checkpoints(self, phase: str) -> Path:
        """The folder for the checkpoints of a phase."""
        return self.work / f"{phase}.checkpoints"

    def last_checkpoint(self, phase: str) -> str | None:
        """The newest complete checkpoint of a phase; incomplete ones are removed.

        A checkpoint is complete if it has the trainer's state, which the Trainer writes last, after
        weights and optimizer.
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
        """Mark a phase as complete, with its log and the result that `save` writes to a folder."""
        if processes().is_main_process:
            self._publish(self.work / phase, save, log)
            shutil.rmtree(self.checkpoints(phase), ignore_errors=True)
        processes().wait_for_everyone()

    def finish(self, save: Callable[[Path], object], log: Json) -> None:
        """Make the output, with the files that `save` writes, and remove the work folder."""
        if processes().is_main_process:
            self._publish(self.output, save, {"run": self.identity, **log})
            shutil.rmtree(self.work)
        processes().wait_for_everyone()

    def _publish(self, folder: Path, save: Callable[[Path], object], log: Json) -> None:
        temporary = self.work / "unfinished"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with naming_file(folder):
            save(temporary)
        write_json(temporary / LOG_FILE, log)
        temporary.replace(folder)  # also replaces an empty folder of that name


def read_log(folder: Path) -> Json:
    """Read the log in a folder that `RunFolder` made."""
    return read_json(folder / LOG_FILE)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _read_json(file: Path) -> Json | None:
    """The object in a file, or None if the file is missing or incomplete."""
    try:
        content: Json = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return content
