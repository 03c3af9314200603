"""What the build finds out before it compiles: which CUDA toolkit, which architectures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

PROBE = Path(__file__).parents[2] / "cmake" / "probe.py"


@pytest.fixture
def probe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("probe", PROBE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like CUDA 12.8."""
    root = tmp_path / "cuda-12.8"
    (root / "bin").mkdir(parents=True)
    (root / "include").mkdir()
    (root / "include" / "cuda_runtime.h").touch()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.61'\n")
    nvcc.chmod(0o755)
    return root


def test_cuda_is_built_where_torch_and_nvcc_agree(probe: ModuleType, toolkit: Path):
    env = {"CUDA_HOME": str(toolkit)}
    chosen, reason = probe.choose_toolkit(env, "12.6")
    assert chosen == (toolkit, "12.8")
    assert reason == f"CUDA 12.8 in {toolkit}"
    assert probe.choose_toolkit(env, None) == (None, "this torch is built without CUDA")
    chosen, reason = probe.choose_toolkit(env, "13.0")
    assert chosen is None
    assert f"nvcc in {toolkit} is CUDA 12.8 and torch is built for CUDA 13.0" in reason


def test_force_cuda(probe: ModuleType, toolkit: Path):
    env = {"CUDA_HOME": str(toolkit), "CONSISTENTEE_FORCE_CUDA": "1"}
    assert probe.choose_toolkit(env, None)[0] == (toolkit, "12.8")
    with pytest.raises(probe.ProbeError, match=r"FORCE_CUDA=1, but nvcc in .* is CUDA 12\.8"):
        probe.choose_toolkit(env, "13.0")
    env["CONSISTENTEE_FORCE_CUDA"] = "0"
    assert probe.choose_toolkit(env, "12.8") == (None, "CONSISTENTEE_FORCE_CUDA=0")
    env["CONSISTENTEE_FORCE_CUDA"] = "yes"
    with pytest.raises(probe.ProbeError, match="expected 0 or 1, got 'yes'"):
        probe.choose_toolkit(env, "12.8")


def test_an_nvcc_outside_a_toolkit_is_not_taken_for_one(
    probe: ModuleType, toolkit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text("#!/bin/sh\n")
    wrapper.chmod(0o755)
    env = {"PATH": str(wrapper.parent)}
    monkeypatch.setattr(probe, "DEFAULT_TOOLKIT", tmp_path / "absent")
    with pytest.raises(probe.ProbeError) as error:
        probe.find_toolkit(env)
    assert str(error.value) == (
        f"no CUDA toolkit found: {tmp_path} (nvcc on PATH) has no include/cuda_runtime.h; "
        f"{tmp_path / 'absent'} (default) has no bin/nvcc and no include/cuda_runtime.h"
    )
    monkeypatch.setattr(probe, "DEFAULT_TOOLKIT", toolkit)
    assert probe.find_toolkit(env) == (toolkit, "12.8")
    # A link on PATH leads into the toolkit.
    wrapper.unlink()
    wrapper.symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.setattr(probe, "DEFAULT_TOOLKIT", tmp_path / "absent")
    assert probe.find_toolkit(env) == (toolkit, "12.8")


def test_architectures(probe: ModuleType):
    assert probe.cmake_architectures("8.0;9.0a 10.0+PTX") == ["80-real", "90a-real", "100"]
    with pytest.raises(probe.ProbeError, match=r"TORCH_CUDA_ARCH_LIST: .* got 'Hopper'"):
        probe.cmake_architectures("8.0 Hopper")
