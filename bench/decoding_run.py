"""One run of bench/decoding.py: ENGINE MODEL DTYPE BATCH PROMPT NEW THREADS; prints JSON."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from decoding import peak_mebibytes
from decoding_model import histogram
from torch import Tensor
from transformers import AutoModelForCausalLM

from consistentee.atomic_files import Json
from consistentee_ext import FastEarlyExitDecoder
from consistentee_ext.generation.configuration import ConsistentEECausalLMConfig
from consistentee_ext.generation.modeling import ConsistentEEForCausalLM
from consistentee_ext.generation.reference import ReferenceDecoder
from consistentee_ext.generation.rules import Arrival, PolicyRule

# With one thread the time of the process, so that others on the machine count less.
clock = time.process_time if sys.argv[-1] == "1" else time.perf_counter


def main() -> None:
    engine, model, dtype, *numbers = sys.argv[1:]
    batch, prompt, new, threads = map(int, numbers)
    torch.set_num_threads(threads)
    run = {"hugging-face": hugging_face, "published": published}.get(engine, ours)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, 40_000, (batch, prompt), generator=generator)
    with torch.inference_mode():
        figures = run(engine, Path(model), getattr(torch, dtype), ids, new)
    print(json.dumps(figures | {"peak": peak_mebibytes()}))


def hugging_face(engine: str, folder: Path, dtype: torch.dtype, ids: Tensor, new: int) -> Json:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)

    def generate(tokens: int) -> float:
        start = clock()
        model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return clock() - start

    generate(2)
    prefill = generate(1)
    return {"prefill": prefill, "decode": generate(new) - prefill}


def ours(engine: str, folder: Path, dtype: torch.dtype, ids: Tensor, new: int) -> Json:
    if engine == "full":
        decoder = FastEarlyExitDecoder.from_pretrained(folder, dtype=dtype)
    else:
        model = with_exits(folder)
        thresholds = calibrated(model) if engine == "exits" else truncated(model)
        decoder = FastEarlyExitDecoder(model, dtype=dtype, threshold=thresholds)
    core, rows, length = decoder._engine, len(ids), ids.shape[1]
    offsets = torch.arange(rows + 1, dtype=torch.int32) * length
    slots = torch.arange(rows)

    def generate(tokens: int) -> tuple[float, float, float]:
        layers = []
        start = clock()
        cache = core.allocate(rows, length + tokens)
        chosen = core.prefill(cache, ids.flatten(), offsets, slots).argmax(-1)
        begun = clock()
        for _ in range(tokens - 1):
            step = core.step(cache, chosen, slots)
            chosen = step.logits.argmax(-1)
            layers.append(step.exit_layers)
        end = clock()
        mean = float(torch.cat(layers).float().mean()) if layers else 0.0
        return begun - start, end - begun, mean

    generate(3)
    prefill, decode, mean = generate(new)
    return {"prefill": prefill, "decode": decode, "mean_layers": mean}


def published(engine: str, folder: Path, dtype: torch.dtype, ids: Tensor, new: int) -> Json:
    """One row at a time, in eager PyTorch, skipped layers' keys and values at once."""
    model: Any = with_exits(folder)
    rule = ThresholdsRule(calibrated(model))
    decoder: Any = None

    def prefill() -> float:
        nonlocal decoder
        start = clock()
        decoder = ReferenceDecoder(model.to(dtype), ids.tolist(), ids.shape[1] + new, "immediate")
        return clock() - start

    prefill()
    seconds, layers = prefill(), []
    chosen, rows = decoder.logits.argmax(-1), torch.arange(len(ids))
    start = clock()
    for _ in range(new - 1):
        step = decoder.step(rows, chosen, rule)
        chosen = step.logits.argmax(-1)
        layers.append(step.exit_layers)
    decode = clock() - start
    mean = float(torch.cat(layers).float().mean())
    return {"prefill": seconds, "decode": decode, "mean_layers": mean}


def with_exits(folder: Path) -> ConsistentEEForCausalLM:
    """The model with an exit at every layer from L/4 to L/2, whose policies are random directions:
    they tell tokens apart as trained ones do, and cost the same.
    """
    backbone: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layers = backbone.config.num_hidden_layers
    exits = [layer for layer, share in enumerate(histogram(layers), 1) if share and layer < layers]
    config = ConsistentEECausalLMConfig(
        backbone.config, exit_layers=exits, readout="trunk", policy="linear"
    )
    torch.manual_seed(0)
    model = ConsistentEEForCausalLM(config).eval()
    model.backbone = backbone
    model.trunk = type(model.trunk)(backbone)
    for layer in exits:
        policy: Any = model.exit(layer).policy
        policy.weight.data.normal_(std=backbone.config.hidden_size**-0.5)
        policy.bias.data.zero_()
    return model


def truncated(model: ConsistentEEForCausalLM) -> dict[int, float]:
    """All tokens leave behind the layer next to the histogram's mean."""
    layers = model.config.num_layers
    mean = sum(layer * share for layer, share in enumerate(histogram(layers), 1))
    nearest = min(model.config.exit_layers, key=lambda layer: abs(layer - mean))
    return {layer: 1e-30 if layer == nearest else 1.0 for layer in model.config.exit_layers}


def calibrated(model: ConsistentEEForCausalLM) -> dict[int, float]:
    """Thresholds by which the histogram's share of tokens leaves at each exit."""
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(1000, 40_000, (48, 8), generator=generator).tolist()
    decoder = ReferenceDecoder(model, prompts, 40)
    chosen, rows, seen = decoder.logits.argmax(-1), torch.arange(48), Watching()
    for _ in range(24):
        step = decoder.step(rows, chosen, seen)
        chosen = step.logits.argmax(-1)
    shares, left, thresholds = histogram(model.config.num_layers), 1.0, {}
    stays = torch.ones(48 * 24, dtype=torch.bool)
    for layer, found in seen.probabilities.items():
        probabilities = torch.cat(found)
        quantile = 1 - shares[layer - 1] / left
        thresholds[layer] = float(probabilities[stays].quantile(quantile))
        stays &= probabilities <= thresholds[layer]
        left -= shares[layer - 1]
    return thresholds


@dataclass
class Watching:
    """No token leaves; what policies say is kept."""

    probabilities: dict[int, list[Tensor]] = field(default_factory=dict)

    def __call__(self, arrival: Arrival) -> Tensor:
        found = arrival.policy_logits.sigmoid()
        self.probabilities.setdefault(arrival.layer, []).append(found)
        return torch.zeros_like(found, dtype=torch.bool)

    def reads_logits(self, layer: int) -> bool:
        return False


@dataclass
class ThresholdsRule:
    thresholds: dict[int, float]

    def __call__(self, arrival: Arrival) -> Tensor:
        return PolicyRule(self.thresholds[arrival.layer])(arrival)

    def reads_logits(self, layer: int) -> bool:
        return False


if __name__ == "__main__":
    main()
