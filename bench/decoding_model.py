"""What a step of decoding costs at least: the machine measured, and the cost model.

    step = sum_k max(W_k b / bandwidth, 2 n_k W_k / rate) + cache reads + head

n_k rows run layer k, W_k are its weights of b bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig

# Of the histogram: 80% of the tokens evenly over layers L/4 to L/2, 20% at L.
EARLY = 0.8


class Machine(NamedTuple):
    """Bytes and floating-point operations a second."""

    bandwidth: float
    rate: float


class Limits(NamedTuple):
    """Seconds a step, at full depth and with exits by the histogram."""

    full: float
    exits: float


def histogram(num_layers: int) -> list[float]:
    """The share of tokens that leave behind each layer, 1 to L."""
    first, last = num_layers // 4, num_layers // 2
    shares = [0.0] * num_layers
    for layer in range(first, last + 1):
        shares[layer - 1] = EARLY / (last - first + 1)
    shares[-1] = 1 - EARLY
    return shares


def machine(dtype: str, threads: int) -> Machine:
    torch.set_num_threads(threads)
    memory = torch.ones(1 << 27)
    read = _fastest(lambda: memory.sum())
    kind = getattr(torch, dtype)
    x, weight = torch.ones(512, 576, dtype=kind), torch.ones(1536, 576, dtype=kind)
    packed = torch.ops.mkldnn._reorder_linear_weight(weight)
    multiply = _fastest(lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], ""))
    return Machine(4 * memory.numel() / read, 2 * 512 * 576 * 1536 / multiply)


def cost_model(model: Path, dtype: str, batch: int, known: Machine, context: int) -> Limits:
    config = AutoConfig.from_pretrained(model)
    size = 4 if dtype == "float32" else 2
    hidden, layers = config.hidden_size, config.num_hidden_layers
    keys = hidden // config.num_attention_heads * config.num_key_value_heads
    layer = 2 * hidden * hidden + 2 * hidden * keys + 3 * hidden * config.intermediate_size

    def seconds(weights: float, rows: float) -> float:
        # With few rows on average a layer is left out in some steps.
        present = 1 - (1 - rows / batch) ** batch
        each = rows / max(present, 1e-9)
        return present * max(weights * size / known.bandwidth, 2 * each * weights / known.rate)

    def step(rows: list[float]) -> float:
        cache = sum(rows) * context * 2 * keys * size / known.bandwidth
        return (
            sum(seconds(layer, n) for n in rows)
            + cache
            + seconds(config.vocab_size * hidden, batch)
        )

    gone, here = 0.0, []
    for share in histogram(layers):
        here.append(batch * (1 - gone))
        gone += share
    return Limits(step([batch] * layers), step(here))


def _fastest(call: Callable[[], object]) -> float:
    times = []
    for _ in range(20):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)
