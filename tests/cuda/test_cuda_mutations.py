"""Whether the tests of the CUDA kernels on the host would notice a mistake: sources with one patch
each, of which none may give what the sources give."""

from __future__ import annotations

import faulthandler
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import torch
from support.cuda_host import HEADERS, CudaHost, compile_host
from support.exit_cases import (
    clone,
    make_batch,
    make_results,
    make_weights,
    with_absent_rows,
)
from torch import Tensor

from consistentee_ext.packed import ExitDecision
from consistentee_ext.weights import NormWeights

pytestmark = [
    pytest.mark.needs_compiler,
    # The child below uses neither locks nor threads of its parent.
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
]
SEEDS = range(8)
LAST = ExitDecision("policy", torch.ones(9), layer=1, max_streak=3, last=True)
SOURCES = HEADERS / "kernels" / "cuda"
# Name: the file, what it says, and what it says instead.
PATCHES = {
    "nothing": ("plan.cuh", "#pragma once", "#pragma once"),
    "the scan takes one too few": ("plan.cuh", "thread >= width", "thread > width"),
    "the scan stops early": ("plan.cuh", "width < entries;", "width < entries / 2;"),
    "the scan is exclusive": ("plan.cuh", "rows_before[thread] - 1", "rows_before[thread]"),
    "offsets are ends": ("plan.cuh", "end - length : -1", "end : -1"),
    "row_ids without a tail": ("plan.cuh", "plan.row_ids[row] = -1;", ""),
    "cu_seqlens without a tail": ("plan.cuh", "plan.cu_seqlens[row + 1] = tokens;", ""),
    "a tile forgets those before": (
        "plan.cuh",
        "tokens += tokens_before",
        "tokens = tokens_before",
    ),
    "copies to where the row was": ("copy_rows.cuh", "offset * token_bytes", "begin * token_bytes"),
    "a row's blocks overlap": ("copy_rows.cuh", "(blockIdx.y) * kCopyThreads", "(blockIdx.y)"),
    "a lane is missing": ("warp.cuh", "kAllLanes = 0xffffffffu", "kAllLanes = 0x7fffffffu"),
    "the sum of half a warp": (
        *("warp.cuh", "kWarp / 2; step > 0; step /= 2) value +="),
        "kWarp / 4; step > 0; step /= 2) value +=",
    ),
    "the argmax of half a warp": (
        *("warp.cuh", "kWarp / 2; step > 0; step /= 2) {\n    const float other"),
        "kWarp / 4; step > 0; step /= 2) {\n    const float other",
    ),
    "the last of equals": ("warp.cuh", "equal && i < index", "equal && i > index"),
    "the label is its own second": ("warp.cuh", "if (i != excluded) take", "take"),
    "the exit counter stays": ("exit_rows.cuh", "*batch.tickets = 0;", ";"),
    "absent rows stay": ("exit_rows.cuh", "batch.keep[row] = false;", "batch.keep[row] = true;"),
    "plans one block too early": ("exit_rows.cuh", "(gridDim.x) - 1;", "(gridDim.x) - 2;"),
    "a statistic is not read": ("exit_rows.cuh", "kNumStatistics; ++k", "kNumStatistics - 1; ++k"),
    "a product is not computed": ("exit_rows.cuh", "k < products;", "k < products - 1;"),
    "a warp scores its lanes": ("exit_rows.cuh", "sigmoid(warp_sum(score)", "sigmoid((score)"),
    "the pool counter stays": ("pool.cuh", "pooling.tickets[row] = 0;", ";"),
    "all sums in one place": ("pool.cuh", "partial + blockIdx.y * size", "partial"),
    "sums forget the tokens before": ("pool.cuh", "first == begin ?", "true ?"),
    "pools one block too early": ("pool.cuh", "second_blocks - 1;", "second_blocks - 2;"),
    "the first token of a block": ("pool.cuh", "if (begin != texts.begin) return;", ""),
    "a first text runs on": ("pool.cuh", "in_first ? row.second : row.end", "row.end"),
    "a first text beyond its row": (
        "pool.cuh",
        "length < end - begin ? length : end - begin",
        "length",
    ),
    "first texts by the place of their row": ("pool.cuh", "pooling.row_ids[row]", "row"),
    "one text has no second": ("pool.cuh", "float v = u;", "float v = 0.0f;"),
    "the first text is its own second": (
        "pool.cuh",
        "partial + first_blocks * size + h",
        "partial + h",
    ),
    "a second text is as long as the first": (
        "pool.cuh",
        "size, second_tokens)",
        "size, first_tokens)",
    ),
    "blocks of second texts do not count": (
        "pool.cuh",
        "first_blocks + second_blocks - 1;",
        "first_blocks - 1;",
    ),
    "comparisons overlap": ("pool.cuh", "(pooling.pair ? kCompared : 1)", "1"),
    "a difference with its sign": ("pool.cuh", "fabsf(u - v)", "(u - v)"),
    "warps share their memory": ("pool.cuh", "shared + warp * size", "shared"),
    "warps beyond the tokens": ("norm.cuh", "if (token < tokens) ", ""),
    "a lane does not come": ("pool.cuh", "if (token < end)", "if (token < end && lane < 31)"),
    "tanh whatever the head says": ("exit_rows.cuh", "(head.activation, ", "({}, "),
    "relu of NaN is 0": ("../exit_head.h", "x < 0.0f ? 0.0f : x", "x > 0.0f ? x : 0.0f"),
    "one threshold for all": (
        "../exit_head.h",
        "thresholds[row_id * decision.threshold_stride]",
        "thresholds[0]",
    ),
    "a threshold a row where one is for all": (
        "../exit_head.h",
        "row_id * decision.threshold_stride",
        "row_id",
    ),
    "threads skip a barrier": (
        "exit_rows.cuh",
        "h]));\n  __syncthreads",
        "h]));\n  if (lane) __syncthreads",
    ),
}
# These cannot even end, and have to say so rather than hang.
ENDLESS = {"a lane is missing", "a lane does not come", "threads skip a barrier"}
BARRIER = "__syncthreads();"
WITH_BARRIERS = ("plan.cuh", "exit_rows.cuh", "pool.cuh")
BARRIERS = [
    (name, place)
    for name in WITH_BARRIERS
    for place in range((SOURCES / name).read_text().count(BARRIER))
]


def without_barrier(source: str, place: int) -> str:
    parts = source.split(BARRIER)
    return BARRIER.join((*parts[:place], parts[place] + parts[place + 1], *parts[place + 2 :]))


def test_every_barrier_is_in_a_file_tried_here() -> None:
    found = {path.name for path in SOURCES.iterdir() if BARRIER in path.read_text()}
    assert found == set(WITH_BARRIERS)


def outcome(host: CudaHost, seed: int) -> list[Tensor]:
    """What all kernels write, on inputs that do not depend on the seed."""
    torch.manual_seed(0)
    written: list[Tensor] = []
    # More rows than two tiles of the plan.
    many = make_batch(torch.randint(1, 6, (600,)).tolist(), 1, torch.float32)
    written += host.plan(many, torch.rand(600) < 0.6, seed)
    written += host.plan(many, torch.rand(600) < 0.6, seed, removes=False)

    # One row has more chunks than a block has threads.
    batch = with_absent_rows(make_batch([3, 45, 1, 7, 2, 6], 40, torch.float32), [2, 6])
    weights, pooled = make_weights(40, 70, "both"), torch.randn(8, 40)
    results, tickets = make_results(9, 70), torch.zeros(1, dtype=torch.int32)
    for _ in range(2):  # the second time the labels agree
        host.exit_rows(batch, pooled, weights, LAST, results, tickets, seed)
        written += [*clone(results), tickets.clone()]
    # As many products as warps at most: the first warp may be done before the others.
    few, few_results = make_weights(40, 3, "both", 8), make_results(9, 3)
    for attempt in range(4):
        launch = 4 * seed + attempt
        host.exit_rows(batch, pooled, few, LAST, few_results, tickets, launch)
        written += clone(few_results)
    # Two equal labels, that two lanes of the warp hold. Some of the rows leave.
    weights.classifier_bias[[33, 67]] = 9.0
    weights.classifier_weight[33] = weights.classifier_weight[67]
    decision = LAST._replace(thresholds=torch.full((9,), 0.065), last=False)
    planned = host.exit_rows(batch, pooled, weights, decision, results, tickets, seed)
    written += [*planned, *clone(results), tickets.clone()]
    # Thresholds of single rows, and one for all that lies beside others; a NaN that shows in relu.
    relu, pooled[0, 3] = weights._replace(state_activation="relu"), torch.nan
    thresholds = torch.where((torch.arange(9) - batch.row_ids[0]) % 2 == 0, -1.0, 2.0)
    for row_thresholds in (thresholds, thresholds[1].expand(9)):
        decision = decision._replace(thresholds=row_thresholds)
        planned = host.exit_rows(batch, pooled, relu, decision, results, tickets, seed)
        written += [*planned, *clone(results), tickets.clone()]
    out = torch.zeros_like(batch.hidden)
    host.copy(batch, host.plan(batch, torch.arange(8) != 3, seed), 2, out, seed)
    written.append(out)

    hidden, residual = torch.randn(2, 198, 40)
    norm = NormWeights(torch.randn(40), torch.randn(40), 1e-5)
    normed = hidden.clone()
    host.add_norm_tokens(normed[:13], residual[:13], norm, seed)  # the others are not to be touched
    written.append(normed)
    # A row of two blocks again and again: it takes luck for one to rest amid its sums.
    rows_of = [[1, 33, 100, 0, 64], *[[33]] * 6]
    # First texts of one block and some, a row of one text, one whose length is beyond its row.
    numbers, firsts = torch.tensor([4, 0, 3, -1, 1]), torch.tensor([17, 99, -77, 40, 1]).int()
    for pooling, (attempt, lengths) in product(("cls", "mean", "pair"), enumerate(rows_of)):
        tokens, rows = sum(lengths), len(lengths)
        normed = hidden[:tokens].clone()
        pooled = torch.zeros(rows, 160 if pooling == "pair" else 40)
        counts, offsets = torch.zeros(rows).int(), torch.tensor([0, *lengths]).cumsum(0).int()
        where = (offsets, pooling, counts, pooled, seed * len(rows_of) + attempt, numbers[:rows])
        host.add_norm_pool(normed, residual[:tokens], norm, *where, firsts)
        written += [normed, pooled, counts]
    return written


def verdict(library: Path, expected: list[Tensor]) -> str:
    """Whether a library gives what is expected, told by a child: it may write anywhere."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a broken heap is worth no report
        signal.alarm(30)
        try:
            host = CudaHost(library)
            same = all(all(map(torch.equal, outcome(host, seed), expected)) for seed in SEEDS)
            os._exit(0 if same else 1)
        except RuntimeError:
            os._exit(2)
        finally:
            os._exit(3)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    named = {0: "same", 1: "other results", 2: "cannot end", -signal.SIGALRM: "hangs"}
    return named.get(code, "crash" if code < 0 else "error")


@pytest.fixture(scope="module")
def libraries(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, Future[Path]]]:
    """Patched libraries by name, being compiled two at once while tests run."""
    folder = tmp_path_factory.mktemp("mutations")

    def build(number: int, name: str, source: str) -> Path:
        headers = folder / str(number)
        shutil.copytree(HEADERS, headers)
        (headers / "kernels" / "cuda" / name).write_text(source)
        return compile_host(folder / f"{number}.so", headers, "-O0", "-DCONSISTENTEE_FLOAT_ONLY")

    sources = {}
    for what, (name, old, new) in PATCHES.items():
        source = (SOURCES / name).read_text()
        assert old in source, f"{what}: {name} has changed"
        sources[what] = (name, source.replace(old, new))
    for name, place in BARRIERS:
        source = without_barrier((SOURCES / name).read_text(), place)
        sources[f"{name} {place}"] = (name, source)
    with ThreadPoolExecutor(2) as pool:
        yield {
            what: pool.submit(build, number, *patched)
            for number, (what, patched) in enumerate(sources.items())
        }
        pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="module")
def expected(libraries: dict[str, Future[Path]]) -> list[Tensor]:
    """By the sources as they are, which test_cuda_on_host.py compares with the reference."""
    return outcome(CudaHost(libraries["nothing"].result()), seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("what", PATCHES)
def test_a_mistake_shows(
    libraries: dict[str, Future[Path]], expected: list[Tensor], what: str
) -> None:
    found = verdict(libraries[what].result(), expected)
    assert (found == "same") == (what == "nothing"), found
    assert (found == "cannot end") == (what in ENDLESS), found
    assert found != "error"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "place"), BARRIERS)
def test_a_missing_barrier_shows(
    libraries: dict[str, Future[Path]], expected: list[Tensor], name: str, place: int
) -> None:
    """Of every __syncthreads of a file, in their order."""
    found = verdict(libraries[f"{name} {place}"].result(), expected)
    assert found not in ("same", "error")
