"""What launching a layer costs the host: by the loop in C++, and from Python.

    python bench/dispatch.py

On the CPU, on one token of a tiny model, so that what is measured is the way to the kernels and
little of their own work: CPU time of one thread. Ops of the CUDA library are compiled for the host,
where they count their launches and run none; torch's are the CPU's, with ReLU, as its GELU takes
longer than a launch there.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from support.host_ops import HostOps  # noqa: E402 - found by the line above
from support.models import tiny_model  # noqa: E402

from consistentee_ext import FastEarlyExitEncoder  # noqa: E402
from consistentee_ext.engines import launcher  # noqa: E402
from consistentee_ext.engines.device import DeviceEngine  # noqa: E402
from consistentee_ext.engines.launcher import Launcher  # noqa: E402
from consistentee_ext.ops import DeviceOps, cuda, onednn  # noqa: E402
from consistentee_ext.packed import ExitResults, PackedBatch  # noqa: E402

LAYERS, PASSES = 12, 400


def attention(
    query: Any, key: Any, value: Any, offsets_q: Any, offsets_k: Any, heads: int, *most: Any
) -> Any:
    """As `consistentee_ext.ops.device_attention`, by the op itself."""
    q, k, v = (tokens.unflatten(1, (heads, -1)) for tokens in (query, key, value))
    op = torch.ops.aten._flash_attention_forward.default
    context = op(q, k, v, offsets_q, offsets_k, *most[:2], 0.0, False, False)[0]
    return context.flatten(1)


def passes() -> dict[str, Callable[[], object]]:
    """A pass of 12 layers without early exits, and with one at each layer, by both loops."""
    functions = {name: getattr(cuda, name) for name in cuda.__all__}
    ops = cast(DeviceOps, SimpleNamespace(**functions | {"attention": attention}))
    sizes: dict[str, Any] = {"hidden_size": 8, "num_attention_heads": 1, "intermediate_size": 8}
    model = tiny_model("mean", num_hidden_layers=LAYERS, hidden_act="relu", **sizes)
    batch = PackedBatch(torch.randn(1, 8), torch.tensor([0, 1]).int(), torch.arange(1))
    results = ExitResults.empty(1, 3)
    runs: dict[str, Callable[[], object]] = {}
    for kind, exit_layers in (("bare", []), ("with an exit", None)):
        engine = FastEarlyExitEncoder(model, backend="torch", exit_layers=exit_layers)._engine
        stack, exits = engine.stack, engine.exits
        loops = {"Python": None, "C++": Launcher(stack, exits)}
        for name, loop in loops.items():
            device = DeviceEngine(stack, exits, ops, "lagged", None, loop)

            def run(device: DeviceEngine = device) -> object:
                return device.advance(batch, 0, LAYERS, results)

            runs[f"{kind}, {name}"] = run
    return runs


def main() -> None:
    torch.set_num_threads(1)
    onednn.is_available = lambda dtype: False  # weights as on a GPU
    launcher.why_no_flash = lambda *_: None
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        HostOps(Path(folder) / "cuda_ops.so", count_only=True)
        runs = passes()
        times: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(PASSES):
            for name, run in runs.items():
                begin = time.thread_time()
                run()
                times[name].append(time.thread_time() - begin)
    print(
        f"torch {torch.__version__}, {PASSES} passes of {LAYERS} layers; us a layer, median (5-95%)"
    )
    for name, seconds in times.items():
        of_layer = sorted(1e6 * second / LAYERS for second in seconds)
        low, high = (of_layer[int(share * PASSES)] for share in (0.05, 0.95))
        print(f"{name:<24} {statistics.median(of_layer):6.1f} ({low:.1f}-{high:.1f})")


if __name__ == "__main__":
    main()
