"""What a machine may lack that some tests need; the hook in conftest.py resolves their marks.

A test marked `needs_native` is skipped where `NEEDS["native"]` gives a reason. It fails instead
with CONSISTENTEE_FAIL_WITHOUT_NATIVE=1, and so for each need.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.backends import CPU

from consistentee_ext.backend import availability

TOOLKIT = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"))
NVCC = shutil.which("nvcc", path=f"{TOOLKIT / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}")
# The machine of tests/native/cuda_machine.h looks into its own ELF segments.
COMPILER = shutil.which(os.environ.get("CXX", "g++")) if sys.platform == "linux" else None
# Triton's interpreter, in place of a card.
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"


def wanted(need: str) -> bool:
    """Whether a test may not be skipped for want of it."""
    return os.environ.get(f"CONSISTENTEE_FAIL_WITHOUT_{need.upper()}") == "1"


def skip_or_fail(need: str, reason: str) -> None:
    (pytest.fail if wanted(need) else pytest.skip)(reason)


@functools.cache
def _no_native() -> str | None:
    found = availability("cpu", CPU)
    return None if found.usable else f"no native code: {found.reason}"


def _no_compiler() -> str | None:
    return None if COMPILER else "no C++ compiler for Linux"


def _no_triton() -> str | None:
    return None if importlib.util.find_spec("triton") else "triton is not installed"


def _no_nvcc() -> str | None:
    return None if NVCC else "no nvcc"


def _no_cuda() -> str | None:
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def _no_device() -> str | None:
    """A card, or what rehearses it."""
    return None if INTERPRETER and not wanted("cuda") else _no_cuda()


# Mark without `needs_`: why this machine lacks it, or None.
NEEDS: dict[str, Callable[[], str | None]] = {
    "native": _no_native,
    "compiler": _no_compiler,
    "triton": _no_triton,
    "nvcc": _no_nvcc,
    "cuda": _no_cuda,
    "device": _no_device,
}


def check_needs(item: pytest.Item) -> None:
    for need, why_missing in NEEDS.items():
        if item.get_closest_marker(f"needs_{need}") and (reason := why_missing()):
            skip_or_fail("cuda" if need == "device" else need, reason)
