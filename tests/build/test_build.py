"""The native build: what it links, what it says of itself, and what happens where it cannot be."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*command: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """A command and its output, both streams in one; the build's own variables only as given."""
    names = ("CONSISTENTEE_", "CUDA_", "CMAKE_ARGS", "CXX", "PYTHONPATH", "TORCH_CUDA")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def succeed(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout
    return result.stdout


def tool(name: str) -> str:
    """A program beside the interpreter or on PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of what a build reads, so that it leaves nothing in the tree."""
    copy = tmp_path / "source"
    for folder in ("cmake", "consistentee_ext", "csrc", "python"):
        ignore = shutil.ignore_patterns("__pycache__", "*.so", "not_built.txt", "*.egg-info")
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file in ("CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / file, copy)
    shutil.copy(ROOT / "setup.py", copy)
    return copy


def undefined_symbols(library: Path) -> list[str]:
    listing = run(tool("nm"), "-DC", "--undefined-only", library, cwd=ROOT)
    return [line.split(maxsplit=1)[1] for line in succeed(listing).splitlines()]


def assert_stable_abi(library: Path) -> None:
    symbols = undefined_symbols(library)
    unstable = [s for s in symbols if any(name in s for name in ("at::", "c10::", "torch::"))]
    assert not unstable
    # The check above would pass on an empty listing too: the ops do call the C shim.
    assert "torch_library_impl" in symbols


# ---- the module in use ----


@pytest.mark.needs_native
def test_only_the_stable_abi_of_torch_is_linked():
    from consistentee_ext import _C

    assert_stable_abi(Path(_C.__file__))


@pytest.mark.needs_native
def test_no_path_of_the_build_is_searched_at_run_time():
    from consistentee_ext import _C

    dynamic = succeed(run(tool("readelf"), "-d", _C.__file__, cwd=ROOT))
    assert "[libtorch_cpu.so]" in dynamic
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@pytest.mark.needs_native
def test_build_info():
    from consistentee_ext import _C

    info = _C.build_info()
    assert sorted(info) == [
        "compiler",
        "cuda_architectures",
        "cuda_version",
        "cxx_flags",
        "int8_product",
        "simd_level",
        "stable_abi_target",
        "torch_version",
        "version",
    ]
    assert f'\nversion = "{info["version"]}"' in (ROOT / "pyproject.toml").read_text()
    assert info["stable_abi_target"] == "2.10"
    assert info["cxx_flags"].endswith("-O3 -DNDEBUG")
    assert info["compiler"].split()[0] in ("GNU", "Clang")
    assert tuple(map(int, info["torch_version"].split(".")[:2])) >= (2, 10)
    assert (info["cuda_version"] is None) == (info["cuda_architectures"] is None)


@pytest.mark.slow
@pytest.mark.needs_native
def test_simd_level_follows_the_processor_and_the_limit():
    from consistentee_ext import _C

    # The module alone: the package around it takes seconds to import.
    folder = str(Path(_C.__file__).parent)
    program = (
        f"import sys, torch; sys.path.append({folder!r}); "
        "import _C; print(_C.build_info()['simd_level'])"
    )
    supported = {"AVX512": "avx512", "AVX2": "avx2"}.get(
        torch.backends.cpu.get_cpu_capability(), "baseline"
    )
    if platform.machine() != "x86_64":
        supported = "baseline"
    levels = ("baseline", "avx2", "avx512")
    for limit in levels:
        printed = succeed(run(sys.executable, "-c", program, cwd=ROOT, CONSISTENTEE_SIMD=limit))
        assert printed.strip() == min(limit, supported, key=levels.index)


# ---- CMake without packaging ----


@pytest.mark.slow
def test_cmake_alone(source: Path, tmp_path: Path):
    cmake, build = tool("cmake"), tmp_path / "build"
    path = f"{Path(tool('ninja')).parent}:{os.environ['PATH']}"
    python = f"-DPython_EXECUTABLE={sys.executable}"
    # As some toolchains link it: what is linked in must stay apart from torch's own copy.
    own_runtime = "-DCMAKE_MODULE_LINKER_FLAGS=-static-libstdc++"
    configure = [cmake, "-B", build, "-G", "Ninja", python, own_runtime, "-DCONSISTENTEE_WERROR=ON"]
    succeed(run(*configure, cwd=source, PATH=path, CONSISTENTEE_FORCE_CUDA="0"))
    succeed(run(cmake, "--build", build, cwd=source, PATH=path))

    assert (build / "compile_commands.json").is_file()
    module = next(build.glob("_C.*"))
    assert_stable_abi(module)
    needed = succeed(run(tool("readelf"), "-d", module, cwd=ROOT))
    assert "libstdc++" not in needed
    exported = succeed(run(tool("nm"), "-DC", "--defined-only", module, cwd=ROOT))
    assert "PyInit__C" in exported
    assert "std::ostream" not in exported
    program = (
        "import torch, _C; "
        "hidden, cu_seqlens = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 2]).int(); "
        "print(_C.build_info()['cuda_version'], "
        "torch.ops.consistentee.mean_pool(hidden, cu_seqlens).tolist())"
    )
    printed = succeed(run(sys.executable, "-c", program, cwd=build))
    assert printed.splitlines()[-1] == "None [[2.0]]"

    # What a variant shares with other files by name, the linker may give to code for any processor.
    for level in (
        ("baseline", "avx2", "avx512") if platform.machine() == "x86_64" else ("baseline",)
    ):
        objects = list(build.glob(f"CMakeFiles/cpu_{level}.dir/csrc/kernels/cpu/*.cpp.o"))
        assert objects
        listing = succeed(
            run(tool("nm"), "-C", "--defined-only", "--extern-only", *objects, cwd=build)
        )
        symbols = [line.split(maxsplit=2)[2] for line in listing.splitlines() if " " in line]
        assert symbols
        assert all(symbol.startswith(f"consistentee::{level}::") for symbol in symbols), symbols


def test_cmake_stops_where_cuda_is_forced_without_a_toolkit(source: Path, tmp_path: Path):
    result = run(
        tool("cmake"),
        *("-B", tmp_path / "build", "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"),
        cwd=source,
        PATH=f"{Path(tool('ninja')).parent}:{os.environ['PATH']}",
        CONSISTENTEE_FORCE_CUDA="1",
        CUDA_HOME=str(tmp_path),
    )
    assert result.returncode != 0
    # CMake wraps its messages.
    assert (
        f"CONSISTENTEE_FORCE_CUDA=1, but no CUDA toolkit found: {tmp_path} (CUDA_HOME) has no "
        "bin/nvcc and no include/cuda_runtime.h"
    ) in " ".join(result.stdout.split())


# ---- without a native build ----


@pytest.mark.slow
def test_python_packages_install_alone(source: Path, tmp_path: Path):
    target = tmp_path / "target"
    pip = (sys.executable, "-m", "pip", "install", "-v", "--no-index")
    options = ("--no-build-isolation", "--no-deps", "--target", target, ".")
    said = succeed(run(*pip, *options, cwd=source, CONSISTENTEE_NO_EXT="1"))
    reason = "CONSISTENTEE_NO_EXT is set"
    lines = [line.strip() for line in said.splitlines() if "without native code" in line]
    assert lines == [f"consistentee: installing without native code: {reason}"]

    program = (
        "import consistentee_ext; print(consistentee_ext.__file__); "
        "print(consistentee_ext.backend_report('cpu'))"
    )
    # -S: an editable install of the tree, hooked in by site, would lend its compiled module.
    path = f"{target}:{Path(torch.__file__).parent.parent}"
    printed = succeed(run(sys.executable, "-S", "-c", program, cwd=tmp_path, PYTHONPATH=path))
    assert str(target) in printed
    assert "device cpu: backend torch" in printed
    assert reason in printed


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        ("false", "the C++ compiler 'false' builds no C++17 program"),
        ("/nowhere/g++", "the C++ compiler '/nowhere/g++' does not run"),
    ],
)
def test_without_a_compiler_the_build_leaves_native_code_out(
    source: Path, compiler: str, reason: str
):
    build = (sys.executable, "setup.py", "build_ext", "--inplace")
    said = succeed(run(*build, cwd=source, CXX=compiler))
    assert f"consistentee: installing without native code: {reason}" in said
    assert (source / "consistentee_ext" / "not_built.txt").read_text().startswith(reason)
    assert not list((source / "consistentee_ext").glob("*.so"))


def test_without_torch_the_build_leaves_native_code_out(source: Path, tmp_path: Path):
    # -S leaves site-packages out; setuptools alone is put back.
    setuptools = pytest.importorskip("setuptools")
    packages = Path(setuptools.__file__).parent.parent
    (tmp_path / "only").mkdir()
    for name in ("setuptools", "_distutils_hack"):
        (tmp_path / "only" / name).symlink_to(packages / name)
    build = (sys.executable, "-S", "setup.py", "build_ext", "--inplace")
    only = str(tmp_path / "only")
    said = succeed(run(*build, cwd=source, PYTHONPATH=only))
    assert "installing without native code: torch is not installed where the build runs" in said

    forced = run(*build, cwd=source, PYTHONPATH=only, CONSISTENTEE_FORCE_CUDA="1")
    assert forced.returncode != 0
    assert "CONSISTENTEE_FORCE_CUDA=1, but torch is not installed" in forced.stdout


@pytest.mark.slow
def test_an_error_in_the_sources_stops_the_install(source: Path):
    (source / "csrc" / "module.cpp").write_text("#error broken on purpose\n")
    result = run(
        *(sys.executable, "setup.py", "build_ext", "--inplace"),
        cwd=source,
        CONSISTENTEE_FORCE_CUDA="0",
    )
    assert result.returncode != 0
    assert "broken on purpose" in result.stdout
    assert "consistentee: the native build failed" in result.stdout
    assert not list((source / "consistentee_ext").glob("*.so"))
