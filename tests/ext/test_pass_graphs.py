"""Passes by graphs, on the CPU: a graph is what it launches, called again."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.fake_device import Device
from support.family_cases import classifier
from support.models import SEEDS, VOCABULARY, as_pairs, pack, random_batch, tiny_model

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.engines import graphs as graphs_module
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.graphs import PassGraphs
from consistentee_ext.engines.room import Inputs, fill, length_size, row_size, token_size
from consistentee_ext.ops import reference
from consistentee_ext.packed import ExitResults, InputLimits

Batch = dict[str, torch.Tensor]
BATCH = random_batch([5, 1, 17, 9, 9, 30, 2, 41], seed=3)
LAYERS = 4


class Recorder:
    """Counts what is recorded, and what is replayed."""

    def __init__(self) -> None:
        self.recorded = 0
        self.replayed = 0

    def __call__(self, run: Callable[[], object]) -> Callable[[], object]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            run()

        return replay


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def encoder_pair(
    recorder: Recorder, sync: str = "lagged", pooling: str = "mean"
) -> tuple[FastEarlyExitEncoder, FastEarlyExitEncoder]:
    """By graphs on a device's stand-in, and op by op."""
    model = tiny_model(pooling, seed=SEEDS[pooling])
    graphed, plain = (FastEarlyExitEncoder(model, threshold=0.6, backend="torch") for _ in range(2))
    stack, exits = graphed._engine.stack, graphed._engine.exits
    device = Device()
    graphed._engine = DeviceEngine(
        stack, exits, device, sync, PassGraphs(stack, exits, device, lambda: recorder)
    )
    plain._engine = EagerEngine(stack, exits, reference)
    return graphed, plain


def device_of(encoder: FastEarlyExitEncoder) -> Device:
    engine = encoder._engine
    assert isinstance(engine, DeviceEngine)
    assert isinstance(engine._ops, Device)
    return engine._ops


def assert_same(encoder: FastEarlyExitEncoder, plain: FastEarlyExitEncoder, batch: Batch) -> None:
    found, expected = encoder(**batch), plain(**batch)
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
@pytest.mark.parametrize("criterion", ["confidence", "patience"])
def test_launched_recorded_and_replayed_passes_give_the_same(
    recorder: Recorder, sync: str, pooling: str, criterion: str
) -> None:
    """Other rows of the same sizes, with other first texts, come between: their traces must not be
    read."""
    encoder, plain = encoder_pair(recorder, sync, pooling=pooling)
    for one in (encoder, plain):
        one.criterion = criterion
    others = [random_batch([5, 1, 17, 9, 9, 30, 2, 41], seed=seed) for seed in (4, 5)]
    batches = [as_pairs(batch, seed) for seed, batch in enumerate((BATCH, *others))]
    layers = set()
    for batch in (*batches, *batches):
        assert_same(encoder, plain, batch)
        layers.update(plain(**batch).exit_layers.tolist())
    assert len(layers) > 1
    assert recorder.recorded
    assert recorder.replayed > recorder.recorded


@pytest.mark.parametrize("rows", [1, 2, 7, 33])
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_any_number_of_rows_and_tokens(recorder: Recorder, pooling: str, rows: int) -> None:
    """Of 33 rows 40 are run; sizes that fit exactly and sizes that do not."""
    encoder, plain = encoder_pair(recorder, pooling=pooling)
    for seed in range(12):
        lengths = torch.randint(1, 65, (rows,), generator=torch.Generator().manual_seed(seed))
        batch = as_pairs(random_batch(lengths.tolist(), seed=seed), seed)
        for _ in range(2):
            assert_same(encoder, plain, batch)
    full = random_batch([32] * rows, seed=1)
    for _ in range(3):
        assert_same(encoder, plain, full)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_inputs_are_aligned_and_what_is_of_rows_stays(rows: int) -> None:
    """Where the tokens have become fewer, row ids, offsets and lengths are where they were."""
    packed = pack(random_batch([3] * rows), InputLimits(VOCABULARY, 2, 64))
    flat = torch.zeros(Inputs.bytes(32, rows), dtype=torch.uint8)
    fill(flat, packed, torch.full((rows,), 2).int(), 32, rows)
    whole, fewer = (
        Inputs.within(flat, tokens, rows, torch.int64, torch.int32) for tokens in (32, 8)
    )
    for one, other in zip(whole[:3], fewer[:3], strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert torch.equal(one, other)
    assert whole.first_lengths.tolist() == [2] * rows + [0]
    assert torch.equal(whole.ids[: 3 * rows], packed.ids)
    assert torch.equal(whole.positions[: 3 * rows], packed.positions)
    assert all(part.data_ptr() % part.element_size() == 0 for part in whole)


def test_rows_as_long_as_tables_by_place(recorder: Recorder) -> None:
    """Of 40 places, fewer than the size that graphs have for such rows; and of rows that are longer
    than the positions, which the caller gives."""
    rotated, plain = classifier("roformer"), tiny_model(max_position_embeddings=16)
    positions = torch.arange(24)[None] // 2
    longer = random_batch([24, 9]) | {"position_ids": positions}
    within = {"input_ids": torch.randint(4, 60, (2, 40))}
    for model, batch in ((rotated, within), (plain, longer)):
        encoder, expected = (FastEarlyExitEncoder(model, backend="torch") for _ in range(2))
        stack, exits = encoder._engine.stack, encoder._engine.exits
        graphs = PassGraphs(stack, exits, Device(), lambda: recorder)
        encoder._engine = DeviceEngine(stack, exits, Device(), "lagged", graphs)
        for _ in range(2):
            assert_same(encoder, expected, batch)


def test_exits_at_some_layers(recorder: Recorder) -> None:
    """A graph holds all layers up to the next exit."""
    model = tiny_model(seed=3)
    encoder, plain = (
        FastEarlyExitEncoder(model, threshold=0.6, backend="torch", exit_layers=[2])
        for _ in range(2)
    )
    stack, exits = encoder._engine.stack, encoder._engine.exits
    graphs = PassGraphs(stack, exits, Device(), lambda: recorder)
    encoder._engine = DeviceEngine(stack, exits, Device(), "lagged", graphs)
    for _ in range(3):
        assert_same(encoder, plain, BATCH)
    assert recorder.recorded == 2


def test_what_is_recorded_and_when(recorder: Recorder) -> None:
    encoder, _ = encoder_pair(recorder)
    assert encoder(**BATCH).exit_layers.max() == LAYERS
    assert (recorder.recorded, recorder.replayed) == (0, 0)
    encoder(**BATCH)
    assert (recorder.recorded, recorder.replayed) == (LAYERS, LAYERS)
    encoder(**BATCH)
    assert (recorder.recorded, recorder.replayed) == (LAYERS, 2 * LAYERS)
    encoder(**random_batch([3, 4], seed=0))
    assert recorder.recorded == LAYERS


def test_a_graph_is_as_large_as_what_is_left(recorder: Recorder) -> None:
    encoder, _ = encoder_pair(recorder)
    exits = encoder(**BATCH).exit_layers
    lengths = BATCH["attention_mask"].sum(dim=1)
    left = [int(lengths[exits >= n].sum()) for n in range(1, LAYERS + 1)]
    gone = [bool((exits < n).any()) for n in range(1, LAYERS + 1)]
    sizes = [token_size(n + absent) for n, absent in zip(left, gone, strict=True)]
    # A layer runs on what was left one exit before.
    assert device_of(encoder).tokens == [sizes[0], sizes[0], sizes[1], sizes[2]]


def test_thresholds_can_change_and_graphs_stay(recorder: Recorder) -> None:
    encoder, plain = encoder_pair(recorder)
    for threshold in (0.6, 0.9, 1e-9, [0.5, 0.7, 0.6], 0.6):
        for one in (encoder, plain):
            one.threshold = threshold
        for _ in range(2):
            assert_same(encoder, plain, BATCH)
    assert recorder.recorded <= 3 * LAYERS  # a few sizes a layer
    recorded = recorder.recorded
    encoder.criterion = plain.criterion = "entropy"
    for _ in range(2):
        assert_same(encoder, plain, BATCH)
    assert recorder.recorded > recorded


@pytest.mark.parametrize("sync", ["eager", "lagged"])
def test_rows_with_thresholds_of_their_own_are_launched(recorder: Recorder, sync: str) -> None:
    """A graph has one threshold a layer; the passes before must not leave theirs."""
    encoder, plain = encoder_pair(recorder, sync)
    assert_same(encoder, plain, BATCH)
    assert_same(encoder, plain, BATCH)
    rows = {
        "row_threshold": torch.tensor([0.2, 1.0] * 4),
        "row_max_layers": torch.tensor([1, 2, 3, 4] * 2),
    }
    found, expected = encoder(**BATCH, **rows), plain(**BATCH, **rows)
    assert torch.equal(found.exit_layers, expected.exit_layers)
    assert len(found.exit_layers.unique()) > 2
    parts = list(encoder.stream(**BATCH, **rows))
    order = torch.cat([left for left, _ in parts]).argsort()
    logits = torch.cat([output.logits for _, output in parts])[order]
    torch.testing.assert_close(logits, expected.logits, atol=1e-5, rtol=1e-5)
    replayed = recorder.replayed
    assert_same(encoder, plain, BATCH)
    assert recorder.replayed > replayed


def test_rows_of_a_larger_result(recorder: Recorder) -> None:
    """What `predict` does: batches of some of the rows."""
    encoder, plain = encoder_pair(recorder)
    expected = plain(**BATCH)
    for _ in range(3):
        results = ExitResults.empty(8, 3)
        for chosen in ([6, 0, 3], [1, 2, 7, 5, 4]):
            rows = {name: tensor[chosen] for name, tensor in BATCH.items()}
            packed = pack(rows, encoder._limits, "torch")
            packed = packed._replace(row_ids=torch.tensor(chosen)[packed.row_ids])
            left = encoder._engine.advance(packed, 0, LAYERS, results)
            assert len(left.row_ids) == len(left.hidden) == 0
        assert torch.equal(results.exit_layers, expected.exit_layers)
        torch.testing.assert_close(results.logits, expected.logits, atol=1e-5, rtol=1e-5)


def test_a_pass_beside_another_is_launched(recorder: Recorder) -> None:
    encoder, plain = encoder_pair(recorder)
    engine = encoder._engine
    assert isinstance(engine, DeviceEngine)
    assert engine._graphs is not None
    with engine._graphs._lock:
        for _ in range(3):
            assert_same(encoder, plain, BATCH)
    assert recorder.recorded == 0
    assert device_of(encoder).tokens[0] == int(BATCH["attention_mask"].sum())


def test_large_batches_and_bounds(recorder: Recorder, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, plain = encoder_pair(recorder)
    monkeypatch.setattr(graphs_module, "MOST_GRAPHS", 3)
    for seed in range(4):
        for _ in range(2):
            assert_same(encoder, plain, random_batch([60, 40 - 10 * seed], seed=seed))
    assert recorder.recorded == 3
    monkeypatch.setattr(graphs_module, "MOST_TOKENS", 100)
    device_of(encoder).tokens.clear()
    assert_same(encoder, plain, BATCH)
    assert device_of(encoder).tokens[0] == int(BATCH["attention_mask"].sum()) > 100


def test_memory_grows_with_what_comes(recorder: Recorder) -> None:
    """Graphs of the smaller memory are dropped with it."""
    encoder, plain = encoder_pair(recorder)
    large = random_batch([64] * 20, seed=2)
    for batch in (BATCH, BATCH, large, large, BATCH, BATCH, large):
        assert_same(encoder, plain, batch)


def test_no_rows(recorder: Recorder) -> None:
    encoder, _ = encoder_pair(recorder)
    assert encoder(**{name: rows[:0] for name, rows in BATCH.items()}).logits.shape == (0, 3)


@pytest.mark.parametrize("size", [token_size, row_size, length_size])
def test_sizes_hold_what_they_are_for(size: Callable[[int], int]) -> None:
    sizes = [size(n) for n in range(1, 5000)]
    assert all(size >= n for n, size in enumerate(sizes, start=1))
    assert sizes == sorted(sizes)
    assert all(size(n) == n for n in set(sizes))


def test_how_much_is_run_for_nothing() -> None:
    assert max(token_size(n) / n for n in range(513, 70000)) <= 1.125
    assert max(row_size(n) / n for n in range(1, 2000)) <= 1.25
    assert len({token_size(n) for n in range(1, 65537)}) < 64
