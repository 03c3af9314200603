"""Decoding: ours at full depth, truncated, with exits by a fixed histogram, and the published way,
beside Hugging Face, OpenVINO GenAI and llama.cpp. Each in a process of its own, in turn.

    python bench/decoding.py --model DIR --output runs/decoding [--dtype bfloat16]
        [--openvino PYTHON IR] [--llama BATCHED_BENCH GGUF]

Prints prefill and decoding apart, tokens a second and peak memory; each figure is saved as soon as
it is there, and the same command goes on where it was stopped. With --threads 1 seconds are the
processor's, which others on the machine disturb less (llama.cpp's stay the clock's).
docs/decoding.md says what the rows are, and how rivals are installed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

from decoding_model import cost_model, machine
from decoding_rivals import llama_command, llama_figures, openvino_command

from consistentee.atomic_files import Json, read_json, write_json
from consistentee_ext.progress import progress_bar

OURS = ("hugging-face", "full", "truncated", "exits", "published")
BATCHES = (1, 8, 32, 128)
PROMPT, NEW = 64, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--new", type=int, default=NEW)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engines", nargs="+", default=OURS, choices=OURS)
    parser.add_argument("--openvino", nargs=2, metavar=("PYTHON", "IR"))
    parser.add_argument("--llama", nargs=2, metavar=("BATCHED_BENCH", "GGUF"))
    options = parser.parse_args()
    engines = [*options.engines]
    engines += ["openvino"] * bool(options.openvino) + ["llama.cpp"] * bool(options.llama)
    options.output.mkdir(parents=True, exist_ok=True)
    # Rounds are outermost: what disturbs the machine for a while disturbs all engines.
    runs = list(product(range(options.rounds), options.batches, engines))
    runs = [run for run in runs if run[1] == 1 or run[2] != "published"]
    with progress_bar(len(runs), "decoding", "run") as bar:
        for number, batch, engine in runs:
            file = options.output / f"{options.dtype}-{engine}-{batch}-{number}.json"
            if not file.exists():
                write_json(file, measure(engine, batch, options))
            bar.update()
    report(options, engines)


def measure(engine: str, batch: int, options: argparse.Namespace) -> Json:
    """Seconds of prefill and of decoding, and peak memory."""
    if engine == "llama.cpp":
        program, gguf = options.llama
        command = llama_command(program, gguf, batch, PROMPT, options.new, options.threads)
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return llama_figures(output)
    if engine == "openvino":
        python, folder = options.openvino
        command = openvino_command(python, folder, batch, PROMPT, options)
    else:
        run = Path(__file__).with_name("decoding_run.py")
        command = [sys.executable, str(run), engine, str(options.model), options.dtype]
        command += [str(n) for n in (batch, PROMPT, options.new, options.threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{engine}: {done.stderr[-2000:]}")
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def report(options: argparse.Namespace, engines: list[str]) -> None:
    known = machine(options.dtype, options.threads)
    print(
        f"{options.dtype}, {options.threads} threads, prompts of {PROMPT}, {options.new} new tokens"
    )
    print(f"reads {known.bandwidth / 1e9:.1f} GB/s, multiplies {known.rate / 1e9:.0f} GFLOP/s")
    print(f"{'B':>4} {'engine':13} {'prefill s':>9} {'ms a step':>9} {'tokens/s':>8} {'MiB':>6}")
    for batch in options.batches:
        steps: dict[str, float] = {}
        for engine in engines:
            files = sorted(options.output.glob(f"{options.dtype}-{engine}-{batch}-*.json"))
            runs = [read_json(file) for file in files]
            if not runs:
                continue
            prefill, decode = (sorted(run[name] for run in runs) for name in ("prefill", "decode"))
            steps[engine] = decode[len(decode) // 2] / (options.new - 1)
            peak = max(run.get("peak", 0.0) for run in runs)
            spread = f"{(decode[-1] - decode[0]) / decode[len(decode) // 2]:.0%}"
            mean = runs[0].get("mean_layers")
            print(
                f"{batch:4} {engine:13} {prefill[len(prefill) // 2]:9.3f}"
                f" {1e3 * steps[engine]:9.2f} {batch / steps[engine]:8.1f} {peak:6.0f}"
                f"  spread {spread}" + (f", mean exit layer {mean:.2f}" if mean else "")
            )
        limits = cost_model(options.model, options.dtype, batch, known, PROMPT + options.new // 2)
        line = f"     limit {1e3 * limits.full:.2f} ms a step"
        if "full" in steps:
            line += f", full depth at {limits.full / steps['full']:.2f} of it"
        if {"full", "exits"} <= steps.keys():
            gain = steps["full"] / steps["exits"]
            line += f"; exits gain {gain:.2f}, by the cost model {limits.full / limits.exits:.2f}"
        print(line)


def peak_mebibytes() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
