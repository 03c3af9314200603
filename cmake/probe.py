"""What CMake asks of Python: torch's paths, pybind11's, and whether to build for CUDA.

Prints a CMake script of ``set(...)`` lines. ``find_package(Torch)`` would not do: with a CUDA build
of torch it fails on a machine without a CUDA toolkit, which the CPU operators do not need.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DEFAULT_TOOLKIT = Path("/usr/local/cuda")
DEFAULT_ARCHITECTURES = "8.0 8.6 9.0 10.0+PTX"
MINIMUM_TORCH = (2, 10)


class ProbeError(Exception):
    """The build cannot go on; the message says why, in one line."""


class Toolkit(NamedTuple):
    root: Path
    version: str  # "13.0"


def find_toolkit(env: Mapping[str, str]) -> Toolkit:
    """The CUDA toolkit of ``CUDA_HOME`` or ``CUDA_PATH``; without them that of nvcc on PATH, then
    /usr/local/cuda.

    Raises:
        ProbeError: with every folder looked at and what it lacked.
    """
    candidates: dict[str, Path] = {}
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if not candidates and env.get(name):
            candidates[name] = Path(env[name])
    if not candidates:
        # An nvcc on PATH may be a wrapper script outside any toolkit: its folder is a candidate.
        if nvcc := shutil.which("nvcc", path=env.get("PATH", "")):
            candidates["nvcc on PATH"] = Path(nvcc).resolve().parent.parent
        candidates["default"] = DEFAULT_TOOLKIT

    looked = []
    for origin, folder in candidates.items():
        missing = [
            part for part in ("bin/nvcc", "include/cuda_runtime.h") if not (folder / part).is_file()
        ]
        if not missing:
            return Toolkit(folder.resolve(), nvcc_version(folder / "bin" / "nvcc"))
        looked.append(f"{folder} ({origin}) has no {' and no '.join(missing)}")
    raise ProbeError(f"no CUDA toolkit found: {'; '.join(looked)}")


def nvcc_version(nvcc: Path) -> str:
    """``major.minor`` of an nvcc."""
    try:
        run = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ProbeError(f"{nvcc} does not run: {error}") from error
    release = re.search(r"release (\d+\.\d+)", run.stdout)
    if release is None:
        raise ProbeError(f"{nvcc} --version names no release: {(run.stdout + run.stderr).strip()}")
    return release[1]


def choose_toolkit(env: Mapping[str, str], torch_cuda: str | None) -> tuple[Toolkit | None, str]:
    """The toolkit to build with, or None, and the reason.

    ``CONSISTENTEE_FORCE_CUDA`` (0 or 1) decides; without it, a torch built for CUDA along with an
    nvcc of the same major version. Whether this machine has a GPU does not count: it says nothing
    about the machine that will run the build.

    Raises:
        ProbeError: CUDA was forced and cannot be built.
    """
    force = env.get("CONSISTENTEE_FORCE_CUDA", "")
    if force not in ("", "0", "1"):
        raise ProbeError(f"CONSISTENTEE_FORCE_CUDA: expected 0 or 1, got {force!r}")
    if force == "0":
        return None, "CONSISTENTEE_FORCE_CUDA=0"
    if not force and torch_cuda is None:
        return None, "this torch is built without CUDA"
    try:
        toolkit = find_toolkit(env)
        if torch_cuda and toolkit.version.split(".")[0] != torch_cuda.split(".")[0]:
            raise ProbeError(
                f"nvcc in {toolkit.root} is CUDA {toolkit.version} and torch is built for CUDA "
                f"{torch_cuda}; point CUDA_HOME to a toolkit of the same major version"
            )
    except ProbeError as error:
        if force:
            raise ProbeError(f"CONSISTENTEE_FORCE_CUDA=1, but {error}") from error
        return None, str(error)
    return toolkit, f"CUDA {toolkit.version} in {toolkit.root}"


def cmake_architectures(names: str) -> list[str]:
    """TORCH_CUDA_ARCH_LIST as CMake writes it.

    ``"8.0 9.0a 10.0+PTX"`` becomes ``["80-real", "90a-real", "100"]``.
    """
    architectures = []
    for name in names.replace(";", " ").split():
        number = re.fullmatch(r"(\d+)\.(\d[af]?)(\+PTX)?", name)
        if number is None:
            raise ProbeError(
                f"TORCH_CUDA_ARCH_LIST: expected numbers such as '8.0 9.0+PTX', got {name!r}"
            )
        architectures.append(number[1] + number[2] + ("" if number[3] else "-real"))
    return architectures


def settings(env: Mapping[str, str]) -> dict[str, str]:
    """Every variable CMakeLists.txt reads; lists are joined with semicolons."""
    try:
        import pybind11
        import torch
        from torch.utils import cpp_extension
    except ImportError as error:
        raise ProbeError(f"{sys.executable} cannot import {error.name}: {error}") from error
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < MINIMUM_TORCH:
        raise ProbeError(f"expected torch 2.10 or newer, found {torch.__version__}")

    toolkit, reason = choose_toolkit(env, torch.version.cuda)
    found = {
        "TORCH_VERSION": torch.__version__,
        "TORCH_INCLUDE_DIRS": ";".join(cpp_extension.include_paths()),
        "TORCH_LIBRARY_DIRS": ";".join(cpp_extension.library_paths()),
        "PYBIND11_CMAKE_DIR": pybind11.get_cmake_dir(),
        "CUDA_REASON": reason,
    }
    if toolkit is not None:
        names = env.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
        found |= {
            "CUDA_ROOT": str(toolkit.root),
            "CUDA_VERSION": toolkit.version,
            "CUDA_ARCHITECTURE_NAMES": " ".join(names.replace(";", " ").split()),
            "CUDA_ARCHITECTURES": ";".join(cmake_architectures(names)),
        }
    return found


def main() -> None:
    try:
        found = settings(os.environ)
    except ProbeError as error:
        sys.exit(str(error))
    for name, value in found.items():
        print(f"set({name} [=[{value}]=])")


if __name__ == "__main__":
    main()
