"""On a GPU: whole passes against plain PyTorch, alone and beside other work."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from support.exit_cases import DTYPES
from support.gpu import DEVICE, REHEARSED, assert_near
from support.models import SEEDS, as_pairs, random_batch, tiny_model

from consistentee_ext import EarlyExitOutput, FastEarlyExitEncoder
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.launcher import Launcher
from consistentee_ext.engines.removal_costs import RemovalCosts

pytestmark = [pytest.mark.gpu_check, pytest.mark.needs_device]
Batch = dict[str, torch.Tensor]


def encoder_on(
    backend: str, dtype: torch.dtype = torch.float32, sync: str = "auto", pooling: str = "mean"
) -> FastEarlyExitEncoder:
    model = tiny_model(pooling, seed=SEEDS[pooling])
    return FastEarlyExitEncoder(
        model, device=DEVICE, dtype=dtype, backend=backend, threshold=0.6, sync=sync
    )


def engine_of(encoder: FastEarlyExitEncoder) -> DeviceEngine:
    assert isinstance(encoder._engine, DeviceEngine)
    return encoder._engine


def without_graphs(encoder: FastEarlyExitEncoder, one_call: bool) -> FastEarlyExitEncoder:
    """The encoder, from now on launched by one C++ call, where it takes the model, or op by op."""
    engine = engine_of(encoder)
    launcher = engine._launcher if one_call else None
    parts = (engine.stack, engine.exits, engine._ops, engine._sync, None, launcher)
    encoder._engine = DeviceEngine(*parts, declined="as this test does")
    return encoder


def replays_of(encoder: FastEarlyExitEncoder) -> int:
    """How many graphs there are."""
    graphs = engine_of(encoder)._graphs
    assert graphs is not None
    return len(graphs._replays)


def plain(pooling: str = "mean", dtype: torch.dtype = torch.float32) -> FastEarlyExitEncoder:
    return FastEarlyExitEncoder(
        tiny_model(pooling, seed=SEEDS[pooling]), dtype=dtype, backend="torch", threshold=0.6
    )


def mixed_rows(rows: int, seed: int = 5) -> Batch:
    """Rows of 1 to 64 tokens, the first of 512; shorter ones where an interpreter runs them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 65, (rows,), generator=generator)
    lengths[0] = 96 if REHEARSED else 512
    return as_pairs(random_batch(lengths.tolist(), seed=seed), seed)


def assert_equal(found: EarlyExitOutput, expected: EarlyExitOutput) -> None:
    """Bit for bit: of passes that launch the same work."""
    for name in ("exit_layers", "exit_scores", "logits"):
        assert torch.equal(found[name], expected[name]), name


def assert_same(found: EarlyExitOutput, expected: EarlyExitOutput) -> None:
    """Of two float32 passes; a product of another number of rows may round otherwise."""
    assert torch.equal(found.exit_layers.cpu(), expected.exit_layers.cpu())
    for name in ("logits", "exit_scores"):
        torch.testing.assert_close(found[name].cpu(), expected[name].cpu(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("rows", [1, 8, 33, 512])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_whole_passes(gpu_backend: str, dtype: torch.dtype, pooling: str, rows: int) -> None:
    """Eager and lagged hosts get what plain PyTorch gets, and in float32 the same exits.

    In 16 bits rounding decides near the threshold: the rows that leave elsewhere are few.
    """
    if REHEARSED and rows > 8:
        pytest.skip("too slow in the interpreter")
    batch = mixed_rows(rows)
    expected, rounded = plain(pooling)(**batch), plain(pooling, dtype)(**batch)
    assert rows < 8 or len(set(expected.exit_layers.tolist())) > 2
    for sync, one_call in product(("eager", "lagged"), (None, True, False)):
        encoder = encoder_on(gpu_backend, dtype, sync, pooling)
        if one_call is None:  # by graphs, which are recorded from the second time on
            encoder(**batch)
        else:
            encoder = without_graphs(encoder, one_call)
        found = encoder(**batch)
        same = found.exit_layers.cpu() == expected.exit_layers
        elsewhere = 0 if dtype == torch.float32 else round(rows / 10)
        assert int((~same).sum()) <= elsewhere
        same &= rounded.exit_layers == expected.exit_layers
        for name in ("logits", "exit_scores"):
            ours, exact, eager = (output[name].cpu()[same] for output in (found, expected, rounded))
            if same.any():
                assert_near(ours, exact, eager, floor=max(torch.finfo(dtype).eps, 1e-5))


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_graphs_replay_what_was_launched(
    gpu_backend: str, dtype: torch.dtype, sync: str, pooling: str
) -> None:
    """What comes for the first time is launched, later calls record graphs; other rows, sizes and
    thresholds come between. The same work gives the same bits: one C++ call has other sizes."""
    batches = [mixed_rows(33, seed=5), mixed_rows(33, seed=6), mixed_rows(5, seed=7)]
    encoder = encoder_on(gpu_backend, dtype, sync, pooling)
    one_call = engine_of(encoder)._launcher is not None
    assert one_call == (gpu_backend == "cuda" and dtype != torch.float32)
    first = [encoder(**batch) for batch in batches]
    assert replays_of(encoder) == 0
    if one_call:
        first = [encoder(**batch) for batch in batches]
    for _ in range(3):
        for batch, expected in zip(batches, first, strict=True):
            assert_equal(encoder(**batch), expected)
    recorded = replays_of(encoder)
    assert recorded >= 4
    encoder.threshold = 1e-9
    assert encoder(**batches[0]).exit_layers.tolist() == [1] * 33
    encoder.threshold = 0.6
    assert_equal(encoder(**batches[0]), first[0])
    assert replays_of(encoder) >= recorded


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("threshold", "layer"), [(1e-9, 1), (1.0, 4)])
def test_all_leave_or_none(
    gpu_backend: str, threshold: float, layer: int, dtype: torch.dtype
) -> None:
    """Rounding decides nothing here, and both hosts give every row the same work."""
    batch = mixed_rows(8)
    outputs = []
    encoders = [encoder_on(gpu_backend, dtype, sync) for sync in ("eager", "lagged")]
    for encoder in (*encoders, plain(), plain(dtype=dtype)):
        encoder.threshold = threshold
        outputs.append(encoder(**batch))
        assert outputs[-1].exit_layers.tolist() == [layer] * 8
    eager, lagged, expected, rounded = outputs
    assert_equal(lagged, eager)
    for name in ("logits", "exit_scores"):
        values = (eager[name], expected[name], rounded[name])
        assert_near(*values, floor=max(torch.finfo(dtype).eps, 1e-5))


def test_no_rows(gpu_backend: str) -> None:
    batch = {name: rows[:0] for name, rows in mixed_rows(3).items()}
    assert encoder_on(gpu_backend)(**batch).logits.shape == (0, 3)


def test_inputs_from_host_or_device(gpu_backend: str) -> None:
    batch = mixed_rows(8)
    encoder = encoder_on(gpu_backend)
    expected = encoder(**batch)
    assert expected.logits.device.type == DEVICE.type
    there = {name: rows.to(DEVICE) for name, rows in batch.items()}
    narrow = {name: rows.int() for name, rows in there.items()}
    mixed = there | {"attention_mask": batch["attention_mask"].bool()}
    for inputs in (there, narrow, mixed):
        assert_equal(encoder(**inputs), expected)


def test_a_row_does_not_see_the_others(gpu_backend: str) -> None:
    batch = mixed_rows(8 if REHEARSED else 33)
    encoder = encoder_on(gpu_backend)
    together = encoder(**batch)
    for row in range(len(together.logits)):
        alone = encoder(**{name: rows[row : row + 1] for name, rows in batch.items()})
        assert torch.equal(alone.exit_layers[0], together.exit_layers[row])
        torch.testing.assert_close(alone.logits[0], together.logits[row], atol=1e-4, rtol=1e-4)


@contextmanager
def waits_are_errors() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.needs_cuda
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_only_counts_are_waited_for(
    gpu_backend: str, pooling: str, sync: str, dtype: torch.dtype
) -> None:
    """torch raises at every other wait; events, by which counts are read, it lets pass."""
    batch = mixed_rows(33)
    encoder = encoder_on(gpu_backend, dtype, sync, pooling)
    expected = encoder(**batch)
    with waits_are_errors():
        for _ in range(3):  # one records graphs, the next replays them
            found = encoder(**batch)
        for one_call in (True, False):
            without_graphs(encoder, one_call)(**batch)
        with pytest.raises(RuntimeError, match="synchronizing"):
            int(found.exit_layers[0])
    assert torch.equal(found.exit_layers, expected.exit_layers)


@pytest.mark.needs_cuda
def test_streams_side_by_side(gpu_backend: str) -> None:
    """A pass that returns while its last kernels are to run shares nothing with the next."""
    batches = [mixed_rows(33, seed) for seed in range(8)]
    encoders = [encoder_on(gpu_backend, sync=sync) for sync in ("eager", "lagged")]
    expected = [encoders[i % 2](**batch) for i, batch in enumerate(batches)]
    streams = [torch.cuda.Stream() for _ in range(2)]
    torch.cuda.synchronize()
    for _ in range(5):
        found = []
        for i, batch in enumerate(batches):
            with torch.cuda.stream(streams[i // 2 % 2]):
                found.append(encoders[i % 2](**batch))
        torch.cuda.synchronize()
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.needs_cuda
def test_small_batches_in_a_row(gpu_backend: str) -> None:
    """Inputs of one call may take pinned memory that the call before has left."""
    encoder = encoder_on(gpu_backend, sync="lagged")
    batches = [random_batch([1 + seed % 4], seed=seed) for seed in range(40)]
    expected = []
    for batch in batches:
        expected.append(encoder(**batch))
        torch.cuda.synchronize()
    for _ in range(5):
        found = [encoder(**batch) for batch in batches]
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)


@pytest.mark.needs_cuda
def test_two_threads(gpu_backend: str) -> None:
    batches = [mixed_rows(8, seed) for seed in range(6)]
    encoder = encoder_on(gpu_backend)
    expected = [encoder(**batch) for batch in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            found = list(pool.map(lambda batch: encoder(**batch), batches))
            for one, other in zip(found, expected, strict=True):
                assert_same(one, other)


@pytest.mark.needs_cuda
@pytest.mark.parametrize("costs", [RemovalCosts([0.0, 1.0], [0.0, 0.0], [1.0, 1.0]), None])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_rows_that_stay_change_nothing(pooling: str, costs: RemovalCosts | None) -> None:
    """Rows that have left are computed on where removing them never pays, and where it does."""
    batch = mixed_rows(33)
    encoder = encoder_on("cuda", torch.bfloat16, "lagged", pooling)
    engine = engine_of(encoder)
    removes = RemovalCosts([0.0, 1.0], [0.0, 1.0], [-1.0, -1.0])
    outputs = []
    for chosen in (removes, costs):
        launcher = Launcher(engine.stack, engine.exits, chosen)
        parts = (engine.stack, engine.exits, engine._ops, "lagged", None, launcher)
        encoder._engine = DeviceEngine(*parts)
        outputs.append(encoder(**batch))
    removed, stayed = outputs
    same = removed.exit_layers == stayed.exit_layers
    assert int((~same).sum()) <= 3  # a product of another number of rows may round otherwise
    tolerance = 4 * torch.finfo(torch.bfloat16).eps
    torch.testing.assert_close(
        stayed.logits[same], removed.logits[same], atol=tolerance, rtol=tolerance
    )


@pytest.mark.gpu_memcheck
@pytest.mark.needs_cuda
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_pass_of_eight_rows(pooling: str) -> None:
    batch = mixed_rows(8)
    found = encoder_on("cuda", torch.bfloat16, pooling=pooling)(**batch)
    expected, rounded = plain(pooling)(**batch), plain(pooling, torch.bfloat16)(**batch)
    same = found.exit_layers.cpu() == expected.exit_layers
    same &= rounded.exit_layers == expected.exit_layers
    assert same.double().mean() >= 0.5
    ours, exact, eager = (output.logits.cpu()[same] for output in (found, expected, rounded))
    assert_near(ours, exact, eager, floor=torch.finfo(torch.bfloat16).eps)
