"""FastEarlyExitEncoder: a Hugging Face classifier, run so that layers saved are time saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer
from transformers.modeling_outputs import SequenceClassifierOutput

from consistentee_ext.ahead import SYNC, choose_sync, run_ahead
from consistentee_ext.backbones import PackedBert
from consistentee_ext.backend import select_backend
from consistentee_ext.batching import token_budget_batches
from consistentee_ext.checkpoint import load_checkpoint
from consistentee_ext.criteria import check_criterion
from consistentee_ext.exits import choose_exit_layers, model_exits, resolve_thresholds
from consistentee_ext.heads import check_alpha, speed_of
from consistentee_ext.inputs import Limits, PackedInputs, pack_inputs, pack_rows, tokenize
from consistentee_ext.native import native_encoder
from consistentee_ext.ops import DEVICE_BACKENDS, FLOAT_DTYPES
from consistentee_ext.packed import ExitDecision, ExitState, PackedBatch


@dataclass
class EarlyExitOutput(SequenceClassifierOutput):
    """What N rows gave, in the caller's order.

    Args:
        logits: ``[N, C]`` float32, of the layer each row left at.
        exit_layers: ``[N]`` int64, 1-based: the number of layers each row ran.
        exit_scores: ``[N]`` float32, the criterion's score there.
    """

    # A ModelOutput's fields need defaults; these three are always there.
    logits: Tensor = None  # type: ignore[assignment]
    exit_layers: Tensor = None  # type: ignore[assignment]
    exit_scores: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        # The base class's own would look into every field for what it holds: at batch 1 that takes
        # 1% of the call.
        for name in ("logits", "exit_layers", "exit_scores"):
            self[name] = getattr(self, name)


class FastEarlyExitEncoder:
    """Runs a classifier on packed tokens and takes a row out of the batch at its exit layer.

    Stands in for the Hugging Face model: call it with the tokenizer's output. Rows come back in the
    caller's order, and what a row gives does not depend on the rows beside it.

    Args:
        model: a `ConsistentEEForSequenceClassification`, or a `BertForSequenceClassification`,
            which has no exit heads and runs at full depth. It is read, never changed.
        dtype: float32, bfloat16 or float16; default the model's. Decisions and logits are float32.
        device: default the model's.
        backend: one of ``cuda``, ``triton``, ``cpu``, ``torch``; default the first that can run,
            or ``CONSISTENTEE_BACKEND``.
        exit_layers: layers at which rows may leave, 1-based; default all that have a head. The last
            layer is always one.
        criterion: one of `consistentee_ext.criteria.CRITERIA`; default the model's.
        threshold: see the property; default the model's.
        alpha: see the property; default the model's.
        sync: on a GPU, when the host learns which rows have left: ``eager``, at each exit layer;
            ``lagged``, one exit layer later, so that the GPU never waits; ``auto``, by the number
            of tokens. Results are the same.
        tokenizer: for `predict`.

    Raises:
        TypeError, ValueError: the argument named, what was expected, what came.
        RuntimeError: the backend asked for cannot run here.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        exit_layers: Sequence[int] | None = None,
        criterion: str | None = None,
        threshold: float | Sequence[float] | Mapping[int, float] | None = None,
        alpha: float | None = None,
        sync: str = "auto",
        tokenizer: Any = None,
        _consume: bool = False,
    ) -> None:
        backbone = _backbone_of(model)
        weight = next(backbone.parameters())
        config: Any = model.config
        self.config = config
        self.dtype = dtype or weight.dtype
        if self.dtype not in FLOAT_DTYPES:
            raise ValueError(f"dtype: expected one of {FLOAT_DTYPES}, got {dtype}")
        self.device = _usable_device(device or weight.device)
        self.backend = select_backend(self.device, backend)
        if sync not in SYNC:
            raise ValueError(f"sync: expected one of {SYNC}, got {sync!r}")
        self.sync = sync
        self.tokenizer = tokenizer
        exits = model_exits(model, self.dtype, self.device, self.backend)
        pooling = exits[max(exits)].pooling
        self._trunk = PackedBert(backbone, self.dtype, self.device, self.backend, pooling, _consume)
        self.exit_layers = choose_exit_layers(list(exits), exit_layers)
        self._exits = {layer: exits[layer] for layer in self.exit_layers}
        self._native = native_encoder(self._trunk, self._exits, self.backend)
        if criterion is None:
            criterion = getattr(self.config, "criterion", "confidence")
        self.criterion = check_criterion(criterion)
        if self.criterion == "policy" and any(
            exits[layer].weights.policy_input is None for layer in self.exit_layers[:-1]
        ):
            raise ValueError("criterion: expected one that needs no policy, as the model has none")
        if threshold is None:
            threshold = getattr(self.config, "threshold", 0.5)
        self.threshold = threshold
        self._alpha: float | None = None
        if alpha is None and getattr(self.config, "alpha_range", None) is not None:
            alpha = config.alpha
        if alpha is not None:
            self.alpha = alpha

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        **options: Any,
    ) -> FastEarlyExitEncoder:
        """An encoder from a checkpoint folder or hub name: ConsistentEE, or a plain BERT
        classifier.

        Loads safetensors only and runs no remote code. `options` are those of the class.
        """
        model = load_checkpoint(name_or_path)
        # Nobody else has this model: its layers go as they are packed.
        options["_consume"] = True
        encoder = cls(model, dtype=dtype, device=device, backend=backend, **options)
        if encoder.tokenizer is None:
            encoder.tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        return encoder

    @property
    def num_layers(self) -> int:
        """L, the layers of the full model."""
        return len(self._trunk.layers)

    @property
    def max_positions(self) -> int:
        """The longest row the model takes, in tokens."""
        return self._trunk.max_positions

    @property
    def threshold(self) -> float | dict[int, float]:
        """The score above which a row leaves, in (0, 1]: lower is faster, 1 is full depth.

        Set a number, a sequence with one for each early exit layer, or a mapping from layer to
        number; it holds from the next call on. Reads as a number where all layers share it.
        """
        values = set(self._thresholds.values())
        if not values:
            return 1.0
        return values.pop() if len(values) == 1 else dict(self._thresholds)

    @threshold.setter
    def threshold(self, value: float | Sequence[float] | Mapping[int, float]) -> None:
        self._thresholds = resolve_thresholds(value, self.exit_layers[:-1])

    @property
    def alpha(self) -> float | None:
        """The price of a layer that the policies of an adjustable model go by: higher is faster.

        Set a number in the model's ``alpha_range``; it holds from the next call on. None for a
        model that was trained for one price.
        """
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        self._alpha = check_alpha(value, getattr(self.config, "alpha_range", None))
        speed = speed_of(self._alpha, self.config.alpha_range).item()
        self._exits = {layer: e.at_speed(speed) for layer, e in self._exits.items()}
        self._native = native_encoder(self._trunk, self._exits, self.backend)

    def eval(self) -> FastEarlyExitEncoder:
        """The encoder itself: it is for inference only."""
        return self

    def to(self, target: torch.device | torch.dtype | str) -> FastEarlyExitEncoder:
        """The encoder itself, if it is there already: weights are laid out once, at the start."""
        wanted, here = (
            (target, self.dtype)
            if isinstance(target, torch.dtype)
            else (torch.device(target), self.device)
        )
        if wanted != here:
            raise ValueError(
                f"to: expected {here}, got {wanted}; "
                "name dtype= and device= when making the encoder"
            )
        return self

    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> EarlyExitOutput:
        """Classify N rows.

        Args:
            input_ids: ``[N, S]`` int64 or int32, as the others on the host or on the encoder's
                device. A GPU encoder packs them on the host: it waits for tensors that are on the
                GPU, not for those a tokenizer gives.
            attention_mask: ``[N, S]``, 1 for a token, 0 for padding; default all ones.
            token_type_ids: ``[N, S]`` int64 or int32; default all zeros.
        """
        with torch.inference_mode():
            limits = Limits(self._trunk.vocab_size, self._trunk.type_vocab_size, self.max_positions)
            inputs = pack_inputs(
                input_ids, attention_mask, token_type_ids, limits, self.device, self.backend
            )
            results = ExitState.empty(len(inputs.row_ids), self._num_classes, self.device)
            self._run(inputs, results)
        return _output(results)

    def predict(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: Any = None,
        batch_tokens: int = 2048,
        show_progress_bar: bool = False,
    ) -> EarlyExitOutput:
        """Classify any number of texts, or pairs of texts, in batches of like length.

        Args:
            texts: N strings, or N pairs of strings; longer ones are cut at the position limit.
            tokenizer: default the encoder's own.
            batch_tokens: tokens a batch holds at most.
            show_progress_bar: on stderr.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise ValueError("tokenizer: expected one, as the encoder was made without")
        rows = tokenize(texts, tokenizer, self.max_positions)
        batches = token_budget_batches([len(ids) for ids in rows.ids], batch_tokens)
        results = ExitState.empty(len(rows.ids), self._num_classes, self.device)
        with torch.inference_mode(), tqdm(total=len(texts), disable=not show_progress_bar) as bar:
            for batch in batches:
                self._run(pack_rows(rows, batch), results)
                bar.update(len(batch))
        return _output(results)

    @property
    def _num_classes(self) -> int:
        return self._exits[self.num_layers].weights.classifier_bias.shape[0]

    def _run(self, inputs: PackedInputs, results: ExitState) -> None:
        """Classify the rows of `inputs`; their ``row_ids`` index `results`."""
        max_length = inputs.max_length  # read while the offsets are on the host
        inputs = inputs.to(self.device)
        if self._native is not None:
            thresholds = [self._thresholds.get(layer, 1.0) for layer in self.exit_layers]
            self._native.classify(inputs, thresholds, self.criterion, results)
            return
        hidden = self._trunk.embed(inputs.ids, inputs.types, inputs.positions)
        batch = PackedBatch(hidden, inputs.cu_seqlens, inputs.row_ids)
        if self.backend in DEVICE_BACKENDS and len(batch.row_ids):
            decisions = [self._decision(layer) for layer in self.exit_layers]
            sync = choose_sync(self.sync, len(hidden))
            run_ahead(self._trunk, self._exits, decisions, batch, max_length, results, sync)
            return
        for layer in range(1, self.num_layers + 1):
            if not len(batch.row_ids):
                break
            batch = self._trunk.run_layer(layer - 1, batch)
            if layer in self._exits:
                batch = self._exits[layer].step(batch, self._decision(layer), results, self.backend)

    def _decision(self, layer: int) -> ExitDecision:
        return ExitDecision(
            criterion=self.criterion,
            threshold=self._thresholds.get(layer, 1.0),
            layer=layer,
            max_streak=len(self.exit_layers) - 1,
            last=layer == self.num_layers,
        )


def _output(results: ExitState) -> EarlyExitOutput:
    return EarlyExitOutput(
        logits=results.logits,
        exit_layers=results.exit_layers,
        exit_scores=results.exit_scores,
    )


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch not built for it
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch can use here, got {device}: {reason}"
        ) from None


def _backbone_of(model: object) -> nn.Module:
    """The `BertModel` inside a classifier the engine knows."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a classifier module, got {type(model).__name__}")
    backbone = getattr(model, "backbone", None) or getattr(model, "bert", None)
    has_head = hasattr(model, "heads") or isinstance(getattr(model, "classifier", None), nn.Linear)
    kind = getattr(getattr(backbone, "config", None), "model_type", None)
    if backbone is None or not has_head or kind != "bert":
        raise ValueError(
            "model: expected a ConsistentEE or BERT sequence classifier on a BertModel, "
            f"got {type(model).__name__}"
        )
    return backbone
