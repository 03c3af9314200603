"""What the GPU check runs: random models and random rows, of BERT-base's size or a rehearsal's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from exit_shares import EXIT_SHARES, set_exit_shares
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.backend import DEVICE_BACKENDS, availability
from consistentee_ext.checkpoint import EarlyExitModel
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.engines.device import DeviceEngine
from consistentee_ext.engines.launcher import Launcher
from consistentee_ext.engines.removal_costs import RemovalCosts
from consistentee_ext.exits.exit import Exit
from consistentee_ext.inputs import pack_inputs
from consistentee_ext.ops import load_device_ops
from consistentee_ext.packed import ExitDecision, ExitResults, PackedBatch
from consistentee_ext.weights import LinearWeights

DTYPE = torch.bfloat16
INPUT_SETS = 4  # batches that a timed loop rotates

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Scale:
    """Sizes of a run.

    Attributes:
        config: of the model.
        repeats: timed calls of a median.
        headline: rows and tokens a row of the engines' comparison.
        shapes: the same, of all that are swept.
        launched: the same, of those launched without graphs.
        tokens: T of the layer's time.
        product_tokens: T of the matrix products.
        exit_rows: B of the exit step.
        copy_elements: of the copy that measures bandwidth.
        square: side of the product that measures arithmetic.
        real_rows: B of batches of real lengths.
    """

    config: BertConfig
    repeats: int
    headline: tuple[int, int]
    shapes: tuple[tuple[int, int], ...]
    launched: tuple[tuple[int, int], ...]
    tokens: tuple[int, ...]
    product_tokens: tuple[int, ...]
    exit_rows: tuple[int, ...]
    copy_elements: int
    square: int
    real_rows: tuple[int, ...]


BERT_BASE = Scale(
    config=BertConfig(),
    repeats=30,
    headline=(32, 128),
    shapes=tuple((rows, length) for rows in (1, 8, 32, 128, 512) for length in (32, 128, 512)),
    launched=((1, 128), (8, 128), (32, 128), (128, 128)),
    tokens=tuple(2**power for power in range(5, 17)),
    product_tokens=(128, 1024, 4096, 16384),
    exit_rows=(1, 8, 32, 128, 1024),
    copy_elements=2**29,
    square=8192,
    real_rows=(128, 512),
)
REHEARSAL = Scale(
    config=BertConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
    ),
    repeats=3,
    headline=(4, 16),
    shapes=((1, 8), (3, 16)),
    launched=((3, 16),),
    tokens=(8, 16, 32),
    product_tokens=(8, 32),
    exit_rows=(1, 8),
    copy_elements=2**16,
    square=64,
    real_rows=(8,),
)


class Bench:
    """The models of a scale on a device, and rows for them."""

    def __init__(self, scale: Scale, device: torch.device) -> None:
        torch.manual_seed(0)
        self.scale = scale
        self.config = scale.config
        self.device = device
        self.layers = scale.config.num_hidden_layers
        self.model = _exit_model(scale.config)
        self.backends = [name for name in DEVICE_BACKENDS if availability(name, device).usable]

    def batch(self, rows: int, length: int) -> Batch:
        """Random rows of one length on the host, as a tokenizer leaves them."""
        return self.batch_of([length] * rows)

    def batch_of(self, lengths: Sequence[int]) -> Batch:
        """Random rows of these lengths, padded to the longest."""
        shape = (len(lengths), max(lengths))
        mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
        return {
            "input_ids": torch.randint(0, self.config.vocab_size, shape),
            "attention_mask": mask.long(),
            "token_type_ids": torch.zeros(shape, dtype=torch.int64),
        }

    def stock_classifier(self) -> BertForSequenceClassification:
        """Hugging Face's classifier with the same trunk, sdpa attention."""
        model = BertForSequenceClassification(self.config).eval()
        model.set_attn_implementation("sdpa")
        model.bert.load_state_dict(self.model.backbone.state_dict(), strict=False)
        return model.to(self.device, DTYPE)

    def hugging_face(self, compile_mode: str | None = None) -> Callable[[Batch], Tensor]:
        """The stock classifier's logits, by torch.compile in a mode or as it is."""
        model = self.stock_classifier()
        forward = model if compile_mode is None else torch.compile(model, mode=compile_mode)

        def run(batch: Batch) -> Tensor:
            with torch.no_grad():
                on_device = {name: rows.to(self.device) for name, rows in batch.items()}
                logits: Tensor = forward(**on_device).logits
            return logits

        return run

    def encoder(self, backend: str | None = None, **options: Any) -> FastEarlyExitEncoder:
        return FastEarlyExitEncoder(
            self.model, dtype=DTYPE, device=self.device, backend=backend, **options
        )

    def exiting(
        self, batches: Sequence[Batch], backend: str | None = None, sync: str = "auto"
    ) -> FastEarlyExitEncoder:
        """An encoder whose thresholds let `EXIT_SHARES` of these rows leave."""
        encoder = self.encoder(backend, sync=sync)
        group = len(EXIT_SHARES) // self.layers  # fewer layers have more of the rows each
        shares = [sum(EXIT_SHARES[i : i + group]) for i in range(0, len(EXIT_SHARES), group)]
        set_exit_shares(encoder, batches, shares)
        return encoder

    def packed(self, lengths: Sequence[int]) -> PackedBatch:
        """Random hidden states on the device."""
        offsets = torch.tensor([0, *lengths]).cumsum(0).int().to(self.device)
        hidden = torch.randn(sum(lengths), self.config.hidden_size, device=self.device).to(DTYPE)
        return PackedBatch(hidden, offsets, torch.arange(len(lengths), device=self.device))


def _pooler(exit_: Exit) -> LinearWeights:
    assert exit_.pooler is not None
    return exit_.pooler


class FullDepth:
    """A full-depth pass on a device from inputs that are there: what a CUDA graph can hold."""

    def __init__(self, bench: Bench, batch: Batch, backend: str) -> None:
        engine = bench.encoder(backend, exit_layers=[])._engine
        self._stack, self._exit = engine.stack, engine.exits.last
        self._pooler = _pooler(self._exit)
        self._ops = load_device_ops(backend)
        limits = self._stack.embedding.limits
        inputs = pack_inputs(
            batch["input_ids"],
            batch["attention_mask"],
            batch["token_type_ids"],
            limits,
            bench.device,
            backend,
        )
        self._max_length = inputs.max_length
        self._inputs = inputs.to(bench.device)
        rows = len(inputs.row_ids)
        self._results = ExitResults.empty(rows, 2, bench.device)
        self._tickets = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        self._totals = torch.zeros(2, dtype=torch.int32, device=bench.device)
        self._decision = engine.exits.decisions(rows)[bench.layers]

    def run(self) -> Tensor:
        """The logits, ``[B, 2]``."""
        ids, types, positions, cu_seqlens, row_ids = self._inputs
        ops = self._ops
        hidden = self._stack.embedding(ids, types, positions, ops)
        batch = PackedBatch(hidden, cu_seqlens, row_ids)
        *blocks, last = self._stack.blocks
        for block in blocks:
            batch = block(batch, ops, self._max_length)
        out, hidden = last.before_last_norm(batch, ops, self._max_length)
        weight, bias, eps = last.mlp_norm
        assert bias is not None
        pooled = ops.add_norm_pool(
            hidden,
            out.hidden,
            weight,
            bias,
            eps,
            out.cu_seqlens,
            self._max_length,
            self._exit.pooling,
            self._tickets,
        )
        ops.exit_step_async(
            out._replace(hidden=hidden),
            ops.linear(pooled, self._pooler),
            self._exit.weights,
            self._decision,
            self._results,
            self._tickets,
            self._totals,
            PackedBatch(hidden, *map(torch.empty_like, out[1:])),
        )
        return self._results.logits


class ExitStep:
    """One exit step on a device, at which a share of the rows leaves."""

    def __init__(self, bench: Bench, batch: PackedBatch, backend: str, leave: float) -> None:
        self._exit = bench.encoder(backend)._engine.exits.by_layer[1]
        self._pooler = _pooler(self._exit)
        self._batch, self._ops = batch, load_device_ops(backend)
        rows = len(batch.row_ids)
        self._out = PackedBatch(*map(torch.empty_like, batch))
        self._pooled = torch.randn_like(batch.hidden[:rows])
        self._results = ExitResults.empty(rows, 2, bench.device)
        self._tickets = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        self._totals = torch.zeros(2, dtype=torch.int32, device=bench.device)
        thresholds = torch.ones(rows, device=bench.device)
        last = ExitDecision("policy", thresholds, layer=1, max_streak=1, last=True)
        for _ in range(2):  # the first run leaves the labels that the policy reads from then on
            self.run(last)
        scores = self._results.exit_scores
        threshold = float(scores.quantile(1.0 - leave)) if rows > 1 else 1.0
        self.decision = last._replace(thresholds=thresholds * threshold, last=False)

    def run(self, decision: ExitDecision | None = None) -> None:
        """The pooler's product, the decision, the copy: what an exit adds to a layer."""
        self._ops.exit_step_async(
            self._batch,
            self._ops.linear(self._pooled, self._pooler),
            self._exit.weights,
            decision or self.decision,
            self._results,
            self._tickets,
            self._totals,
            self._out,
        )

    def copied_share(self) -> float:
        """The share of the tokens that stay."""
        self.run()
        return int(self._totals[1]) / len(self._batch.hidden)


def without_graphs(
    encoder: FastEarlyExitEncoder, costs: RemovalCosts | None = None
) -> FastEarlyExitEncoder:
    """The encoder, from now on launched by one C++ call, where it takes the model; with `costs` of
    its own.
    """
    engine = encoder._engine
    if isinstance(engine, DeviceEngine):
        launcher = engine._launcher
        if launcher is not None and costs is not None:
            launcher = Launcher(engine.stack, engine.exits, costs)
        _launch_by(encoder, engine, launcher)
    return encoder


def from_python(encoder: FastEarlyExitEncoder) -> FastEarlyExitEncoder:
    """The encoder, from now on launched op by op."""
    engine = encoder._engine
    if isinstance(engine, DeviceEngine):
        _launch_by(encoder, engine, None)
    return encoder


def _launch_by(
    encoder: FastEarlyExitEncoder, engine: DeviceEngine, launcher: Launcher | None
) -> None:
    parts = (engine.stack, engine.exits, engine._ops, engine._sync, None, launcher)
    encoder._engine = DeviceEngine(*parts, declined="as this bench does")


def _exit_model(config: BertConfig) -> Any:
    exits = ConsistentEEConfig(config.to_dict(), policy_input="prediction", num_labels=2)
    return EarlyExitModel(exits).eval()
