"""Builds the native code with CMake and puts it into consistentee_ext.

Without a C++ compiler or torch, or with CONSISTENTEE_NO_EXT=1, the Python packages install alone.
An error in the build itself is always an error.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
NOTE = "not_built.txt"


def why_not_native() -> str | None:
    """The reason to install without native code, or None."""
    if os.environ.get("CONSISTENTEE_NO_EXT", "0") not in ("", "0"):
        return "CONSISTENTEE_NO_EXT is set"
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed where the build runs"
    return why_no_compiler()


def why_no_compiler() -> str | None:
    """The reason why no C++17 program can be built here, or None."""
    compiler = os.environ.get("CXX") or next(filter(shutil.which, ("c++", "g++", "clang++")), None)
    if compiler is None:
        return "no C++ compiler found (looked for c++, g++, clang++; CXX names another)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.cpp")
        source.write_text("#include <optional>\nint main() { return *std::optional<int>(0); }\n")
        command = [*shlex.split(compiler), "-std=c++17", str(source), "-o", f"{folder}/probe"]
        try:
            run = subprocess.run(command, capture_output=True, check=False)
        except OSError as error:
            return f"the C++ compiler {compiler!r} does not run: {error}"
    return None if run.returncode == 0 else f"the C++ compiler {compiler!r} builds no C++17 program"


class CMakeBuild(build_ext):
    """Runs CMake in place of the compiler calls of setuptools."""

    def run(self) -> None:
        package = (ROOT if self.inplace else Path(self.build_lib).resolve()) / "consistentee_ext"
        package.mkdir(parents=True, exist_ok=True)
        # What an earlier build left here may not belong to this one (the CUDA library, say).
        for pattern in ("_C.*.so", "libconsistentee_cuda.so", NOTE):
            for stale in package.glob(pattern):
                stale.unlink()

        if reason := why_not_native():
            if os.environ.get("CONSISTENTEE_FORCE_CUDA") == "1":
                raise SystemExit(f"consistentee: CONSISTENTEE_FORCE_CUDA=1, but {reason}")
            print(f"consistentee: installing without native code: {reason}", file=sys.stderr)
            # pip hides the line above unless -v is given; backend_report() repeats it from here.
            (package / NOTE).write_text(reason + "\n", encoding="utf-8")
            return
        self.build_native(package)

    def build_native(self, package: Path) -> None:
        # With --no-build-isolation the environment need not be activated, nor its tools on PATH.
        scripts = sysconfig.get_path("scripts")
        env = os.environ | {"PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")])}
        for tool in ("cmake", "ninja"):
            if shutil.which(tool, path=env["PATH"]) is None:
                raise SystemExit(
                    f"consistentee: {tool} not found; pip install cmake ninja pybind11, or set "
                    "CONSISTENTEE_NO_EXT=1 to install without native code"
                )
        build = str(Path(self.build_temp).resolve())
        configure = [
            "cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja",
            # Paths in the cache may lead into a build environment that is gone.
            "--fresh",
            f"-DPython_EXECUTABLE={sys.executable}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]  # fmt: skip
        install = ["cmake", "--install", build, "--prefix", str(package), "--strip"]
        for command in (configure, ["cmake", "--build", build], install):
            try:
                subprocess.run(command, env=env, check=True)
            except subprocess.CalledProcessError as error:
                raise SystemExit(
                    f"consistentee: the native build failed (see above) in: {shlex.join(command)}\n"
                    "CONSISTENTEE_FORCE_CUDA=0 leaves CUDA out, CONSISTENTEE_NO_EXT=1 all of it."
                ) from error


setup(
    ext_modules=[Extension("consistentee_ext._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
