"""FastEarlyExitEncoder: a Hugging Face classifier, run so that layers saved are time saved."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from tqdm.std import tqdm

from consistentee_ext.checkpoint import load_checkpoint, load_tokenizer
from consistentee_ext.engines.stepwise import StepwisePass
from consistentee_ext.exits.exit import model_exits
from consistentee_ext.exits.exits import choose_exits
from consistentee_ext.exits.rows import row_thresholds
from consistentee_ext.families import find_backbone, read_stack
from consistentee_ext.families.reader import Reader
from consistentee_ext.forks import threads_start, without_threads
from consistentee_ext.inputs import pack_inputs
from consistentee_ext.output import EarlyExitOutput
from consistentee_ext.packed import ExitResults
from consistentee_ext.packed_module import PackedModule
from consistentee_ext.placement import check_weights, choose_dtype, usable_device
from consistentee_ext.progress import progress_bar
from consistentee_ext.source import Source
from consistentee_ext.tokens import (
    TokenRows,
    check_budget,
    check_ids,
    pack_rows,
    token_budget_batches,
    token_windows,
    without_trailing,
)


class FastEarlyExitEncoder(PackedModule):
    """Runs a classifier on packed tokens and takes a row out of the batch at its exit layer.

    Stands in for the Hugging Face model: call it with the tokenizer's output, or hand it to a
    pipeline, a Trainer or a CrossEncoder. Rows come back in the caller's order, and what a row
    gives does not depend on the rows beside it. It can be copied, pickled and moved between
    devices; it cannot be trained.

    Args:
        model: a `ConsistentEEForSequenceClassification`, or a Hugging Face sequence classifier,
            which has no exit heads and runs at full depth, of a family in
            `consistentee_ext.families`. One of another family is copied and runs as it is, through
            its own layers on packed rows, where a check on random tokens finds that it can. It is
            read, never changed.
        dtype: float32, bfloat16 or float16, or its name; default the model's, or float32 for a
            float64 one and on a processor that multiplies the model's slowly. ``"auto"`` is the
            model's on every processor. Decisions and logits are float32.
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
        weights: ``"int8"``, on a CPU: the products of the layers read weights and activations of 8
            bits, each output's and each token's by a scale of its own; all else is in `dtype`,
            which is float32, or bfloat16 where there is AVX-512. Nothing is to be calibrated, but a
            threshold best is, with the same weights. Default: weights in `dtype`.

    Raises:
        TypeError, ValueError: the argument named, what was expected, what came.
        RuntimeError: the backend asked for cannot run here.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        backend: str | None = None,
        exit_layers: Sequence[int] | None = None,
        criterion: str | None = None,
        threshold: float | Sequence[float] | Mapping[int, float] | None = None,
        alpha: float | None = None,
        sync: str = "auto",
        tokenizer: Any = None,
        weights: str | None = None,
        _consume: bool = False,
    ) -> None:
        backbone: Any = find_backbone(model)
        config: Any = model.config
        weight = next(backbone.parameters())
        where = usable_device(device or weight.device)
        kind = choose_dtype(dtype, weight.dtype, where)
        check_weights(weights, kind, where)
        with without_threads():
            reader = Reader(
                backbone.config,
                kind,
                where,
                is_classifier=not hasattr(model, "heads"),
                consume=_consume,
                weights=weights,
            )
            by_layer = model_exits(model, backbone, reader)
            exits = choose_exits(by_layer, config, exit_layers, criterion, threshold)
            reader = replace(reader, one_query=exits.last.one_query)
            stack = read_stack(model, backbone, reader, backend)
        super().__init__(config, stack, exits, backend, alpha, sync)
        self.tokenizer = tokenizer

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
        """An encoder from a checkpoint folder or hub name: ConsistentEE, or a classifier that the
        class takes.

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
        # The model is used nowhere else: each layer is freed once it is read.
        options["_consume"] = True
        encoder = cls(model, dtype=dtype, device=device, backend=backend, **options)
        if encoder.tokenizer is None:
            encoder.tokenizer = load_tokenizer(source)
        return encoder

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
        *,
        row_threshold: Tensor | None = None,
        row_max_layers: Tensor | None = None,
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
            row_threshold: ``[N]`` floating point, one threshold in (0, 1] a row, in place of
                `threshold`: one batch may mix rows of different speeds.
            row_max_layers: ``[N]`` int64 or int32: a row leaves at the last exit layer at or below
                its bound, if its score has not let it leave before.

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
        if row_threshold is not None or row_max_layers is not None:
            rows = len(inputs.row_ids)
            thresholds = row_thresholds(engine.exits, rows, row_threshold, row_max_layers)
            engine = engine.with_exits(replace(engine.exits, row_thresholds=thresholds))
        if torch.is_autocast_enabled(self.device.type):  # a pass has a dtype of its own
            with torch.autocast(self.device.type, enabled=False):
                results = engine.classify(inputs)
        else:
            results = engine.classify(inputs)
        loss = None if labels is None else self.loss(labels, results.logits)
        output = EarlyExitOutput.of(results, loss)
        if return_dict is None:
            return_dict = self.config.return_dict
        return output if return_dict else output.to_tuple()

    def stream(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        row_threshold: Tensor | None = None,
        row_max_layers: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, EarlyExitOutput]]:
        """Classify N rows and give each one's results when it leaves, not at the batch's end.

        Together the parts are what a call gives: each row is in one of them.

        Args:
            input_ids: as the others as in `forward`.
            attention_mask: as in `forward`.
            token_type_ids: as in `forward`.
            position_ids: as in `forward`.
            row_threshold: as in `forward`.
            row_max_layers: as in `forward`.

        Yields:
            The numbers of the rows that left at an exit layer, ``[k]`` int64 on the host, and
            their results, of k rows in that order. Exit layers at which no row left are skipped.

        Raises:
            TypeError, ValueError: the argument named, what was expected, what came.
        """
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
        rows = len(inputs.row_ids)
        thresholds = row_thresholds(engine.exits, rows, row_threshold, row_max_layers)
        return _stream(StepwisePass(engine, inputs, thresholds))

    def predict(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: Any = None,
        batch_tokens: int = 2048,
        show_progress_bar: bool = False,
    ) -> EarlyExitOutput:
        """Classify any number of texts, or pairs of texts, in batches of like length.

        Args:
            texts: N strings, or N pairs of strings; longer ones are cut at the position limit, or
                at the tokens a checkpoint was trained with.
            tokenizer: default the encoder's own.
            batch_tokens: tokens a batch holds at most.
            show_progress_bar: on stderr.
        """
        windows = self.predict_windows(texts, tokenizer, batch_tokens, show_progress_bar)
        classes = self._engine.exits.num_classes
        nothing = EarlyExitOutput.of(ExitResults.empty(0, classes, self.device))
        parts = [nothing, *windows]
        return EarlyExitOutput(
            logits=torch.cat([part.logits for part in parts]),
            exit_layers=torch.cat([part.exit_layers for part in parts]),
            exit_scores=torch.cat([part.exit_scores for part in parts]),
        )

    def predict_windows(
        self,
        texts: Sequence[str] | Sequence[tuple[str, str]],
        tokenizer: Any = None,
        batch_tokens: int = 2048,
        show_progress_bar: bool = False,
        first_row: int = 0,
    ) -> Generator[EarlyExitOutput]:
        """As `predict`, some thousand rows at a time, in their order: each is tokenized when it is
        asked for, so that memory does not grow with N.

        Args:
            texts: as in `predict`.
            tokenizer: as in `predict`.
            batch_tokens: as in `predict`.
            show_progress_bar: as in `predict`.
            first_row: rows before it are left out.
        """
        tokenizer = tokenizer or self.tokenizer
        if tokenizer is None:
            raise ValueError("tokenizer: expected one, as the encoder was made without")
        check_budget(batch_tokens)
        windows = token_windows(texts, tokenizer, self.max_tokens, first_row)
        bar = progress_bar(len(texts), "predict", "row", show_progress_bar, first_row)
        return self._predict(windows, batch_tokens, bar)

    def _predict(
        self, windows: Iterator[tuple[int, TokenRows]], batch_tokens: int, bar: tqdm[Any]
    ) -> Generator[EarlyExitOutput]:
        padding_id = self._limits.padding_id
        threads_start()
        with bar:
            for first, rows in windows:
                check_ids(rows, first, self._limits.vocab_size)
                if self._limits.trailing_id is not None:
                    rows = without_trailing(rows, self._limits.trailing_id)
                engine = self._engine
                results = ExitResults.empty(len(rows.ids), engine.exits.num_classes, self.device)
                lengths = [len(ids) for ids in rows.ids]
                for batch in token_budget_batches(lengths, batch_tokens):
                    inputs = pack_rows(rows, batch, padding_id)
                    with (
                        torch.inference_mode(),
                        torch.autocast(self.device.type, enabled=False),
                    ):
                        engine.advance(inputs, 0, engine.stack.num_layers, results)
                    bar.update(len(batch))
                yield EarlyExitOutput.of(results)


def _stream(steps: StepwisePass) -> Iterator[tuple[Tensor, EarlyExitOutput]]:
    while len(steps.rows):
        left = steps.step()
        if len(left):
            places = left.to(steps.results.logits.device)
            parts = ExitResults(*(result[places] for result in steps.results))
            yield left, EarlyExitOutput.of(parts)


def _refuse(inputs_embeds: object, output_attentions: object) -> NoReturn:
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds: expected None; give input_ids")
    name = "output_attentions" if output_attentions else "output_hidden_states"
    raise ValueError(
        f"{name}: expected False, as rows leave at different layers and padding is dropped; "
        "ask the Hugging Face model"
    )
