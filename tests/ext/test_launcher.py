"""Passes of a device as one C++ call, on the CPU: torch's ops by the dispatcher, and the CUDA
library's as compiled for the host.
"""

from __future__ import annotations

import gc
from typing import Any, cast

import pytest
import torch
from support.fake_device import Device
from support.family_cases import CASES, VOCABULARY, classifier
from support.host_ops import HostOps
from support.models import SEEDS, as_pairs, pack, random_batch, tiny_model
from torch.profiler import ProfilerActivity, profile

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.engines import launcher as launcher_module
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.eager import EagerEngine
from consistentee_ext.engines.graphs import PassGraphs
from consistentee_ext.engines.launcher import Launcher, declines
from consistentee_ext.engines.removal_costs import RemovalCosts
from consistentee_ext.inputs import PackedInputs
from consistentee_ext.ops import DeviceOps, flash, onednn, reference
from consistentee_ext.ops.schema import head_arguments
from consistentee_ext.packed import ExitResults, PackedBatch

pytestmark = [pytest.mark.needs_native, pytest.mark.needs_compiler]

LENGTHS = [5, 1, 17, 9, 9, 30, 2, 41]
BATCH = as_pairs(random_batch(LENGTHS, seed=3))
LAYERS = 4
NEVER = RemovalCosts([0.0, 1000.0], [0.0, 0.0], [1.0, 1.0])
ALWAYS = RemovalCosts([0.0, 1000.0], [0.0, 1000.0], [-1.0, -1.0])
# Ops of torch that are a kernel each, and `add_norm_`.
LAUNCHED = ("addmm", "gelu_", "add_norm_", "index_select", flash.OP)
# Four products, attention, activation, two norms; of an exit the pooler's product and the decision,
# and a copy where rows are removed.
LAYER, EXIT, COPY = 8, 2, 1


@pytest.fixture(scope="session")
def host_ops(tmp_path_factory: pytest.TempPathFactory) -> HostOps:
    return HostOps(tmp_path_factory.mktemp("host") / "cuda_ops.so")


@pytest.fixture(autouse=True)
def dense_weights(monkeypatch: pytest.MonkeyPatch, host_ops: HostOps) -> HostOps:
    """Weights as on a GPU, not prepacked, and its attention."""
    monkeypatch.setattr(onednn, "is_available", lambda dtype: False)
    monkeypatch.setattr(launcher_module, "why_no_flash", lambda *_: None)
    host_ops.forget()
    return host_ops


def engine_pair(
    model: Any, sync: str = "lagged", costs: RemovalCosts | None = None, **options: Any
) -> tuple[FastEarlyExitEncoder, FastEarlyExitEncoder]:
    """Launched by one call, and op by op."""
    launched, plain = (FastEarlyExitEncoder(model, backend="torch", **options) for _ in range(2))
    stack, exits = launched._engine.stack, launched._engine.exits
    assert declines(stack, exits) is None
    launcher = Launcher(stack, exits, costs)
    # Of the ops it has the embedding alone to run.
    launched._engine = DeviceEngine(stack, exits, cast(DeviceOps, reference), sync, None, launcher)
    plain._engine = EagerEngine(stack, exits, reference)
    return launched, plain


def launcher_of(encoder: FastEarlyExitEncoder) -> Launcher:
    engine = encoder._engine
    assert isinstance(engine, DeviceEngine)
    assert engine._launcher is not None
    return engine._launcher


def check_same(found: Any, expected: Any, tolerance: float = 1e-5) -> None:
    assert torch.equal(found.exit_layers, expected.exit_layers)
    for name in ("logits", "exit_scores"):
        torch.testing.assert_close(
            getattr(found, name), getattr(expected, name), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
@pytest.mark.parametrize("costs", [NEVER, ALWAYS, None], ids=["never", "always", "measured"])
def test_results_are_the_eager_engines(sync: str, pooling: str, costs: RemovalCosts | None) -> None:
    model = tiny_model(pooling, seed=SEEDS[pooling])
    launched, plain = engine_pair(model, sync, costs, threshold=0.6)
    expected = plain(**BATCH)
    assert len(set(expected.exit_layers.tolist())) > 2
    check_same(launched(**BATCH), expected)
    for encoder in (launched, plain):
        encoder.threshold = 0.9
    check_same(launched(**BATCH), plain(**BATCH))


@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
def test_bfloat16(pooling: str) -> None:
    """Beside float32 no further off than twice the eager engine, plus a little."""
    model = tiny_model(pooling, seed=SEEDS[pooling])
    _, exact = engine_pair(model, threshold=1.0)
    launched, plain = engine_pair(model, threshold=1.0, dtype=torch.bfloat16)
    truth, found, expected = (e(**BATCH).logits for e in (exact, launched, plain))
    assert (found - truth).abs().max() <= 2 * (expected - truth).abs().max() + 1e-3


def kin() -> list[str]:
    """The cases whose layers are BERT's."""
    return [case for case, (kind, _) in CASES.items() if kind in KINDS]


KINDS = (
    *("bert", "camembert", "data2vec-text", "distilbert", "ernie", "roberta", "xlm-roberta"),
    *("albert", "electra", "rembert"),
)


@pytest.mark.parametrize("case", kin())
def test_families(case: str) -> None:
    model = classifier(case)
    encoder = FastEarlyExitEncoder(model, backend="torch")
    engine = encoder._engine
    ids = torch.randint(2, VOCABULARY, (6, 30), generator=torch.Generator().manual_seed(0))
    mask = (torch.arange(30) < torch.tensor([5, 1, 17, 9, 30, 2])[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask}
    if why := declines(engine.stack, engine.exits):
        assert case in DECLINED, why
        return
    launched, plain = engine_pair(model)
    check_same(launched(**batch), plain(**batch), tolerance=1e-4)


# The head applies a GELU behind its product, or an MLP one that no kernel has.
DECLINED = ("bert with another gelu", "electra", "electra, narrow")


def test_declined_with_a_reason() -> None:
    for case, reason in (("modernbert", "blocks"), ("mpnet", "attention"), ("llama", "blocks")):
        engine = FastEarlyExitEncoder(classifier(case), backend="torch")._engine
        assert reason in (declines(engine.stack, engine.exits) or "")


def test_what_is_chosen_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consistentee_ext.engines.load_device_ops", lambda backend: reference)
    for case, backend, told in (
        ("bert", "cuda", "kernels launched by one call into C++"),
        ("bert", "triton", "kernels launched from Python, as Triton's are"),
        ("modernbert", "cuda", "kernels launched from Python, as its blocks are not BERT's"),
    ):
        monkeypatch.setattr(
            "consistentee_ext.packed_module.select_backend", lambda *_, name=backend: name
        )
        encoder = FastEarlyExitEncoder(classifier(case), backend=backend)
        assert f"backend {backend}, {told}" in repr(encoder)


def test_without_flash_attention() -> None:
    cpu, half = torch.device("cpu"), torch.bfloat16
    assert flash.why_no_flash(cpu, half, 64) == "as there is no flash attention on cpu"
    card = torch.device("cuda")
    for dtype, size, told in ((torch.float32, 64, "in torch.float32"), (half, 20, "heads of 20")):
        assert told in (flash.why_no_flash(card, dtype, size) or "")


@pytest.mark.parametrize("sync", ["eager", "lagged"])
@pytest.mark.parametrize("pooling", ["cls", "mean", "pair"])
@pytest.mark.parametrize("costs", [NEVER, ALWAYS], ids=["never", "always"])
def test_an_advance_layer_by_layer_is_the_whole_pass(
    sync: str, pooling: str, costs: RemovalCosts
) -> None:
    """What is returned holds no row that has left."""
    launched, plain = engine_pair(
        tiny_model(pooling, seed=SEEDS[pooling]), sync, costs, threshold=0.6
    )
    expected = plain(**BATCH)
    engine, results = launched._engine, ExitResults.empty(8, 3)
    inputs = pack(BATCH, launched._limits, "torch")
    firsts = engine.exits.first_lengths(inputs)
    batch: PackedInputs | PackedBatch = inputs
    for first, last in ((0, 1), (1, 3), (3, 4)):
        batch = engine.advance(batch, first, last, results, firsts)
        still = (expected.exit_layers > last).nonzero().flatten().tolist()
        assert sorted(batch.row_ids.tolist()) == still
        assert len(batch.hidden) == batch.cu_seqlens[-1] == sum(LENGTHS[row] for row in still)
        assert len(batch.cu_seqlens) == len(batch.row_ids) + 1
    check_same(results, expected)


class Pass:
    """What runs in the layers of a pass, and what it costs."""

    def __init__(self, encoder: FastEarlyExitEncoder, host_ops: HostOps) -> None:
        host_ops.forget()
        cpu = [ProfilerActivity.CPU]
        with profile(activities=cpu, profile_memory=True, record_shapes=True) as profiler:
            encoder(**BATCH)
        events = sorted(profiler.events(), key=lambda e: (e.time_range.start, -e.time_range.end))
        begin = next(i for i, e in enumerate(events) if e.name.endswith("device_engine_advance"))
        end = events[begin].time_range.end
        inside = [event for event in events[begin + 1 :] if event.time_range.start < end]
        attended = [event for event in inside if event.name == "aten::" + flash.OP]
        self.names = [event.name.partition("::")[2] for event in inside]
        # Kernels of torch and of ours; the norm of a bare layer is the CPU's.
        self.launches = sum(self.names.count(name) for name in LAUNCHED) + host_ops.launches
        self.tokens = [event.input_shapes[0][0] for event in attended]
        # What stands in for the flash attention is another op inside.
        within = [event.time_range for event in attended]
        self.allocations = sum(
            event.self_cpu_memory_usage > 0
            and not any(r.start < event.time_range.start < r.end for r in within)
            for event in inside
        )


@pytest.mark.parametrize("pooling", ["mean", "pair"])
def test_launches_of_a_pass(host_ops: HostOps, pooling: str) -> None:
    """At most 9 of a bare layer and 2 more of one with an exit."""
    model = tiny_model(pooling, seed=SEEDS[pooling])
    bare, _ = engine_pair(model, exit_layers=[])
    assert Pass(bare, host_ops).launches == LAYERS * LAYER + EXIT
    kept, _ = engine_pair(model, "lagged", NEVER, threshold=1.0)
    assert Pass(kept, host_ops).launches == LAYERS * (LAYER + EXIT)
    exits, _ = engine_pair(model, "lagged", ALWAYS, threshold=1.0)
    assert Pass(exits, host_ops).launches == LAYERS * (LAYER + EXIT + COPY) - COPY
    assert LAYER <= 9
    assert LAYER + EXIT + COPY <= 9 + 2


@pytest.mark.parametrize(("sync", "waits"), [("eager", 3), ("lagged", 2)])
def test_waits_of_a_pass(host_ops: HostOps, sync: str, waits: int) -> None:
    encoder, _ = engine_pair(tiny_model("mean", seed=3), sync, ALWAYS, threshold=0.6)
    names = Pass(encoder, host_ops).names
    assert host_ops.waits == names.count("event_wait") == waits
    steps = [name for name in names if name in ("exit_step_async", "event_wait", flash.OP)]
    if sync == "eager":  # for the step just launched
        assert steps[:4] == [flash.OP, "exit_step_async", "event_wait", flash.OP]
    else:  # for the step before, while the next layer runs
        assert steps[:4] == [flash.OP, "exit_step_async", flash.OP, "event_wait"]
    assert steps[-2:] == [flash.OP, "exit_step_async"]


@pytest.mark.parametrize("costs", [NEVER, ALWAYS], ids=["never", "always"])
def test_allocations_of_a_pass(host_ops: HostOps, costs: RemovalCosts) -> None:
    """As many in each pass, and in each layer: of the four products; of an exit the pooled rows and
    their sums, the pooler's product, the flags of the rows, their places and numbers; where rows
    are removed, what holds those that stay.
    """
    model = tiny_model("mean", seed=3)
    bare, _ = engine_pair(model, exit_layers=[])
    assert Pass(bare, host_ops).allocations == LAYERS * 4 + 6
    encoder, _ = engine_pair(model, "lagged", costs, threshold=1.0)
    removals = LAYERS - 1 if costs is ALWAYS else 0
    counts = {Pass(encoder, host_ops).allocations for _ in range(3)}
    assert counts == {LAYERS * (4 + 6) + 2 * removals}


# Costs, and the tokens of each layer where 114, 81, 81 and 31 are of rows that have not left: the
# host knows of an exit when it launches the next one.
REMOVALS: dict[str, tuple[RemovalCosts | None, list[int]]] = {
    "never pays": (NEVER, [114, 114, 114, 114]),
    "always pays": (ALWAYS, [114, 114, 81, 81]),
    # 33 tokens less for one layer
    "just pays": (RemovalCosts([0.0, 100.0], [0.0, 100.0], [32.0, 32.0]), [114, 114, 81, 81]),
    "just does not": (RemovalCosts([0.0, 100.0], [0.0, 100.0], [33.0, 33.0]), [114] * 4),
    "below the knee": (
        RemovalCosts([0.0, 1.0, 120.0, 200.0], [0.0, 50.0, 50.0, 90.0], [3.0] * 4),
        [114] * 4,
    ),
    "beyond the table": (RemovalCosts([0.0, 50.0], [0.0, 50.0], [20.0, 20.0]), [114, 114, 81, 81]),
    # BERT-base's costs by work: to this small a layer all numbers are the same.
    "measured": (None, [114] * 4),
}


@pytest.mark.parametrize("case", REMOVALS)
def test_rows_stay_where_removing_them_does_not_pay(host_ops: HostOps, case: str) -> None:
    costs, tokens = REMOVALS[case]
    encoder, plain = engine_pair(tiny_model("mean", seed=3), "lagged", costs, threshold=0.6)
    expected = plain(**BATCH)
    alive = [sum(n for n, e in zip(LENGTHS, expected.exit_layers, strict=True) if e > layer)
             for layer in range(LAYERS)]  # fmt: skip
    assert alive == [114, 81, 81, 31]
    assert Pass(encoder, host_ops).tokens == tokens
    check_same(encoder(**BATCH), expected)


def test_what_a_removal_saves_counts_up_to_the_next_exit(host_ops: HostOps) -> None:
    """33 tokens less for two layers, or for one."""
    costs = RemovalCosts([0.0, 100.0], [0.0, 100.0], [40.0, 40.0])
    model = tiny_model("mean", seed=3)
    thresholds = {1: 0.6, 2: 0.6}
    few, plain = engine_pair(model, "lagged", costs, threshold=thresholds, exit_layers=[1, 2])
    assert Pass(few, host_ops).tokens == [114, 114, 81, 81]
    check_same(few(**BATCH), plain(**BATCH))
    all_, _ = engine_pair(model, "lagged", costs, threshold=0.6)
    assert Pass(all_, host_ops).tokens == [114] * 4


def test_rows_that_stay_count_as_gone(host_ops: HostOps) -> None:
    """A batch of which none is left runs no further, wherever its rows are."""
    encoder, plain = engine_pair(tiny_model("mean", seed=3), "lagged", NEVER, threshold=1e-9)
    check_same(encoder(**BATCH), plain(**BATCH))
    assert len(Pass(encoder, host_ops).tokens) == 2


def test_the_measured_costs() -> None:
    """BERT-base's own, and those of a layer with a quarter of its weights."""
    base = tiny_stack(768, 3072)
    tokens, layer, removal = RemovalCosts.measured(base)
    assert dict(zip(tokens, layer, strict=True))[4096.0] == 151.0
    assert dict(zip(tokens, removal, strict=True))[4096.0] == pytest.approx(3.0, rel=0.01)
    small, *_ = RemovalCosts.measured(tiny_stack(384, 1536))
    assert small == [4 * count for count in tokens]


def tiny_stack(hidden_size: int, intermediate_size: int) -> Any:
    sizes: dict[str, Any] = {"hidden_size": hidden_size, "intermediate_size": intermediate_size}
    model = tiny_model("mean", num_hidden_layers=1, **sizes)
    return FastEarlyExitEncoder(model, backend="torch", dtype=torch.bfloat16)._engine.stack


@pytest.mark.parametrize("sync", ["eager", "lagged"])
def test_no_rows(sync: str) -> None:
    encoder, _ = engine_pair(tiny_model("mean", seed=3), sync)
    assert encoder(**{name: rows[:0] for name, rows in BATCH.items()}).logits.shape == (0, 3)


def test_other_exits_of_the_same_layers() -> None:
    model = tiny_model("mean", seed=3)
    for options in ({"exit_layers": [2]}, {"criterion": "patience"}, {"criterion": "entropy"}):
        launched, plain = engine_pair(model, threshold=0.6, **options)
        check_same(launched(**BATCH), plain(**BATCH))
        launcher_of(launched)
    launched, plain = engine_pair(model, threshold=0.6)
    launcher = launcher_of(launched)
    for encoder in (launched, plain):
        encoder.criterion = "confidence"
    assert launcher_of(launched) is launcher
    check_same(launched(**BATCH), plain(**BATCH))


def test_a_threshold_for_each_row() -> None:
    launched, plain = engine_pair(tiny_model("mean", seed=3), threshold=0.6)
    own = torch.linspace(0.3, 1.0, 8)
    check_same(launched(**BATCH, row_threshold=own), plain(**BATCH, row_threshold=own))


def test_independent_labels() -> None:
    model = tiny_model("mean", seed=3, problem_type="multi_label_classification")
    launched, plain = engine_pair(model, threshold=0.6, criterion="confidence")
    check_same(launched(**BATCH), plain(**BATCH))


def test_a_flash_attention_of_another_schema_is_not_taken() -> None:
    assert flash.flash_arguments() >= len(flash.ARGUMENTS)
    assert flash.flash_arguments("_efficient_attention_forward") == 0
    assert flash.flash_arguments("_no_such_op") == 0


def test_graphs_take_over_from_the_second_time_on() -> None:
    """Of sizes that come again; the answers are the same."""
    recorded = []

    def record(run: Any) -> Any:
        recorded.append(run)
        return run

    model = tiny_model("mean", seed=3)
    launched, plain = engine_pair(model, "eager", threshold=0.6)
    stack, exits = launched._engine.stack, launched._engine.exits
    device = Device()
    graphs = PassGraphs(stack, exits, device, lambda: record)
    launched._engine = DeviceEngine(stack, exits, device, "eager", graphs, launcher_of(launched))
    expected = plain(**BATCH)
    check_same(launched(**BATCH), expected)
    assert not recorded
    assert not device.launches
    check_same(launched(**BATCH), expected)
    assert len(recorded) == 1  # up to the first exit; what follows is of sizes not met so far
    check_same(launched(**BATCH), expected)
    assert len(recorded) == LAYERS
    other = {name: rows[:5] for name, rows in BATCH.items()}
    check_same(launched(**other), plain(**other))
    assert len(recorded) == LAYERS


def make_number(**changes: Any) -> int:
    fields = {
        "flash_arguments": 10, "cost_tokens": [0.0, 1.0],
        "layer_costs": [0.0, 1.0], "removal_costs": [0.0, 1.0],
    }  # fmt: skip
    number: int = torch.ops.consistentee.device_engine_create.default(**(fields | changes))
    return number


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flash_arguments": 9}, "flash_arguments: expected"),
        ({"flash_arguments": 33}, "flash_arguments: expected"),
        ({"cost_tokens": [1.0, 2.0]}, "cost_tokens: expected two or more numbers that ascend"),
        ({"cost_tokens": [0.0, 0.0]}, "cost_tokens: expected two or more numbers that ascend"),
        ({"cost_tokens": [0.0]}, "cost_tokens: expected two or more numbers that ascend"),
        ({"layer_costs": [0.0]}, "layer_costs, removal_costs: expected one for each"),
    ],
)
def test_bad_engines(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        make_number(**changes)


def test_bad_passes() -> None:
    encoder, _ = engine_pair(tiny_model("mean", seed=3))
    engine = encoder._engine
    hidden, offsets = torch.randn(5, 32), torch.tensor([0, 2, 5]).int()
    batch = PackedBatch(hidden, offsets, torch.arange(2))
    good: dict[str, Any] = {
        "batch": batch, "first": 0, "last": 4, "max_length": 3, "exits": engine.exits,
        "results": ExitResults.empty(2, 3), "firsts": None, "eager": False,
        "tickets": torch.zeros(2).int(), "totals": torch.zeros(4, 2).int(),
    }  # fmt: skip
    launcher = launcher_of(encoder)
    for changes, message in (
        ({"first": 3, "last": 3}, "first, last: expected 0 <= first < last <= 4"),
        ({"last": 5}, "first, last: expected 0 <= first < last <= 4"),
        ({"totals": torch.zeros(3, 2).int()}, "totals: expected"),
        ({"tickets": torch.zeros(3).int()}, "tickets: expected"),
        ({"batch": batch._replace(row_ids=torch.arange(3))}, "row_ids: expected"),
        ({"batch": batch._replace(hidden=hidden.double())}, "aten::linear: "),
    ):
        with torch.inference_mode(), pytest.raises(RuntimeError, match=message):
            launcher.run(**(good | changes))
    ops = torch.ops.consistentee
    with pytest.raises(RuntimeError, match="a number that device_engine_create gave"):
        ops.device_engine_add_exit.default(
            0, layer=1, pooling="cls", pooler=hidden, pooler_bias=None,
            **head_arguments(engine.exits.last.weights),
        )  # fmt: skip


def test_an_engine_in_use_takes_no_more_layers() -> None:
    encoder, _ = engine_pair(tiny_model("mean", seed=3))
    engine = encoder._engine
    encoder(**BATCH)
    with pytest.raises(RuntimeError, match="engine: expected one that has not run yet"):
        torch.ops.consistentee.device_engine_add_block.default(
            launcher_of(encoder)._number, **launcher_module._block_arguments(engine.stack.blocks[0])
        )


def test_an_engine_that_nobody_has_is_freed() -> None:
    encoder, _ = engine_pair(tiny_model("mean", seed=3))
    engine = encoder._engine
    number, block = launcher_of(encoder)._number, engine.stack.blocks[0]
    arguments = launcher_module._block_arguments(block)
    torch.ops.consistentee.device_engine_add_block.default(number, **arguments)
    del engine, encoder
    gc.collect()
    with pytest.raises(RuntimeError, match="a number that device_engine_create gave"):
        torch.ops.consistentee.device_engine_add_block.default(number, **arguments)
