"""How bench/decoding.py asks OpenVINO GenAI and llama.cpp, which live outside this environment."""

from __future__ import annotations

import argparse
import json

from consistentee.atomic_files import Json

# Under the rival's own interpreter: no import of ours.
OPENVINO = """
import json, re, sys, time
import numpy as np
import openvino as ov
import openvino_genai as genai
folder, dtype = sys.argv[1:3]
batch, prompt, new, threads = map(int, sys.argv[3:])
clock = time.process_time if threads == 1 else time.perf_counter
precision = {"float32": "f32", "bfloat16": "bf16"}[dtype]
scheduler = genai.SchedulerConfig()
scheduler.max_num_batched_tokens = 8192
scheduler.max_num_seqs = batch
scheduler.cache_size = 2
scheduler.enable_prefix_caching = False
options = {"INFERENCE_PRECISION_HINT": precision, "KV_CACHE_PRECISION": precision,
           "INFERENCE_NUM_THREADS": threads, "scheduler_config": scheduler}
pipe = genai.LLMPipeline(folder, "CPU", **options)
rng = np.random.default_rng(0)
ids = rng.integers(1000, 40000, (batch, prompt)).astype(np.int64)
inputs = genai.TokenizedInputs(ov.Tensor(ids), ov.Tensor(np.ones_like(ids)))
def run(tokens):
    config = genai.GenerationConfig()
    config.max_new_tokens = tokens
    config.ignore_eos = True
    config.do_sample = False
    start = clock()
    pipe.generate(inputs, config)
    return clock() - start
run(3)
prefill = run(1)
decode = run(new) - prefill
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"prefill": prefill, "decode": decode, "peak": peak}))
"""


def openvino_command(
    python: str, folder: str, batch: int, prompt: int, options: argparse.Namespace
) -> list[str]:
    numbers = [str(n) for n in (batch, prompt, options.new, options.threads)]
    return [python, "-c", OPENVINO, folder, options.dtype, *numbers]


def llama_command(
    program: str, model: str, batch: int, prompt: int, new: int, threads: int
) -> list[str]:
    """llama.cpp's own benchmark: B sequences in parallel, no prompt shared."""
    sizes = {"-c": batch * (prompt + new) + 256, "-b": 2048, "-ub": 512, "-t": threads}
    plan = {"-npp": prompt, "-ntg": new, "-npl": batch}
    numbers = [str(word) for pair in (sizes | plan).items() for word in pair]
    return [program, "-m", model, *numbers, "--output-format", "jsonl"]


def llama_figures(output: str) -> Json:
    line = next(line for line in reversed(output.splitlines()) if line.startswith("{"))
    found = json.loads(line)
    # It decodes one token more than there are steps behind the prompt's.
    new = found["tg"]
    return {"prefill": found["t_pp"], "decode": found["t_tg"] * (new - 1) / new}
