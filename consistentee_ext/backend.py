"""Which backends can run here, which one does, and why the others do not."""

from __future__ import annotations

import importlib.util
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch

from consistentee_ext.ops.flash import flash_arguments
from consistentee_ext.ops.products import product_report

BACKENDS = ("cuda", "triton", "cpu", "torch")
DEVICE_BACKENDS = BACKENDS[:2]  # their tensors are on a GPU
ENVIRONMENT_VARIABLE = "CONSISTENTEE_BACKEND"


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run on a device here; ``reason`` says why not, or what it is."""

    usable: bool
    reason: str


def _load_native() -> Availability:
    """Load the compiled ops; if the library exists but does not load, say why."""
    try:
        module = importlib.import_module("consistentee_ext._C")
    except ModuleNotFoundError:
        note = Path(__file__).with_name("not_built.txt")  # setup.py's, where it built none
        reason = note.read_text(encoding="utf-8").strip() if note.is_file() else "no build ran here"
        return Availability(False, f"the C++ extension is not built: {reason}")
    except ImportError as error:
        warnings.warn(
            "consistentee_ext: the C++ extension is there and does not load; plain PyTorch runs in "
            f"its place, many times slower: {error}. Install it again with this Python and a torch "
            "of 2.10 or newer.",
            RuntimeWarning,
            stacklevel=2,
        )
        return Availability(False, f"the C++ extension does not load: {error}")
    return Availability(True, f"C++ ops, {module.build_info()['simd_level']} kernels")


def _load_cuda() -> Availability:
    """Load the CUDA ops, where torch can run them."""
    if not torch.backends.cuda.is_built():
        return Availability(False, "this torch is built without CUDA")
    if not torch.cuda.is_available():
        return Availability(False, "torch finds no CUDA device")
    if not _NATIVE.usable:
        return _NATIVE
    library = Path(__file__).with_name("libconsistentee_cuda.so")
    if not library.is_file():
        return Availability(
            False, "built without the CUDA library; CONSISTENTEE_FORCE_CUDA=1 builds it or says why"
        )
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return Availability(False, f"the CUDA library does not load: {error}")
    launched = "C++" if flash_arguments() else "Python: no flash attention of the known schema"
    return Availability(True, f"CUDA ops, 16-bit layers of BERT's kin launched from {launched}")


def _find_triton() -> Availability:
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "triton is not installed")
    return Availability(True, "Triton kernels")


_NATIVE = _load_native()
_ON_GPU = {"cuda": _load_cuda(), "triton": _find_triton()}


def availability(backend: str, device: torch.device) -> Availability:
    """Whether `backend` can run on tensors of `device`."""
    if backend == "torch":
        return Availability(True, "pure PyTorch")
    if backend == "cpu":
        if device.type != "cpu":
            return Availability(False, f"runs on cpu tensors, not on {device.type}")
        return _NATIVE
    interpreted = backend == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type == "cuda" or (interpreted and device.type == "cpu"):
        return _ON_GPU[backend]
    found = _ON_GPU[backend]
    also = "" if found.usable else f"; {found.reason}"
    return Availability(False, f"runs on cuda tensors, not on {device.type}{also}")


def select_backend(device: torch.device, requested: str | None = None) -> str:
    """The backend for `device`: the one asked for, or the first usable of cuda, triton, cpu, torch.

    Args:
        requested: a backend's name; None reads ``CONSISTENTEE_BACKEND`` and, where that is unset,
            chooses.

    Raises:
        ValueError: no such backend.
        RuntimeError: the backend asked for cannot run here; the message says why.
    """
    asked = requested or os.environ.get(ENVIRONMENT_VARIABLE) or None
    if asked is None:
        # Triton's interpreter on the CPU is for tests: it runs only where it is asked for.
        fitting = BACKENDS if device.type == "cuda" else ("cpu", "torch")
        return next(name for name in fitting if availability(name, device).usable)
    if asked not in BACKENDS:
        source = "backend" if requested else ENVIRONMENT_VARIABLE
        raise ValueError(f"{source}: expected one of {BACKENDS}, got {asked!r}")
    found = availability(asked, device)
    if not found.usable:
        raise RuntimeError(f"backend {asked!r} cannot run on {device}: {found.reason}")
    return asked


def backend_report(device: torch.device | str | None = None) -> str:
    """One line a backend: whether it runs on `device` (default: cuda, else cpu), and why; on a CPU
    one for each precision of products; one more about models that run as they are.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    chosen = select_backend(device)
    lines = [f"device {device}: backend {chosen}"]
    for name in BACKENDS:
        found = availability(name, device)
        mark = "*" if name == chosen else " "
        lines.append(f"{mark} {name:<6} {'yes' if found.usable else 'no ':<3} {found.reason}")
    if device.type == "cpu":
        lines += product_report()
    lines.append("models of no family here: transformers' own layers; repr(encoder) says which run")
    return "\n".join(lines)
