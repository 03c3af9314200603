"""Asynchronous passes of a device, on the CPU: by reference ops in the place of a GPU's."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.fake_device import LAUNCHES, Device
from support.models import SEEDS, as_pairs, pack, random_batch, tiny_model
from torch.overrides import TorchFunctionMode

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.engines import counts as counts_module
from consistentee_ext.engines.counts import Counts
from consistentee_ext.engines.device import KNEE_TOKENS, choose_sync
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.layers import Embedding
from consistentee_ext.ops import device_attention, reference
from consistentee_ext.packed import ExitResults, PackedBatch

BATCH = as_pairs(random_batch([5, 1, 17, 9, 9, 30, 2, 41], seed=3))
LAYERS = 4


def _index_waits(index: object) -> bool:
    """A mask's size, and where a number or a slice points, is known to the device alone."""
    if isinstance(index, slice):
        return any(isinstance(n, torch.Tensor) for n in (index.start, index.stop, index.step))
    return isinstance(index, torch.Tensor) and (index.dtype == torch.bool or index.dim() == 0)


class HostWaits(TorchFunctionMode):
    """Records what a host could not do to a tensor of a device without waiting for it."""

    READS = (
        *("item", "tolist", "numpy", "cpu", "equal", "allclose", "is_nonzero"),
        *("nonzero", "argwhere", "unique", "unique_consecutive", "masked_select", "bincount"),
        *("__bool__", "__int__", "__float__", "__index__", "__contains__"),
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> object:
        name = getattr(func, "__name__", str(func))
        if self._waits(name, args, kwargs or {}):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))

    def _waits(self, name: str, args: tuple, kwargs: dict) -> bool:
        if name in ("__getitem__", "__setitem__"):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            return any(map(_index_waits, indices))
        if name == "repeat_interleave":
            counted = any(
                isinstance(value, torch.Tensor) for value in (*args[1:], *kwargs.values())
            )
            return (counted or len(args) == 1) and kwargs.get("output_size") is None
        if name == "where":
            return len(args) == 1 and not kwargs
        if name == "to":
            return any(str(value) == "cpu" for value in (*args[1:], *kwargs.values()))
        return name in self.READS


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()
    monkeypatch.setattr("consistentee_ext.engines.load_device_ops", lambda backend: fake)
    monkeypatch.setattr(
        "consistentee_ext.packed_module.select_backend", lambda device, backend: "triton"
    )
    read = Counts.read

    def count(self: Counts, number: int) -> tuple[int, int]:
        fake.waits.append(self.made - number)
        with torch._C.DisableTorchFunction():  # counted here
            return read(self, number)

    monkeypatch.setattr(Counts, "read", count)
    return fake


def encoder_pair(
    sync: str, pooling: str = "mean"
) -> tuple[FastEarlyExitEncoder, FastEarlyExitEncoder]:
    model = tiny_model(pooling, seed=SEEDS[pooling])
    on_device = FastEarlyExitEncoder(model, backend="triton", threshold=0.6, sync=sync)
    plain = FastEarlyExitEncoder(model, threshold=0.6)
    engine = plain._engine
    plain._engine = EagerEngine(engine.stack, engine.exits, reference)
    return on_device, plain


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_results_do_not_depend_on_when_the_host_knows(
    device: Device, sync: str, pooling: str
) -> None:
    encoder, plain = encoder_pair(sync, pooling=pooling)
    found, expected = encoder(**BATCH), plain(**BATCH)
    assert len(set(expected.exit_layers.tolist())) > 2
    assert torch.equal(found.exit_layers, expected.exit_layers)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_launches_and_waits_of_a_pass(device: Device, pooling: str) -> None:
    encoder, _ = encoder_pair("eager", pooling=pooling)
    exits = encoder(**BATCH).exit_layers
    left = [int(BATCH["attention_mask"][exits >= n].sum()) for n in range(1, LAYERS + 1)]
    assert device.tokens == left
    # Beyond the bare layer, whose second layer norm pools on its way: two launches an exit.
    assert device.launches == {"add_norm": 4, "add_norm_pool": 4, "exit_step_async": 8}
    # Each wait is for the exit step just launched: the device has nothing to do meanwhile.
    assert device.waits == [0, 0, 0]


def test_a_lagged_pass_never_waits_for_the_newest_step(device: Device) -> None:
    encoder, _ = encoder_pair("lagged")
    exits = encoder(**BATCH).exit_layers
    left = [int(BATCH["attention_mask"][exits >= n].sum()) for n in range(1, LAYERS + 1)]
    # A layer runs on what was left one exit before.
    assert device.tokens == [left[0], left[0], left[1], left[2]]
    assert device.launches == {"add_norm": 4, "add_norm_pool": 4, "exit_step_async": 8}
    assert device.waits == [1, 1]


def waits_after_packing(
    monkeypatch: pytest.MonkeyPatch, encoder: FastEarlyExitEncoder
) -> list[str]:
    """Of a whole call, from the moment its inputs are on their way to the device."""
    mode, send = HostWaits(), PackedInputs.to

    def sent(self: PackedInputs, device: torch.device) -> PackedInputs:
        inputs = send(self, device)
        mode.seen.clear()  # so far the host has read tensors of its own
        return inputs

    with monkeypatch.context() as patch, mode:
        patch.setattr(PackedInputs, "to", sent)
        encoder(**BATCH)
    return mode.seen


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_a_whole_call_waits_for_counts_alone(
    device: Device, monkeypatch: pytest.MonkeyPatch, pooling: str, sync: str
) -> None:
    encoder, _ = encoder_pair(sync, pooling=pooling)
    assert waits_after_packing(monkeypatch, encoder) == []
    assert device.waits == ([0, 0, 0] if sync == "eager" else [1, 1])


Wait = Callable[[torch.Tensor], object]
COUNTS = torch.tensor([1, 2])
WAITS: list[tuple[str, Wait]] = [
    ("__int__", lambda x: int(x.diff().max())),
    ("__bool__", lambda x: bool((x < 99).all())),
    ("__float__", lambda x: float(x.max())),
    ("__index__", lambda x: range(99)[x.max()]),
    ("__contains__", lambda x: 3 in x),
    ("__getitem__", lambda x: x[x == 0]),
    ("__getitem__", lambda x: x[None][:, x == 0]),
    ("__getitem__", lambda x: x[x.argmax()]),
    ("__getitem__", lambda x: x[: x.max()]),
    ("__setitem__", lambda x: x.clone().__setitem__(x == 0, x[:1])),
    ("item", lambda x: x.max().item()),
    ("tolist", lambda x: x.tolist()),
    ("cpu", lambda x: x.cpu()),
    ("to", lambda x: x.to("cpu")),
    ("to", lambda x: x.to(device=torch.device("cpu"))),
    ("numpy", lambda x: x.numpy()),
    ("equal", lambda x: torch.equal(x, x)),
    ("nonzero", lambda x: x.nonzero()),
    ("where", lambda x: torch.where(x == 0)),
    ("masked_select", lambda x: x.masked_select(x == 0)),
    ("unique", lambda x: x.unique()),
    ("repeat_interleave", lambda x: x[:2].repeat_interleave(COUNTS)),
    ("repeat_interleave", lambda x: torch.repeat_interleave(COUNTS)),
]  # fmt: skip
NO_WAITS: list[Wait] = [
    lambda x: x[:2].repeat_interleave(COUNTS, output_size=3),
    lambda x: x[:2].repeat_interleave(2),
    lambda x: x.to(torch.int32),
    lambda x: torch.where(x == 0, x, 1),
    lambda x: (x == 0)[1:],
    lambda x: x[x.argsort()],
]


def waits_with(
    monkeypatch: pytest.MonkeyPatch, encoder: FastEarlyExitEncoder, planted: Wait
) -> list[str]:
    """Of a call that does `planted` to the positions of its tokens before the first layer."""
    embed = Embedding.__call__

    def reading(
        self: Embedding, ids: torch.Tensor, types: torch.Tensor, positions: torch.Tensor, ops: Any
    ) -> torch.Tensor:
        planted(positions)
        return embed(self, ids, types, positions, ops)

    with monkeypatch.context() as patch:
        patch.setattr(Embedding, "__call__", reading)
        return waits_after_packing(monkeypatch, encoder)


@pytest.mark.parametrize(("name", "planted"), WAITS)
def test_a_wait_before_the_first_layer_is_seen(
    device: Device, monkeypatch: pytest.MonkeyPatch, name: str, planted: Wait
) -> None:
    """What the passes once did, reading the longest length from the device, and all its like."""
    encoder, _ = encoder_pair("lagged")
    assert name in waits_with(monkeypatch, encoder, planted)


@pytest.mark.parametrize("planted", NO_WAITS)
def test_work_of_known_size_is_no_wait(
    device: Device, monkeypatch: pytest.MonkeyPatch, planted: Wait
) -> None:
    encoder, _ = encoder_pair("lagged")
    assert waits_with(monkeypatch, encoder, planted) == []


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_an_advance_layer_by_layer_is_the_whole_pass(
    device: Device, sync: str, pooling: str
) -> None:
    """What is returned has the exact size of the rows that are left."""
    encoder, plain = encoder_pair(sync, pooling=pooling)
    expected = plain(**BATCH)
    engine, results = encoder._engine, ExitResults.empty(8, 3)
    batch: PackedInputs | PackedBatch = pack(BATCH, encoder._limits, "torch")
    for first, last in ((0, 1), (1, 3), (3, 4)):
        batch = engine.advance(batch, first, last, results)
        still = (expected.exit_layers > last).nonzero().flatten().tolist()
        assert sorted(batch.row_ids.tolist()) == still
        assert len(batch.hidden) == batch.cu_seqlens[-1]
        assert len(batch.cu_seqlens) == len(batch.row_ids) + 1
    assert torch.equal(results.exit_layers, expected.exit_layers)
    torch.testing.assert_close(results.logits, expected.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sync", ["eager", "lagged"])
def test_a_batch_that_empties_runs_no_further(device: Device, sync: str) -> None:
    encoder, _ = encoder_pair(sync)
    encoder.threshold = 1e-9
    assert encoder(**BATCH).exit_layers.tolist() == [1] * 8
    assert len(device.tokens) == (1 if sync == "eager" else 2)
    assert encoder(**{name: rows[:0] for name, rows in BATCH.items()}).logits.shape == (0, 3)


def test_the_rule_by_tokens() -> None:
    assert choose_sync("auto", KNEE_TOKENS - 1) == "lagged"
    assert choose_sync("auto", KNEE_TOKENS) == "eager"
    assert choose_sync("eager", 1) == "eager"
    assert choose_sync("lagged", 10**6) == "lagged"
    with pytest.raises(ValueError, match=r"sync: expected one of .*, got 'never'"):
        FastEarlyExitEncoder(tiny_model(), sync="never")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("first_tokens_alone", [False, True])
@pytest.mark.parametrize("behind", [0, 7])
def test_padded_attention(dtype: torch.dtype, first_tokens_alone: bool, behind: int) -> None:
    """Against the reference; tokens behind the last row, and absent rows, change nothing."""
    torch.manual_seed(0)
    lengths = torch.tensor([3, 1, 12, 5])
    keys = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    queries = torch.arange(5, dtype=torch.int32) if first_tokens_alone else keys
    query = torch.randn(int(queries[-1]), 24).to(dtype)
    key, value = torch.randn(2, int(keys[-1]), 24).to(dtype)
    expected = reference.attention(query, key, value, queries, keys, 4)
    garbage = torch.full((behind, 24), torch.nan, dtype=dtype)
    q, k, v = (torch.cat((tokens, garbage)) for tokens in (query, key, value))
    if behind:
        absent = torch.tensor([queries[-1], keys[-1]])
        queries, keys = (
            torch.cat((o, n[None])) for o, n in zip((queries, keys), absent, strict=True)
        )
    most = (1 if first_tokens_alone else 12, 12)
    found = device_attention.attention(q, k, v, queries, keys, 4, *most)
    assert found.shape == q.shape
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found[: len(expected)], expected, atol=tolerance, rtol=tolerance)


def test_the_cuda_ops_launch_what_is_counted_and_never_wait() -> None:
    sources = Path(__file__).parents[2] / "csrc" / "cuda"
    files = {
        "exit_step_async": "exit/exit_step",
        "add_norm": "layer/norm",
        "add_norm_pool": "layer/pool",
    }
    for name, file in files.items():
        text = (sources / f"{file}.cu").read_text(encoding="utf-8")
        assert len(re.findall(r"\blaunch(?:_copy)?\(", text)) == LAUNCHES[name]
        assert not re.findall(r"Synchronize|cudaMemcpy|\.to\(|\.item\(", text)


def test_counts_are_read_as_the_device_wrote_them() -> None:
    counts = Counts(2, torch.device("cpu"))
    counts.next().copy_(torch.tensor([5, 70]))
    counts.mark()
    counts.next().copy_(torch.tensor([2, 9]))
    assert (counts.read(1), counts.read(2)) == ((5, 70), (2, 9))


class Event:
    """Stands in for a CUDA event that has not come yet."""

    def __init__(self) -> None:
        self.came = False

    def query(self) -> bool:
        return self.came


def test_counts_stay_until_the_device_has_written_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel is still to write must not go to anybody else."""
    in_flight: deque[tuple[Event, Any]] = deque()
    monkeypatch.setattr(counts_module, "_in_flight", in_flight)
    events: list[Any] = [Event(), Event()]
    for event in events:
        counts = Counts(1, torch.device("cpu"), used=event)
        counts._events.append(event)
        counts.close()
    Counts(1, torch.device("cpu"))
    assert [event for event, _ in in_flight] == events
    assert [used for _, (_, used) in in_flight] == events
    events[0].came = True
    Counts(1, torch.device("cpu"))
    assert [event for event, _ in in_flight] == events[1:]
    events[1].came = True
    Counts(1, torch.device("cpu"))
    assert not in_flight
