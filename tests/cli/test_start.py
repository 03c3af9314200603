"""How fast the packages and the command line start: what they import, and in what time."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.argv = ["consistentee", *sys.argv[1:]]
from consistentee.cli import main
try:
    main()
except SystemExit as stopped:
    code = stopped.code or 0
print(sorted({"torch", "transformers", "datasets"} & set(sys.modules)), code, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["--help"], 0, ""),
        (["train", "--help"], 0, ""),
        (["train", "--no-such-option"], 2, "consistentee: No such option"),
        (["train", "--pooling", "max"], 2, "consistentee: Invalid value for"),
        (["predict", "./none", "rows.csv", "--output", "x.csv"], 2, "./none: expected a folder"),
        (["evaluate", ".", "--data", "none.tsv"], 2, "none.tsv: expected a file or a folder"),
    ],
)
def test_help_and_mistakes_import_no_torch(
    tmp_path: Path, arguments: list[str], code: int, line: str
) -> None:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    *said, imported = done.stderr.splitlines()
    assert imported == f"[] {code}"
    assert line in "".join(said)
    assert len(said) == (1 if line else 0)


def test_the_package_imports_what_is_asked_for() -> None:
    code = "import sys, consistentee_ext, consistentee; print({'torch'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b"set()\n"
    import consistentee
    import consistentee_ext

    for package in (consistentee, consistentee_ext):
        assert all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = package.nothing


def seconds(*command: str) -> float:
    """The least of three runs: other work beside adds to all of them."""
    times = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        times.append(time.perf_counter() - begin)
    return min(times)


@pytest.mark.slow
def test_seconds_beside_torch() -> None:
    torch = seconds("-c", "import torch")
    assert seconds("-c", "import consistentee_ext") <= 1.5 * torch
    script = "import sys; sys.argv = ['', '--help']; from consistentee.cli import main; main()"
    assert seconds("-c", script) <= 0.6 * torch
