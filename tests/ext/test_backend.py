"""Which backend runs, and what is said of those that cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from support.backends import BACKENDS, CPU

from consistentee_ext import backend_report
from consistentee_ext.backend import BACKENDS as ORDER
from consistentee_ext.backend import select_backend


def test_automatic_choice_is_the_first_usable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONSISTENTEE_BACKEND", raising=False)
    assert select_backend(CPU) == BACKENDS[0]
    assert select_backend(torch.device("meta")) == "torch"


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSISTENTEE_BACKEND", "torch")
    assert select_backend(CPU) == "torch"
    assert select_backend(CPU, BACKENDS[0]) == BACKENDS[0]
    assert "backend torch" in backend_report("cpu")
    monkeypatch.setenv("CONSISTENTEE_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"CONSISTENTEE_BACKEND: expected one of .*, got 'fast'"):
        select_backend(CPU)


def test_an_explicit_choice_runs_or_says_why_not() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'cuda' cannot run on cpu: .+"):
        select_backend(CPU, "cuda")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run on meta: runs on cpu tensors"):
        select_backend(torch.device("meta"), "cpu")


def test_report_has_a_line_and_a_reason_for_each_backend() -> None:
    first, *lines, last = backend_report("cpu").splitlines()
    lines, products = lines[: len(ORDER)], lines[len(ORDER) :]
    assert first == f"device cpu: backend {BACKENDS[0]}"
    precisions = [line.partition(" products: ")[0] for line in products]
    assert precisions == ["float32", "bfloat16", "int8"]
    assert [line[1:].split()[0] for line in lines] == list(ORDER)
    assert all(len(line.split()) > 3 for line in lines)
    assert last.startswith("models of no family here: transformers' own layers")


@pytest.mark.slow
@pytest.mark.needs_native
@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_narrower_kernels_pass_the_same_tests(level: str) -> None:
    """CONSISTENTEE_SIMD lowers the instruction set, so other machines' kernels are tested here."""
    script = (
        "import sys, pytest, torch; from consistentee_ext._C import build_info; "
        f"assert build_info()['simd_level'] in ('{level}', 'baseline'), build_info(); "
        "names = ('ops', 'attention', 'norm_embed', 'few_rows'); "
        "files = [f'tests/ext/test_{name}.py' for name in names]; "
        "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *files, '-k', 'matches_reference or "
        "accurate or special or nan or any_lengths or attends_to_itself or add_norm or embed or "
        "values or company']))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"CONSISTENTEE_SIMD": level},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
