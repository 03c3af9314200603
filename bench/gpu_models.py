"""What the GPU check runs: random models and random rows, of BERT-base's size or a rehearsal's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from exit_shares import EXIT_SHARES, set_exit_shares
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification

from consistentee_ext import FastEarlyExitEncoder, ops
from consistentee_ext.backend import availability
from consistentee_ext.checkpoint import EarlyExitModel
from consistentee_ext.inputs import Limits, pack_inputs
from consistentee_ext.ops import DEVICE_BACKENDS
from consistentee_ext.packed import ExitDecision, ExitState, PackedBatch

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


class FullDepth:
    """A full-depth pass on a device from inputs that are there: what a CUDA graph can hold."""

    def __init__(self, bench: Bench, batch: Batch, backend: str) -> None:
        encoder = bench.encoder(backend, exit_layers=[])
        self._trunk, self._exit = encoder._trunk, encoder._exits[bench.layers]
        limits = Limits(self._trunk.vocab_size, self._trunk.type_vocab_size, encoder.max_positions)
        inputs = pack_inputs(*batch.values(), limits, bench.device, backend)
        self._max_length = inputs.max_length
        self._inputs = inputs.to(bench.device)
        rows = len(inputs.row_ids)
        self._results = ExitState.empty(rows, 2, bench.device)
        self._counters = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        self._totals = torch.zeros(2, dtype=torch.int32, device=bench.device)
        self._decision = ExitDecision("policy", 1.0, bench.layers, max_streak=0, last=True)

    def run(self) -> Tensor:
        """The logits, ``[B, 2]``."""
        ids, types, positions, cu_seqlens, row_ids = self._inputs
        batch = PackedBatch(self._trunk.embed(ids, types, positions), cu_seqlens, row_ids)
        *others, last = range(len(self._trunk.layers))
        for index in others:
            batch = self._trunk.run_layer(index, batch, self._max_length)
        batch, pooled = self._trunk.run_exit_layer(
            last, batch, self._max_length, self._exit.pooling, self._counters
        )
        ops.exit_step_ahead(
            batch,
            self._exit.pooler(pooled),
            self._exit.weights,
            self._decision,
            self._results,
            (self._counters, self._totals),
            self._trunk.backend,
        )
        return self._results.logits


class ExitStep:
    """One exit step on a device, at which a share of the rows leaves."""

    def __init__(self, bench: Bench, batch: PackedBatch, backend: str, leave: float) -> None:
        encoder = bench.encoder(backend)
        self._exit = encoder._exits[1]
        self._batch, self._backend = batch, backend
        rows = len(batch.row_ids)
        self._pooled = torch.randn_like(batch.hidden[:rows])
        self._results = ExitState.empty(rows, 2, bench.device)
        self._counters = torch.zeros(rows, dtype=torch.int32, device=bench.device)
        self._totals = torch.zeros(2, dtype=torch.int32, device=bench.device)
        last = ExitDecision("policy", 1.0, layer=1, max_streak=1, last=True)
        for _ in range(2):  # the first run leaves the labels that the policy reads from then on
            self.run(last)
        scores = self._results.exit_scores
        threshold = float(scores.quantile(1.0 - leave)) if rows > 1 else 1.0
        self.decision = last._replace(threshold=threshold, last=False)

    def run(self, decision: ExitDecision | None = None) -> PackedBatch:
        """The pooler's product, the decision, the copy: what an exit adds to a layer."""
        return ops.exit_step_ahead(
            self._batch,
            self._exit.pooler(self._pooled),
            self._exit.weights,
            decision or self.decision,
            self._results,
            (self._counters, self._totals),
            self._backend,
        )

    def copied_share(self) -> float:
        """The share of the tokens that stay."""
        self.run()
        return int(self._totals[1]) / len(self._batch.hidden)


def _exit_model(config: BertConfig) -> Any:
    model = EarlyExitModel(
        {
            "backbone": config.to_dict(),
            "pooling": "mean",
            "policy_input": "prediction",
            "policy_size": 32,
            "criterion": "policy",
            "threshold": 0.5,
            "id2label": {0: "0", 1: "1"},
        }
    )
    return model.eval()
