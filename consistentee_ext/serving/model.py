"""An encoder as the batcher runs it: texts to rows, rows to answers step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from consistentee_ext.encoder import FastEarlyExitEncoder
from consistentee_ext.engines.stepwise import StepwisePass
from consistentee_ext.exits.rows import row_thresholds
from consistentee_ext.forks import threads_start
from consistentee_ext.serving.request import Answer, Row
from consistentee_ext.tokens import (
    TokenRows,
    check_ids,
    pack_rows,
    without_trailing,
)


class TooLongError(ValueError):
    """A row has more tokens than the model takes, and is not to be cut."""


class EmptyRowError(ValueError):
    """A row has no tokens."""


class EncoderModel:
    """Tokenizes for an encoder and starts its passes; one thread at a time may do either."""

    def __init__(self, encoder: FastEarlyExitEncoder) -> None:
        if encoder.tokenizer is None:
            raise ValueError("encoder: expected one with a tokenizer, got one without")
        self.encoder = encoder
        self.num_layers = encoder.num_layers

    def tokenize(
        self, texts: Sequence[str | tuple[str, str]], truncate: bool, side: str
    ) -> list[Row]:
        """Rows of single texts and pairs, mixed.

        Args:
            texts: N of them.
            truncate: whether rows are cut at the tokens the model takes.
            side: at which end, ``"right"`` or ``"left"``.

        Raises:
            TooLongError: a row is longer, and not to be cut.
            EmptyRowError: a row has no tokens.
        """
        tokenizer: Any = self.encoder.tokenizer
        longest = self.encoder.max_tokens
        tokenizer.truncation_side = side
        found: list[Row | None] = [None] * len(texts)
        for paired in (False, True):
            chosen = [row for row, text in enumerate(texts) if isinstance(text, tuple) == paired]
            if not chosen:
                continue
            given = [texts[row] for row in chosen]
            columns = [list(part) for part in zip(*given, strict=True)] if paired else [given]
            encoded = tokenizer(
                *columns,
                truncation=truncate,
                max_length=longest if truncate else None,
                padding=False,
                verbose=False,
            )
            ids = encoded["input_ids"]
            types = encoded.get("token_type_ids") or [[0] * len(row) for row in ids]
            for row, parts in zip(chosen, zip(ids, types, strict=True), strict=True):
                found[row] = Row(*parts)
        return self._checked([row for row in found if row is not None], longest)

    def _checked(self, found: list[Row], longest: int) -> list[Row]:
        limits = self.encoder._limits
        rows = TokenRows([row.ids for row in found], [row.types for row in found])
        check_ids(rows, 0, limits.vocab_size)
        if limits.trailing_id is not None:
            rows = without_trailing(rows, limits.trailing_id)
        if not all(rows.ids):
            raise EmptyRowError("`inputs` cannot be empty")
        most = max(map(len, rows.ids), default=0)
        if most > longest:
            raise TooLongError(f"`inputs` must have less than {longest} tokens. Given: {most}")
        return [Row(*parts) for parts in zip(rows.ids, rows.types, strict=True)]

    def start(
        self,
        rows: Sequence[Row],
        thresholds: Sequence[float],
        max_layers: Sequence[int | None],
    ) -> EncoderSteps:
        """A pass over N rows, with a threshold and a bound each."""
        return EncoderSteps(self.encoder, rows, thresholds, max_layers)


class EncoderSteps:
    """A pass from exit to exit, whose answers are plain numbers."""

    def __init__(
        self,
        encoder: FastEarlyExitEncoder,
        rows: Sequence[Row],
        thresholds: Sequence[float],
        max_layers: Sequence[int | None],
    ) -> None:
        threads_start()
        engine = encoder._engine
        lists = TokenRows([row.ids for row in rows], [row.types for row in rows])
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row].ids))
        inputs = pack_rows(lists, order, encoder._limits.padding_id)
        bounds = [bound or encoder.num_layers for bound in max_layers]
        table = row_thresholds(
            engine.exits, len(rows), torch.tensor(thresholds), torch.tensor(bounds)
        )
        self._pass = StepwisePass(engine, inputs, table)
        self._thresholds = torch.tensor(thresholds, dtype=torch.float32)
        # Where a row leaves in any case: there its deadline changes nothing.
        self._last = [max(at for at in encoder.exit_layers if at <= bound) for bound in bounds]
        self._released: set[int] = set()

    def rows(self) -> list[int]:
        """Those that have not left."""
        left: list[int] = self._pass.rows.tolist()
        return left

    def work(self, steps: int) -> int:
        """See `StepwisePass.work`."""
        return self._pass.work(steps)

    def release(self, rows: list[int]) -> None:
        """See `StepwisePass.release`."""
        self._released.update(rows)
        self._pass.release(rows)

    def step(self, whole: bool) -> list[tuple[int, Answer]]:
        """See `StepwisePass.step`: the rows that left, with their answers."""
        left = self._pass.step(whole)
        if not len(left):
            return []
        results = self._pass.results
        places = left.to(results.logits.device)
        logits = results.logits[places].tolist()
        layers = results.exit_layers[places].tolist()
        sure = (results.exit_scores[places].cpu() > self._thresholds[left]).tolist()
        return [
            (row, Answer(values, layer, self._was_cut(row, layer, above)))
            for row, values, layer, above in zip(left.tolist(), logits, layers, sure, strict=True)
        ]

    def _was_cut(self, row: int, layer: int, above: bool) -> bool:
        return row in self._released and not above and layer < self._last[row]
