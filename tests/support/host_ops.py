"""The ops of the CUDA library for the CPU: their sources, whose kernels run on the host, and what
they cost.
"""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import torch
from support.cuda_host import HEADERS, ROOT
from support.needs import COMPILER
from torch.utils.cpp_extension import TORCH_LIB_PATH, include_paths

TARGET = "0x020a000000000000"  # of the stable ABI, as in CMakeLists.txt


class HostOps:
    """Registers the ops; one library a process.

    Args:
        library: where to compile it to.
        count_only: whether kernels are not run but counted: no row leaves, all else is garbage.
    """

    def __init__(self, library: Path, count_only: bool = False) -> None:
        assert COMPILER is not None
        native = ROOT / "tests" / "native"
        command = [COMPILER, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wall", "-Werror"]
        command += ["-Wno-unknown-pragmas", "-U_FORTIFY_SOURCE", f"-DTORCH_TARGET_VERSION={TARGET}"]
        command += ["-DCONSISTENTEE_COUNT_ONLY"] if count_only else []
        command += [f"-I{native / 'host'}", f"-I{HEADERS}"]
        for path in include_paths():
            command += ["-isystem", path]
        command += [str(native / "cuda_ops.cpp"), "-o", str(library)]
        command += [f"-L{TORCH_LIB_PATH}", "-ltorch_cpu"]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        torch.ops.load_library(str(library))
        self._library = ctypes.CDLL(str(library))
        for name in ("host_launches", "host_waits"):
            getattr(self._library, name).restype = ctypes.c_int64

    @property
    def launches(self) -> int:
        """Of kernels of ours, since `forget`."""
        count: int = self._library.host_launches()
        return count

    @property
    def waits(self) -> int:
        """Since `forget`."""
        count: int = self._library.host_waits()
        return count

    def forget(self) -> None:
        self._library.host_forget()
