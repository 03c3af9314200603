"""The texts of one trained decoder by every exit rule: measured once, kept in files.

A rule's ROUGE-L at a cost ratio is read between its two nearest measured points, text by text: a
random share of the texts runs at one of them, the rest at the other, and the mean cost is linear in
that share. The ends of every rule's curve are full depth and truncation at the first exit, where
its threshold lets all tokens leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from consistentee.atomic_files import Json, read_json, write_json
from consistentee.data.fingerprint import fingerprint
from consistentee.generation.answers import FULL_DEPTH, generate_all
from consistentee.generation.data import answered_rows, encode_prompts
from consistentee.generation.evaluate import free_cost, load_generator
from consistentee.generation.rouge import rouge
from consistentee.generation.rules import rules_at, truncations
from consistentee.generation.settings import GenerationSettings
from consistentee_ext.generation.rules import ExitRule

MAX_DEV_ROWS = 100  # that rules are set on
FULL = "full depth"
TRUNCATION = "truncation"
# What `consistentee.generation.rules.rules_at` sets, and truncation.
SET_METHODS = ("policy", "confidence", "saturation", "depth by position")
METHODS = (*SET_METHODS, TRUNCATION)
_TEXTS = ("prompt", "completion")


class SeedPoints:
    """The measured points of one seed.

    Args:
        folder: has the checkpoint ``model``; gets ``points``.
        dev_rows: rules are set on the first `MAX_DEV_ROWS` of them.
        test_rows: measured; with completions.
        settings: of the training; with ``bf16`` the model runs in bfloat16.
    """

    def __init__(
        self, folder: Path, dev_rows: Dataset, test_rows: Dataset, settings: GenerationSettings
    ) -> None:
        self.model, self.tokenizer = load_generator(folder / "model")
        if settings.bf16:
            self.model.bfloat16()
        self.max_new_tokens = settings.max_new_tokens
        self.references: list[str] = test_rows["completion"][:]
        self.prompts = self._encode("test", test_rows)
        dev_rows = dev_rows.select(range(min(len(dev_rows), MAX_DEV_ROWS)))
        self.dev_prompts = self._encode("dev", dev_rows)
        self.identity: Json = {
            "dev_rows": fingerprint(dev_rows, _TEXTS),
            "test_rows": fingerprint(test_rows, _TEXTS),
            "max_new_tokens": settings.max_new_tokens,
            "bf16": settings.bf16,
        }
        self.files = folder / "points"
        self.files.mkdir(exist_ok=True)

    def measured(self, ratios: Sequence[float]) -> dict[str, Json]:
        """All points, by name; those that are in files are read.

        Each has ``method``, ``rule``, ``mean_exit_layer``, ``cost_ratio`` and ``rougeL``, the
        ROUGE-L of each text against its completion.

        Raises:
            ValueError: a file is of other rows or settings, or a ratio is out of reach.
        """
        points = {FULL: self._point(FULL, FULL, FULL_DEPTH)}
        for ratio in ratios:
            names = {f"{method} at {ratio}": method for method in SET_METHODS}
            rules: dict[str, ExitRule] = {}
            if not all(self._file(name).exists() for name in names):
                rules = rules_at(self.model, self._dev_answers, ratio)
            for name, method in names.items():
                points[name] = self._point(name, method, rules.get(method))
        for layer, rule in truncations(self.model).items():
            name = f"{TRUNCATION} at layer {layer}"
            points[name] = self._point(name, TRUNCATION, rule)
        return points

    def _encode(self, name: str, rows: Dataset) -> list[list[int]]:
        longest = self.model.config.backbone.max_position_embeddings - self.max_new_tokens
        return encode_prompts(name, rows, self.tokenizer, longest)

    @cached_property
    def _dev_answers(self) -> Dataset:
        answers = generate_all(
            self.model, self.dev_prompts, self.max_new_tokens, FULL_DEPTH, "dev at full depth"
        )
        return answered_rows("dev", self.dev_prompts, answers.tokens)

    def _file(self, name: str) -> Path:
        return self.files / f"{name}.json"

    def _point(self, name: str, method: str, rule: Any) -> Json:
        """Measure, or read."""
        file = self._file(name)
        if file.exists():
            point = read_json(file)
            different = [n for n, value in self.identity.items() if point["run"].get(n) != value]
            if different:
                raise ValueError(
                    f"output: expected points of this run, got {file}, which has another "
                    f"{', '.join(different)}"
                )
            return point
        found = generate_all(
            self.model, self.prompts, self.max_new_tokens, rule, f"answers, {name}"
        )
        texts = self.tokenizer.batch_decode(found.tokens, skip_special_tokens=True)
        point = {
            "run": self.identity,
            "method": method,
            "rule": asdict(rule),
            **free_cost(self.model, found),
            "rougeL": rouge(texts, self.references)["rougeL"],
        }
        write_json(file, point)
        return read_json(file)


def texts_at_ratio(method: str, points: dict[str, Json], ratio: float) -> NDArray[np.float64]:
    """The ROUGE-L of each text by a method at a cost ratio, ``[N]``; see the module.

    Args:
        method: one of `METHODS`.
        points: of one seed.
        ratio: above 1, and at most that of truncation at the first exit.
    """
    truncated = [point for point in points.values() if point["method"] == TRUNCATION]
    ends = [points[FULL], max(truncated, key=lambda point: point["cost_ratio"])]
    curve = ends + [point for point in points.values() if point["method"] == method]
    cost = [1.0 / point["cost_ratio"] for point in curve]
    below = max((c, place) for place, c in enumerate(cost) if c <= 1.0 / ratio)[1]
    above = min((c, place) for place, c in enumerate(cost) if c >= 1.0 / ratio)[1]
    span = cost[above] - cost[below]
    share = (1.0 / ratio - cost[below]) / span if span else 0.0
    slow, fast = (np.array(curve[place]["rougeL"]) for place in (above, below))
    mixed: NDArray[np.float64] = share * slow + (1.0 - share) * fast
    return mixed
