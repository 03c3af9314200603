"""The Triton kernels without a GPU: their cases in Triton's interpreter, and their compilation.

The interpreter accepts what the compiler does not, and the other way round: hence both.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import STATE_ACTIVATIONS, HeadWeights

pytestmark = pytest.mark.needs_triton
FOLDER = Path(__file__).parent
COMPILED = [
    # dtype, policy_input, criterion, last, H, C, P, independent labels
    (torch.float32, None, "entropy", False, 19, 1, 1, False),
    (torch.float32, "state", "patience", True, 111, 77, 32, False),
    (torch.float32, "both", "policy", False, 768, 3, 32, False),
    (torch.float32, "both", "policy", False, 768, 5, 32, True),
    (torch.float16, None, "energy", False, 64, 5, 1, False),
    (torch.bfloat16, "prediction", "policy", False, 1, 2, 1, False),
    (torch.bfloat16, "both", "policy", False, 768, 3, 32, False),
    (torch.bfloat16, None, "patience", True, 19, 1, 1, True),
]


def find_triton() -> Path:
    """The package's folder."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def run_python(arguments: list[str], environment: dict[str, str]) -> str:
    inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        env=inherited | environment,
        cwd=FOLDER.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version(package).split(".")[:2])


@pytest.mark.parametrize("chosen", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_match_the_reference_in_the_interpreter(chosen: str) -> None:
    if release("triton") < (3, 7) and release("numpy") >= (2, 4):
        pytest.skip("the interpreter of triton < 3.7 cannot loop with numpy >= 2.4")
    files = [str(FOLDER / name) for name in ("triton_cases.py", "triton_passes.py")]
    options = ["-q", "-p", "no:cacheprovider", "-m", chosen]
    output = run_python(["-m", "pytest", *options, *files], {"TRITON_INTERPRET": "1"})
    assert "skipped" not in output


@pytest.mark.slow
def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    bundled = find_triton() / "backends" / "nvidia" / "bin" / "ptxas"
    toolkit = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "bin" / "ptxas"
    ptxas = next((path for path in (bundled, toolkit) if path.is_file()), None)
    if ptxas is None:
        pytest.skip("no ptxas: neither triton's own nor a CUDA toolkit's")
    environment = {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "TRITON_PTXAS_PATH": str(ptxas)}
    run_python([__file__, str(tmp_path)], environment)
    found = [(path.stem.rstrip("0123456789"), path.read_text()) for path in tmp_path.glob("*.ptx")]
    drawing = {name for name, ptx in found if "atom." in ptx}
    assert drawing == {"_add_norm_pool", "_exit_rows"}
    assert {name for name, _ in found} == {"_add_norm_tokens", "_copy_rows"} | drawing
    for _, ptx in found:
        steps = re.findall(r"bar\.sync|atom\.\S+|ld\.volatile|st\.global", ptx)
        # What `_ends_last` relies on: all threads have stored before one draws the ticket, and none
        # reads before it is known.
        for ticket in (i for i, step in enumerate(steps) if step.startswith("atom")):
            assert steps[ticket].startswith("atom.global.gpu.acq_rel.add")
            assert steps[ticket - 1] == steps[ticket + 1] == "bar.sync"
            assert "ld.volatile" not in steps[:ticket]


class NoDevice:
    """What Triton asks a driver before it launches; no device stands behind it."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device

    def get_current_target(self) -> object:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 80, 32)


def compile_all(folder: Path) -> None:
    """Call the public functions, but compile each kernel where they would launch it."""
    import triton
    from triton.runtime.jit import JITFunction

    triton.runtime.driver.set_active(NoDevice())
    launch, number = JITFunction.run, 0

    def compile_only(kernel: JITFunction, *arguments: object, **options: object) -> None:
        nonlocal number
        compiled = launch(kernel, *arguments, **(options | {"warmup": True}))
        assert compiled.asm["cubin"]
        (folder / f"{kernel.__name__}{number}.ptx").write_text(compiled.asm["ptx"])
        number += 1

    JITFunction.run = compile_only
    from consistentee_ext.ops import triton as kernels

    cu_seqlens = torch.tensor([0, 3, 3, 5], dtype=torch.int32)
    tickets, totals = torch.zeros(3, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    for dtype, policy_input, criterion, last, size, classes, units, multi_label in COMPILED:
        hidden = torch.zeros(5, size, dtype=dtype)
        norm = (hidden.clone(), torch.ones(size, dtype=dtype), torch.ones(size, dtype=dtype), 1e-12)
        kernels.add_norm(hidden, *norm)
        for pooling in ("cls", "mean", "pair"):
            pairs = (torch.tensor([2, -1, 0]), tickets) if pooling == "pair" else ()
            kernels.add_norm_pool(hidden, *norm, cu_seqlens, 40, pooling, tickets, *pairs)
        features = {None: 0, "state": size, "prediction": 5, "both": size + 5}[policy_input]
        policy: dict[str, Any] = {}
        if policy_input is not None:
            dense_bias, score_weight = torch.zeros(2, units)
            policy = {
                "dense_weight": torch.zeros(units, features),
                "dense_bias": dense_bias,
                "score_weight": score_weight,
                "score_bias": torch.zeros(1),
            }
        own, shared = torch.full((4,), 0.5), torch.tensor(0.5).expand(4)
        for activation, thresholds in zip(STATE_ACTIVATIONS, (own, shared, own), strict=True):
            batch = PackedBatch(hidden, cu_seqlens, torch.tensor([2, -1, 0]))
            kernels.exit_step_async(
                batch,
                torch.zeros(3, size, dtype=dtype),
                HeadWeights(
                    torch.zeros(classes, size),
                    torch.zeros(classes),
                    **policy,
                    policy_input=policy_input,
                    state_activation=activation,
                    multi_label=multi_label,
                ),
                ExitDecision(criterion, thresholds, 1, 3, last),
                ExitResults.empty(4, classes),
                tickets,
                totals,
                PackedBatch(*map(torch.empty_like, batch)),
            )


if __name__ == "__main__":
    compile_all(Path(sys.argv[1]))
