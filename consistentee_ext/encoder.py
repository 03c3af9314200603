"""FastEarlyExitEncoder: a Hugging Face classifier, run so that layers saved are time saved."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import AutoTokenizer

from consistentee_ext.backend import select_backend
from consistentee_ext.checkpoint import load_checkpoint
from consistentee_ext.engines import choose_engine
from consistentee_ext.engines.device import SYNC
from consistentee_ext.exits.exits import (
    Exits,
    check_exit_criterion,
    choose_exit_layers,
    model_exits,
    resolve_thresholds,
)
from consistentee_ext.exits.head import alpha_feature, check_alpha
from consistentee_ext.families import find_backbone, read_stack
from consistentee_ext.families.reader import Reader
from consistentee_ext.inputs import pack_inputs
from consistentee_ext.ops.checks import FLOAT_DTYPES
from consistentee_ext.output import EarlyExitOutput
from consistentee_ext.packed import ExitResults
from consistentee_ext.tokens import pack_rows, token_budget_batches, tokenize


class FastEarlyExitEncoder:
    """Runs a classifier on packed tokens and takes a row out of the batch at its exit layer.

    Stands in for the Hugging Face model: call it with the tokenizer's output. Rows come back in the
    caller's order, and what a row gives does not depend on the rows beside it.

    Args:
        model: a `ConsistentEEForSequenceClassification`, or a Hugging Face sequence classifier of
            a family in `consistentee_ext.families`, which has no exit heads and runs at full depth.
            It is read, never changed.
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
        backbone: Any = find_backbone(model)
        config: Any = model.config
        self.config = config
        weight = next(backbone.parameters())
        self.dtype = dtype or weight.dtype
        if self.dtype not in FLOAT_DTYPES:
            raise ValueError(f"dtype: expected one of {FLOAT_DTYPES}, got {dtype}")
        self.device = _usable_device(device or weight.device)
        self.backend = select_backend(self.device, backend)
        if sync not in SYNC:
            raise ValueError(f"sync: expected one of {SYNC}, got {sync!r}")
        self.tokenizer = tokenizer
        by_layer = model_exits(model, backbone, self.dtype, self.device)
        self.exit_layers = choose_exit_layers(list(by_layer), exit_layers)
        by_layer = {layer: by_layer[layer] for layer in self.exit_layers}
        if criterion is None:
            criterion = getattr(config, "criterion", "confidence")
        if threshold is None:
            threshold = getattr(config, "threshold", 0.5)
        thresholds = resolve_thresholds(threshold, self.exit_layers[:-1])
        exits = Exits(by_layer, check_exit_criterion(criterion, by_layer), thresholds)
        pooling = exits.last.pooling
        reader = Reader(backbone.config, self.dtype, self.device, pooling, _consume)
        stack = read_stack(backbone, reader)
        self._engine = choose_engine(stack, exits, self.backend, sync)
        self._limits = stack.embedding.limits
        self._alpha: float | None = None
        if alpha is None and getattr(config, "alpha_range", None) is not None:
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
        """An encoder from a checkpoint folder or hub name: ConsistentEE, or a classifier of a known
        family.

        Loads safetensors only and runs no remote code. `options` are those of the class.
        """
        model = load_checkpoint(name_or_path)
        # The model is used nowhere else: each layer is freed once it is read.
        options["_consume"] = True
        encoder = cls(model, dtype=dtype, device=device, backend=backend, **options)
        if encoder.tokenizer is None:
            encoder.tokenizer = AutoTokenizer.from_pretrained(name_or_path, trust_remote_code=False)
        return encoder

    @property
    def num_layers(self) -> int:
        """L, the layers of the full model."""
        return self._engine.stack.num_layers

    @property
    def max_positions(self) -> int:
        """The longest row the model takes, in tokens."""
        return self._limits.max_length

    @property
    def threshold(self) -> float | dict[int, float]:
        """The score above which a row leaves, in (0, 1]: lower is faster, 1 is full depth.

        Set a number, a sequence with one for each early exit layer, or a mapping from layer to
        number; it holds from the next call on. Reads as a number where all layers share it.
        """
        by_layer = self._engine.exits.threshold_by_layer
        values = set(by_layer.values())
        if not values:
            return 1.0
        return values.pop() if len(values) == 1 else dict(by_layer)

    @threshold.setter
    def threshold(self, value: float | Sequence[float] | Mapping[int, float]) -> None:
        by_layer = resolve_thresholds(value, self.exit_layers[:-1])
        self._set_exits(threshold_by_layer=by_layer)

    @property
    def criterion(self) -> str:
        """The exit criterion, one of `consistentee_ext.criteria.CRITERIA`.

        Set another one; it holds from the next call on.
        """
        return self._engine.exits.criterion

    @criterion.setter
    def criterion(self, value: str) -> None:
        self._set_exits(criterion=check_exit_criterion(value, self._engine.exits.by_layer))

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
        feature = alpha_feature(self._alpha, self.config.alpha_range).item()
        by_layer = self._engine.exits.by_layer
        self._set_exits(by_layer={layer: e.at_alpha(feature) for layer, e in by_layer.items()})

    def _set_exits(self, **changes: Any) -> None:
        # One assignment: a pass under way in another thread keeps the engine it began with.
        self._engine = self._engine.with_exits(replace(self._engine.exits, **changes))

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
        engine = self._engine
        with torch.inference_mode():
            inputs = pack_inputs(
                input_ids, attention_mask, token_type_ids, self._limits, self.device, self.backend
            )
            results = engine.classify(inputs)
        return EarlyExitOutput.of(results)

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
        engine, padding_id = self._engine, self._limits.padding_id
        results = ExitResults.empty(len(rows.ids), engine.exits.num_classes, self.device)
        with torch.inference_mode(), tqdm(total=len(texts), disable=not show_progress_bar) as bar:
            for batch in batches:
                inputs = pack_rows(rows, batch, padding_id)
                engine.advance(inputs, 0, engine.stack.num_layers, results)
                bar.update(len(batch))
        return EarlyExitOutput.of(results)


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch not built for it
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch can use here, got {device}: {reason}"
        ) from None
