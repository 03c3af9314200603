"""The rows of the GPU check: each is a function that yields figures as it gets them.

Rows 1 and 2, the tests and the sanitizer, are run by `make gpu-check`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from gpu_figures import Figure, Row, each, layer_ratio, over, over_encoder
from gpu_models import (
    DTYPE,
    INPUT_SETS,
    Bench,
    ExitStep,
    FullDepth,
    from_python,
    without_graphs,
)
from gpu_timing import Clock, Run
from roofline import LAUNCH, Card, copy_rows, exit_rows, pooler
from torch.nn import functional as F

from consistentee_ext.backend import DEVICE_BACKENDS
from consistentee_ext.engines.removal_costs import RemovalCosts
from consistentee_ext.ops import load_device_ops, load_ops
from consistentee_ext.packed import PackedBatch

LENGTHS = Path(__file__).with_name("lengths.json")
LENGTH = 128  # tokens of a row, where a row says no other
# Removing rows pays whatever it saves.
ALWAYS = RemovalCosts([0.0, 1.0], [0.0, 1.0], [-1.0, -1.0])
LEAVE = 0.2  # of the rows at the exit step that is timed alone


def _then_gelu(run: Run) -> Run:
    return lambda number: F.gelu(run(number))


def ceilings(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """What the card gives at most: a copy, a large product, the products of a layer."""
    yield Figure("copy", _bandwidth(bench, clock) / 1e12, "TB/s")
    side = bench.scale.square
    left, right = (
        [torch.randn(side, side, device=bench.device).to(DTYPE) for _ in range(2)] for _ in range(2)
    )
    seconds = clock.median(lambda i: left[i % 2] @ right[i % 2])
    peak = 2 * side**3 / seconds
    yield Figure(f"product {side}^3", peak / 1e12, "TFLOP/s")
    size, inner = bench.config.hidden_size, bench.config.intermediate_size
    shapes = {"qkv": (size, 3 * size), "out": (size, size), "up": (size, inner),
              "down": (inner, size)}  # fmt: skip
    for tokens in bench.scale.product_tokens:
        total = 0.0
        for name, (width, columns) in shapes.items():
            seconds = clock.replayed(_product(bench, tokens, width, columns), bench.layers)
            total += seconds
            rate = 2 * tokens * width * columns / seconds
            yield Figure(f"{name}, T = {tokens}", rate / 1e12, "TFLOP/s", f"{rate / peak:.0%}")
        yield Figure(f"four products, T = {tokens}", 1e6 * total, "us")


def headline(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """Engines side by side on one shape, then torch.compile, which takes long to begin."""
    batches = [bench.batch(*bench.scale.headline) for _ in range(INPUT_SETS)]
    hugging_face = bench.hugging_face()
    runs: dict[str, Run] = {"Hugging Face, sdpa": over(hugging_face, batches)}
    full = bench.encoder(exit_layers=[])
    runs["ours, full depth"] = over_encoder(full, batches)
    exits = bench.exiting(batches)
    runs["ours, exits"] = over_encoder(exits, batches)
    for backend in bench.backends:
        for sync in ("eager", "lagged"):
            encoder = bench.exiting(batches, backend, sync)
            runs[f"ours, exits, {backend}, {sync}"] = over_encoder(encoder, batches)
    for name, launched in (("one C++ call", without_graphs), ("Python", from_python)):
        encoder = launched(bench.encoder(exit_layers=[]))
        runs[f"ours, full depth, launched by {name}"] = over_encoder(encoder, batches)
    seconds = clock.medians(runs)
    for name, median in seconds.items():
        yield Figure(name, 1e3 * median, "ms")
    ratio = layer_ratio(exits, batches)
    best = min(s for name, s in seconds.items() if name.startswith("ours, exits"))
    gain = seconds["ours, full depth"] / best
    yield Figure("layer ratio", ratio, "")
    yield Figure("full depth over exits", gain, "x", "goal 1.75")
    yield Figure("realised saving", gain / ratio, "", "goal 0.80")
    yield Figure("Hugging Face over exits", seconds["Hugging Face, sdpa"] / best, "x", "goal 1.8")
    for mode in ("default", "reduce-overhead"):
        begin = time.perf_counter()
        compiled = bench.hugging_face(mode)
        compiled(batches[0])
        waited = time.perf_counter() - begin
        sides = clock.medians({"": over(compiled, batches), "ours": over_encoder(exits, batches)})
        note = f"{waited:.0f} s to compile; {sides[''] / sides['ours']:.2f}x ours, exits"
        yield Figure(f"torch.compile, {mode}", 1e3 * sides[""], "ms", note)


def profile(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """Where a pass spends its time: launches, kernels, the host."""
    rows, length = bench.scale.headline
    activities = [torch.profiler.ProfilerActivity.CPU]
    if bench.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    for count in (1, rows):
        batches = [bench.batch(count, length) for _ in range(INPUT_SETS)]
        encoders = {"full depth": bench.encoder(exit_layers=[]), "exits": bench.exiting(batches)}
        for kind, encoder in encoders.items():
            label = f"B = {count}, {kind}"
            run = over_encoder(encoder, batches)
            yield Figure(f"{label}: pass", 1e6 * clock.median(run), "us")
            if kind == "full depth" and bench.backends:
                whole = FullDepth(bench, batches[0], bench.backends[0])
                seconds = clock.replayed(each(whole.run), 1)
                yield Figure(f"{label}: its launches in a CUDA graph", 1e6 * seconds, "us")
            with torch.profiler.profile(activities=activities) as profiler:
                for number in range(INPUT_SETS):
                    run(number)
                clock.synchronize()
            yield from _kernels(label, profiler, INPUT_SETS)
    engines = {
        "by graphs": bench.encoder(exit_layers=[]),
        "by one C++ call": without_graphs(bench.encoder(exit_layers=[])),
        "from Python": from_python(bench.encoder(exit_layers=[])),
    }
    few = [bench.batch(1, length) for _ in range(INPUT_SETS)]  # so that the host is what takes time
    for name, encoder in engines.items():
        run = over_encoder(encoder, few)
        clock.median(run)
        clock.synchronize()
        begin = time.perf_counter()
        for number in range(clock.repeats):
            run(number)
        issued = time.perf_counter() - begin
        clock.synchronize()
        yield Figure(f"host, full depth {name}", 1e6 * issued / clock.repeats, "us")


def layer_times(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """t_layer(T) at full depth, by graph replays: the cost model, the knee."""
    encoder = bench.encoder(next(iter(bench.backends), None))
    on_device = encoder.backend in DEVICE_BACKENDS
    blocks = encoder._engine.stack.blocks
    ops = (load_device_ops if on_device else load_ops)(encoder.backend)
    times = {}
    for tokens in bench.scale.tokens:
        length = min(tokens, LENGTH)
        lengths = [length] * (tokens // length)
        inputs = [bench.packed(lengths) for _ in range(INPUT_SETS)]

        def run(number: int, inputs: Sequence[PackedBatch] = inputs, length: int = length) -> None:
            blocks[number % bench.layers](inputs[number % INPUT_SETS], ops, length)

        times[tokens] = clock.replayed(run, bench.layers)
        rate = _layer_operations(bench, tokens, length) / times[tokens] / 1e12
        yield Figure(f"T = {tokens}", 1e6 * times[tokens], "us", f"{rate:.0f} TFLOP/s")
    *_, (few, less), (many, more) = times.items()
    slope = (more - less) / (many - few)
    yield Figure("a token, at the large end", 1e9 * slope, "ns")
    yield Figure("knee: as long as the least layer", min(times.values()) / slope, "tokens")


def exit_steps(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """The exit step and its copy alone, by graph replays, beside what it cannot take less than."""
    card = Card("this", _bandwidth(bench, clock), 67e12)
    size = bench.config.hidden_size
    for backend in bench.backends:
        for rows in bench.scale.exit_rows:
            step = ExitStep(bench, bench.packed([LENGTH] * rows), backend, LEAVE)
            seconds = clock.replayed(each(step.run), 10)
            works = (exit_rows(rows, size), pooler(rows, size), copy_rows(rows, size))
            floor = sum(work.floor(card) for work in works)
            note = (
                f"floor {1e6 * floor:.1f} + {3e6 * LAUNCH:.0f} us; "
                f"{step.copied_share():.0%} of the tokens stay"
            )
            if backend == "cuda" and rows in (8, 32):
                note += f"; goal {10 if rows == 8 else 30}"
            yield Figure(f"{backend}, B = {rows}", 1e6 * seconds, "us", note)


def shapes(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """Shape by shape: full depth, and exits with an eager and with a lagged host."""
    hugging_face, full = bench.hugging_face(), bench.encoder(exit_layers=[])
    for rows, length in bench.scale.shapes:
        batches = [bench.batch(rows, length) for _ in range(INPUT_SETS)]
        eager, lagged = (bench.exiting(batches, sync=sync) for sync in ("eager", "lagged"))
        launched = without_graphs(bench.exiting(batches))
        seconds = clock.medians(
            {
                "Hugging Face": over(hugging_face, batches),
                "full depth": over_encoder(full, batches),
                "exits, eager": over_encoder(eager, batches),
                "exits, lagged": over_encoder(lagged, batches),
                "exits, without graphs": over_encoder(launched, batches),
            }
        )
        best = min(seconds["exits, eager"], seconds["exits, lagged"])
        ratio = layer_ratio(eager, batches)
        gain = seconds["full depth"] / best
        notes = {
            "Hugging Face": f"{seconds['Hugging Face'] / best:.2f}x exits",
            "full depth": f"{gain:.2f}x exits; realised {gain / ratio:.2f} of {ratio:.2f}",
        }
        for name, median in seconds.items():
            yield Figure(f"{rows} x {length}, {name}", 1e3 * median, "ms", notes.get(name, ""))


def launching(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """Without graphs: a pass from Python, by one C++ call that removes rows at each exit, and by
    one that removes them where it pays.
    """
    for rows, length in bench.scale.launched:
        batches = [bench.batch(rows, length) for _ in range(INPUT_SETS)]
        encoders = {
            "Python": from_python(bench.exiting(batches, sync="lagged")),
            "C++, rows removed at each exit": without_graphs(
                bench.exiting(batches, sync="lagged"), ALWAYS
            ),
            "C++, where it pays": without_graphs(bench.exiting(batches, sync="lagged")),
            "C++, full depth": without_graphs(bench.encoder(exit_layers=[])),
        }
        runs = {name: over_encoder(encoder, batches) for name, encoder in encoders.items()}
        seconds = clock.medians(runs)
        for name, median in seconds.items():
            note = f"{seconds['Python'] / median:.2f} times as fast as from Python"
            yield Figure(f"{rows} x {length}, {name}", 1e3 * median, "ms", note)


def epilogues(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """What a GELU in the product saves; a product whose number of rows the device alone knows."""
    size, inner = bench.config.hidden_size, bench.config.intermediate_size
    for tokens in bench.scale.product_tokens:
        plain = _product(bench, tokens, size, inner)
        fused = _product(bench, tokens, size, inner, epilogue=True)
        apart = clock.replayed(_then_gelu(plain), bench.layers)
        yield Figure(f"addmm, then gelu, T = {tokens}", 1e6 * apart, "us")
        together = clock.replayed(fused, bench.layers)
        note = f"{1e6 * (apart - together):.1f} us less"
        yield Figure(f"gelu (tanh) in the product, T = {tokens}", 1e6 * together, "us", note)
    for tokens in bench.scale.product_tokens[:3]:
        for share in (0.25, 0.5, 1.0):
            yield _grouped(bench, clock, tokens, share)


def real_lengths(bench: Bench, clock: Clock) -> Iterator[Figure]:
    """Rows as long as those of two data sets, padded for Hugging Face; peak memory."""
    hugging_face, full = bench.hugging_face(), bench.encoder(exit_layers=[])
    for text, lengths in json.loads(LENGTHS.read_text(encoding="utf-8")).items():
        for rows in bench.scale.real_rows:
            source = cycle(lengths)
            batches = [bench.batch_of(list(islice(source, rows))) for _ in range(INPUT_SETS)]
            exits = bench.exiting(batches)
            runs = {
                "Hugging Face": over(hugging_face, batches),
                "full depth": over_encoder(full, batches),
                "exits": over_encoder(exits, batches),
            }
            seconds = clock.medians(runs)
            tokens = sum(int(batch["attention_mask"].sum()) for batch in batches)
            padded = sum(batch["input_ids"].numel() for batch in batches)
            ratio = layer_ratio(exits, batches)
            gain = seconds["full depth"] / seconds["exits"]
            notes = {
                "Hugging Face": f"{padded / tokens:.2f} places a token",
                "full depth": f"{seconds['Hugging Face'] / seconds['full depth']:.2f}x",
                "exits": f"{seconds['Hugging Face'] / seconds['exits']:.2f}x; realised "
                f"{gain / ratio:.2f} of {ratio:.2f}",
            }
            for name, median in seconds.items():
                yield Figure(f"{text}, {rows} rows, {name}", 1e3 * median, "ms", notes[name])
            for name, run in runs.items():
                if bench.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(bench.device)
                    run(0)
                    peak = torch.cuda.max_memory_allocated(bench.device) / 2**20
                    yield Figure(f"{text}, {rows} rows, {name}: peak memory", peak, "MiB")


# Numbers and seconds as planned for ten minutes on a card.
ROWS: dict[int, Row] = {
    3: Row("ceilings of this card", 30, ceilings),
    4: Row("engines on one shape", 130, headline),
    5: Row("profile of a pass", 40, profile),
    6: Row("time of a layer by tokens", 40, layer_times),
    7: Row("the exit step and its copy", 40, exit_steps),
    8: Row("shapes, eager and lagged", 90, shapes),
    9: Row("GELU and rows that the device counts", 30, epilogues),
    10: Row("real lengths", 60, real_lengths),
    11: Row("launching without graphs, and removal", 40, launching),
}


def _bandwidth(bench: Bench, clock: Clock) -> float:
    """Bytes a second of a copy, read and written."""
    source, target = (
        [torch.randn(bench.scale.copy_elements, device=bench.device).to(DTYPE) for _ in range(2)]
        for _ in range(2)
    )
    seconds = clock.median(lambda i: target[i % 2].copy_(source[i % 2]))
    return 2 * source[0].numel() * source[0].element_size() / seconds


def _product(
    bench: Bench, tokens: int, width: int, columns: int, epilogue: bool = False
) -> Callable[[int], torch.Tensor]:
    """``x W^T + b`` over weights and inputs that rotate; the epilogue is a GELU, by tanh."""

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=bench.device).to(DTYPE)

    weights = [random(columns, width) for _ in range(bench.layers)]
    inputs = [random(tokens, width) for _ in range(INPUT_SETS)]
    bias = random(columns)

    def run(number: int) -> torch.Tensor:
        x, weight = inputs[number % INPUT_SETS], weights[number % bench.layers].t()
        if epilogue:
            return torch._addmm_activation(bias, x, weight, use_gelu=True)
        return torch.addmm(bias, x, weight)

    return run


def _grouped(bench: Bench, clock: Clock, tokens: int, share: float) -> Figure:
    """A product of a share of T rows, whose number lies on the device, beside addmm of as many."""
    size, inner = bench.config.hidden_size, bench.config.intermediate_size
    left = int(share * tokens)
    name = f"grouped_mm, {left} of T = {tokens}"
    grouped_mm = getattr(F, "grouped_mm", None)
    if grouped_mm is None:
        return Figure(name, None, "us", "this torch has no grouped_mm")
    inputs = [torch.randn(tokens, size, device=bench.device).to(DTYPE) for _ in range(INPUT_SETS)]
    weights = [
        torch.randn(1, inner, size, device=bench.device).to(DTYPE).transpose(1, 2)
        for _ in range(bench.layers)
    ]
    ends = torch.tensor([left], dtype=torch.int32, device=bench.device)

    def run(number: int) -> torch.Tensor:
        x, weight = inputs[number % INPUT_SETS], weights[number % bench.layers]
        product: torch.Tensor = grouped_mm(x, weight, offs=ends)
        return product

    try:
        seconds = clock.replayed(run, bench.layers)
    except (RuntimeError, NotImplementedError) as error:
        return Figure(name, None, "us", str(error).partition("\n")[0][:120])
    plain = clock.replayed(_product(bench, left, size, inner), bench.layers)
    return Figure(name, 1e6 * seconds, "us", f"addmm {1e6 * plain:.1f} us")


def _layer_operations(bench: Bench, tokens: int, length: int) -> int:
    """Multiplications and additions of a layer: products and attention."""
    size, inner = bench.config.hidden_size, bench.config.intermediate_size
    return tokens * (2 * (4 * size * size + 2 * size * inner) + 4 * length * size)


def _kernels(label: str, profiler: torch.profiler.profile, passes: int) -> Iterator[Figure]:
    """Launches, time of kernels and the longest of them, a pass."""
    events = profiler.key_averages()
    launches = sum(e.count for e in events if "Launch" in e.key)  # of kernels and graphs
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    yield Figure(f"{label}: launches", launches / passes, "")
    busy = sum(e.self_device_time_total for e in kernels)
    yield Figure(f"{label}: kernels", busy / passes, "us")
    for event in sorted(kernels, key=lambda e: -e.self_device_time_total)[:8]:
        note = f"{event.count / passes:.0f} times, {event.key[:90]}"
        yield Figure(f"{label}: kernel", event.self_device_time_total / passes, "us", note)
