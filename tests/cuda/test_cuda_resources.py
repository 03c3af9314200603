"""What the CUDA kernels take of a multiprocessor, by the compiler's own report."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cuda_host import HEADERS
from support.needs import NVCC, TOOLKIT

TARGETS = ("sm_80", "sm_90")
SOURCES = sorted((HEADERS / "kernels" / "cuda").glob("*.cuh"))
KERNEL = re.compile(
    r"(template <typename scalar_t>\s+)?static __global__ void\s+"
    r"(?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
)

pytestmark = pytest.mark.needs_nvcc


def declared_kernels() -> dict[str, bool]:
    """The kernels of the headers, and whether they are templates."""
    text = "\n".join(path.read_text() for path in SOURCES)
    kernels = {match[2]: bool(match[1]) for match in KERNEL.finditer(text)}
    assert kernels, "no kernel is where this file looks"
    assert len(kernels) == text.count("__global__"), "a kernel that the pattern does not find"
    return kernels


def instances() -> list[str]:
    """One name a kernel and type: `exit_rows<float>`."""
    types = ("float", "BFloat16", "Half")
    return [
        name
        for kernel, is_template in declared_kernels().items()
        for name in ([f"{kernel}<{t}>" for t in types] if is_template else [kernel])
    ]


class Usage(NamedTuple):
    stack: int
    spills: int
    registers: int
    shared: int


class Compiled(NamedTuple):
    object_file: Path
    usage: dict[tuple[str, str], Usage]  # by instance and target


def parse(report: str) -> dict[tuple[str, str], Usage]:
    usage = {}
    for entry in report.split("Compiling entry function '")[1:]:
        mangled, target = re.findall(r"([^']+)' for '(\w+)'", entry)[0]
        properties = entry[entry.index("Function properties for " + mangled) :]
        stack, stores, loads = re.findall(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads",
            properties,
        )[0]
        registers = re.findall(r"Used (\d+) registers", properties)[0]
        shared = re.findall(r"(\d+) bytes smem", properties.split("Compile time")[0]) or [0]
        usage[mangled, target] = Usage(
            int(stack), int(stores) + int(loads), int(registers), int(shared[0])
        )
    return usage


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """Every kernel in every type, in one object for both targets."""
    assert NVCC is not None
    folder = tmp_path_factory.mktemp("resources")
    source, output = folder / "kernels.cu", folder / "kernels.o"
    includes = [f'#include "kernels/cuda/{path.name}"' for path in SOURCES]
    table = ", ".join(f"reinterpret_cast<const void*>({name})" for name in instances())
    source.write_text(
        "\n".join(
            [*includes, "using namespace consistentee;", f"const void* kernels[] = {{{table}}};"]
        )
    )
    architectures = [f"-gencode=arch=compute_{t[3:]},code={t}" for t in TARGETS]
    # Unoptimised on the host, which does not matter here.
    command = [NVCC, "-std=c++17", "-c", *architectures, "-Xptxas", "-v", "-Xcompiler", "-O0"]
    command += ["-Werror", "all-warnings", f"-I{HEADERS}", str(source), "-o", str(output)]
    command += ["--threads", str(len(TARGETS))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Compiled(output, parse(done.stdout + done.stderr))


def encoded(instance: str) -> str:
    """What the mangled name of an instance holds."""
    name, _, element = instance.rstrip(">").partition("<")
    types = {"": "E", "float": "IfE", "BFloat16": "INS_8BFloat16EE", "Half": "INS_4HalfEE"}
    return f"{len(name)}{name}{types[element]}"


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("instance", instances())
def test_usage(compiled: Compiled, instance: str, target: str) -> None:
    """Nothing spills, and 1,024 threads fit the 65,536 registers of a multiprocessor: half of its
    2,048 threads are there to hide latency."""
    usage = [
        usage
        for (mangled, built_for), usage in compiled.usage.items()
        if encoded(instance) in mangled and built_for == target
    ]
    assert len(usage) == 1
    assert usage[0].stack == usage[0].spills == 0
    assert usage[0].registers <= 64
    assert usage[0].shared <= (8 << 10) + 64


def test_the_report_holds_nothing_else(compiled: Compiled) -> None:
    assert len(compiled.usage) == len(instances()) * len(TARGETS)


def find_cuobjdump() -> str | None:
    """Of the toolkit, or the one that comes with Triton."""
    folders = [str(TOOLKIT / "bin"), os.environ.get("PATH", "")]
    triton = importlib.util.find_spec("triton")
    locations = (triton and triton.submodule_search_locations) or []
    folders += [str(Path(location) / "backends" / "nvidia" / "bin") for location in locations]
    return shutil.which("cuobjdump", path=os.pathsep.join(folders))


@pytest.fixture(scope="module")
def functions(compiled: Compiled) -> list[str]:
    """The assembly of each kernel, after its name."""
    cuobjdump = find_cuobjdump()
    if cuobjdump is None:
        pytest.skip("no cuobjdump")
    command = [cuobjdump, "-sass", "-arch", "sm_80", str(compiled.object_file)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return listing.split("Function : ")[1:]


@pytest.mark.parametrize(
    "instance", [name for name in instances() if name.startswith(("copy_rows", "add_norm"))]
)
def test_accesses_are_16_bytes_wide(functions: list[str], instance: str) -> None:
    named = [text for text in functions if encoded(instance).rstrip("E") in text.split("\n")[0]]
    assert len(named) == 1
    assert "LDG.E.128" in named[0]
    assert "STG.E.128" in named[0]
    assert "LDG.E.U8" not in named[0] or instance == "copy_rows"  # its tails are of any size
