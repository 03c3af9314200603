"""FastEarlyExitEncoder: a Hugging Face classifier, run so that layers saved are time saved."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from typing_extensions import override

from consistentee_ext.backend import availability, select_backend
from consistentee_ext.checkpoint import load_checkpoint, load_tokenizer
from consistentee_ext.drop_in import DropIn
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
from consistentee_ext.forks import threads_start, without_threads
from consistentee_ext.inputs import pack_inputs
from consistentee_ext.layers import Stack
from consistentee_ext.ops.checks import FLOAT_DTYPES
from consistentee_ext.ops.onednn import is_fast
from consistentee_ext.output import EarlyExitOutput
from consistentee_ext.packed import ExitResults
from consistentee_ext.placement import dense, place
from consistentee_ext.source import Source
from consistentee_ext.tokens import check_ids, pack_rows, token_budget_batches, token_windows


class FastEarlyExitEncoder(DropIn):
    """Runs a classifier on packed tokens and takes a row out of the batch at its exit layer.

    Stands in for the Hugging Face model: call it with the tokenizer's output, or hand it to a
    pipeline, a Trainer or a CrossEncoder. Rows come back in the caller's order, and what a row
    gives does not depend on the rows beside it. It can be copied, pickled and moved between
    devices; it cannot be trained.

    Args:
        model: a `ConsistentEEForSequenceClassification`, or a Hugging Face sequence classifier of
            a family in `consistentee_ext.families`, which has no exit heads and runs at full depth.
            It is read, never changed.
        dtype: float32, bfloat16 or float16; default the model's, or float32 for a float64 one and
            on a processor that multiplies the model's slowly. Decisions and logits are float32.
        device: default the model's.
        backend: one of ``cuda``, ``triton``, ``cpu``, ``torch``; default the first that can run,
            or ``CONSISTENTEE_BACKEND``.
        exit_layers: layers at which rows may leave, 1-based; default all that have a head. The last
            layer is always one.
        criterion: one of `consistentee_ext.criteria.CRITERIA`, of a multi-label model of
            `MULTI_LABEL_CRITERIA`; default the model's.
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
        weight = next(backbone.parameters())
        where = _usable_device(device or weight.device)
        super().__init__(config, _choose_dtype(dtype, weight.dtype, where), where)
        self.backend = select_backend(self.device, backend)
        if sync not in SYNC:
            raise ValueError(f"sync: expected one of {SYNC}, got {sync!r}")
        self._sync = sync
        self.tokenizer = tokenizer
        with without_threads():
            exits = self._read_exits(model, backbone, exit_layers, criterion, threshold)
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

    def _read_exits(
        self,
        model: nn.Module,
        backbone: nn.Module,
        exit_layers: Sequence[int] | None,
        criterion: str | None,
        threshold: float | Sequence[float] | Mapping[int, float] | None,
    ) -> Exits:
        by_layer = model_exits(model, backbone, self.dtype, self.device)
        self.exit_layers = choose_exit_layers(list(by_layer), exit_layers)
        by_layer = {layer: by_layer[layer] for layer in self.exit_layers}
        if criterion is None:
            criterion = getattr(self.config, "criterion", "confidence")
        if threshold is None:
            threshold = getattr(self.config, "threshold", 0.5)
        thresholds = resolve_thresholds(threshold, self.exit_layers[:-1])
        return Exits(by_layer, check_exit_criterion(criterion, by_layer), thresholds)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        revision: str = "main",
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        subfolder: str = "",
        **options: Any,
    ) -> FastEarlyExitEncoder:
        """An encoder from a checkpoint folder or hub name: ConsistentEE, or a classifier of a known
        family.

        Loads safetensors only and runs no remote code.

        Args:
            name_or_path: what looks like a folder and is none is not looked for on the hub.
            dtype: as for the class, or its name; ``"auto"`` is that of the weights, on every
                processor.
            device: as for the class.
            backend: as for the class.
            revision: as the next four, as for transformers' ``from_pretrained``.
            cache_dir: for downloads.
            local_files_only: download nothing.
            token: of the hub.
            subfolder: of the checkpoint.
            options: the others of the class.

        Raises:
            OSError: no such folder, name or file.
            ValueError: weights that are not those of the configuration, or another model type.
        """
        source = Source(
            name_or_path, revision, cache_dir, local_files_only, token, subfolder
        ).checked()
        with without_threads():
            model = load_checkpoint(source)
        if isinstance(dtype, str):
            named = {str(known).removeprefix("torch."): known for known in FLOAT_DTYPES}
            named["auto"] = next(model.parameters()).dtype
            if dtype not in named:
                raise ValueError(f"dtype: expected one of {', '.join(named)}, got {dtype!r}")
            dtype = named[dtype]
        # The model is used nowhere else: each layer is freed once it is read.
        options["_consume"] = True
        encoder = cls(model, dtype=dtype, device=device, backend=backend, **options)
        if encoder.tokenizer is None:
            encoder.tokenizer = load_tokenizer(source)
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

    def __getstate__(self) -> dict[str, Any]:
        engine = self._engine
        return self.__dict__ | {"_engine": (dense(engine.stack), dense(engine.exits))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lay_out(*state["_engine"])

    @override
    def _move(self, device: torch.device) -> None:
        self.device = device
        self._lay_out(dense(self._engine.stack), dense(self._engine.exits))

    def _lay_out(self, stack: Stack, exits: Exits) -> None:
        """Make the engine of plain weights, by the backend there was if it can run here."""
        if not availability(self.backend, self.device).usable:
            self.backend = select_backend(self.device)
        with without_threads():
            placed = place(stack, self.device), place(exits, self.device)
        self._engine = choose_engine(*placed, self.backend, self._sync)

    def _set_exits(self, **changes: Any) -> None:
        # One assignment: a pass under way in another thread keeps the engine it began with.
        self._engine = self._engine.with_exits(replace(self._engine.exits, **changes))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> EarlyExitOutput | tuple[Tensor, ...]:
        """Classify N rows.

        Args:
            input_ids: ``[N, S]`` int64 or int32, as the next two on the host or on the encoder's
                device. A GPU encoder packs them on the host: it waits for tensors that are on the
                GPU, not for those a tokenizer gives.
            attention_mask: ``[N, S]``, 1 for a token, 0 for padding; default all ones. Padding in
                front of a row changes nothing: it gives what the row gives without.
            token_type_ids: ``[N, S]`` int64 or int32; default all zeros.
            position_ids: ``[N, S]`` or ``[1, S]`` int64 or int32; default those of the family.
            labels: ``[N]``, or ``[N, C]`` for independent labels; the output then has a loss.
            inputs_embeds: not available.
            output_attentions: not available.
            output_hidden_states: not available.
            return_dict: False gives a tuple; default the configuration's.

        Raises:
            TypeError, ValueError: the argument named, what was expected, what came.
        """
        if inputs_embeds is not None or output_attentions or output_hidden_states:
            _refuse(inputs_embeds, output_attentions)
        engine = self._engine
        threads_start()
        with torch.inference_mode():
            inputs = pack_inputs(
                input_ids,
                attention_mask,
                token_type_ids,
                self._limits,
                self.device,
                self.backend,
                position_ids,
            )
        results = engine.classify(inputs)
        loss = None if labels is None else self.loss(labels.to(self.device), results.logits)
        output = EarlyExitOutput.of(results, loss)
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def predict(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: Any = None,
        batch_tokens: int = 2048,
        show_progress_bar: bool = False,
    ) -> EarlyExitOutput:
        """Classify any number of texts, or pairs of texts, in batches of like length.

        Some thousand rows are tokenized at a time, so that memory does not grow with their number.

        Args:
            texts: N strings, or N pairs of strings; longer ones are cut at the position limit, or
                at the tokens a checkpoint was trained with.
            tokenizer: default the encoder's own.
            batch_tokens: tokens a batch holds at most.
            show_progress_bar: on stderr.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise ValueError("tokenizer: expected one, as the encoder was made without")
        longest = min(self.max_positions, getattr(self.config, "max_tokens", None) or sys.maxsize)
        windows = token_windows(texts, tokenizer, longest)
        engine, padding_id = self._engine, self._limits.padding_id
        results = ExitResults.empty(len(texts), engine.exits.num_classes, self.device)
        threads_start()
        with torch.inference_mode(), tqdm(total=len(texts), disable=not show_progress_bar) as bar:
            for first, rows in windows:
                check_ids(rows, first, self._limits.vocab_size)
                lengths = [len(ids) for ids in rows.ids]
                for batch in token_budget_batches(lengths, batch_tokens):
                    inputs = pack_rows(rows, batch, padding_id, first)
                    engine.advance(inputs, 0, engine.stack.num_layers, results)
                    bar.update(len(batch))
        return EarlyExitOutput.of(results)


def _refuse(inputs_embeds: object, output_attentions: object) -> NoReturn:
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds: expected None; give input_ids")
    name = "output_attentions" if output_attentions else "output_hidden_states"
    raise ValueError(
        f"{name}: expected False, as rows leave at different layers and padding is dropped; "
        "ask the Hugging Face model"
    )


def _choose_dtype(
    asked: torch.dtype | None, weights: torch.dtype, device: torch.device
) -> torch.dtype:
    """The dtype asked for, else that of the weights unless the processor is slow in it."""
    if asked is None and weights == torch.float64:
        return torch.float32  # no kernel here computes the other
    dtype = asked or weights
    if dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype: expected one of {FLOAT_DTYPES}, got {dtype}")
    if asked is not None or device.type != "cpu" or is_fast(dtype):
        return dtype
    warnings.warn(
        f"dtype: the model is in {dtype}, which this processor multiplies slowly; it runs in "
        f"float32. dtype={dtype} keeps it.",
        stacklevel=3,
    )
    return torch.float32


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no such device, or torch not built for it
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device: expected one that torch can use here, got {device}: {reason}"
        ) from None
