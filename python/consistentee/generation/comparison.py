"""Compares a decoder's trained exits with other exit rules, by the quality of texts at equal cost.

For each seed a decoder is trained (`consistentee.generation.train.train`). Each rule of
`consistentee.generation.rules` is set on dev to each of `RATIOS`; then test prompts are answered
with it, and texts compared with the completions.

`consistentee.generation.points` measures them, and reads each rule at exactly these ratios.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray

from consistentee.atomic_files import Json, write_json
from consistentee.generation.points import FULL, METHODS, SeedPoints, texts_at_ratio
from consistentee.generation.settings import DecoderFields, GenerationSettings
from consistentee.generation.train import train
from consistentee.measures.intervals import mean_interval

if TYPE_CHECKING:
    from typing_extensions import Unpack

RATIOS = (1.25, 1.5)
COMPARISON_FILE = "comparison.json"


def compare_generators(
    backbone: str | os.PathLike[str],
    train_rows: Dataset,
    dev_rows: Dataset,
    test_rows: Dataset,
    output: str | os.PathLike[str],
    settings: GenerationSettings,
    seeds: Sequence[int],
    every_layer: bool = False,
    **fields: Unpack[DecoderFields],
) -> Json:
    """Train a decoder for each seed, answer the test prompts by every rule, compare the texts.

    Called again it resumes: trainings go on where they were, and points that were measured are read
    from their files.

    Args:
        backbone: as in `consistentee.generation.train.train`, as the next two.
        train_rows: to train on.
        dev_rows: rules are set on the first `consistentee.generation.points.MAX_DEV_ROWS` of
            them.
        test_rows: with completions.
        output: folder for ``comparison.json``, the result, and for each seed ``seed-<seed>``: the
            checkpoint ``model`` and the measured ``points``.
        settings: how to train; its seed is replaced by each of `seeds`. With ``bf16`` rules are
            measured in bfloat16 too.
        seeds: one or more.
        every_layer: as in `train`.
        fields: of the model's configuration.

    Returns:
        ``rows``, ``seeds``, ``ratios``, ``full_depth``, the ROUGE-L of full depth, and for each
        method by name a list with, for each ratio, ``rougeL``; ``over_full_depth``, the difference
        to full depth; and of all but the policy ``under_policy``, by how much the policy is above
        it. Each of these has ``mean``, ``sd`` and ``values`` over seeds; differences have ``low``
        and ``high`` too, the paired bootstrap's interval of 95% over texts, each of which counts
        with its mean over seeds. ``points``: for each seed, by name, the rules
        and their costs.

    Raises:
        ValueError: no seed, a seed given twice, a folder of another run, or as `train`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds: expected one or more, all different, got {list(seeds)}")
    folder = Path(output)
    runs = []
    for seed in seeds:
        of_seed = folder / f"seed-{seed}"
        chosen = replace(settings, seed=seed)
        train(backbone, train_rows, dev_rows, of_seed / "model", chosen, every_layer, **fields)
        runs.append(SeedPoints(of_seed, dev_rows, test_rows, chosen).measured(RATIOS))
    result = {
        "rows": len(test_rows),
        "seeds": list(seeds),
        "ratios": list(RATIOS),
        **_summary(runs),
    }
    write_json(folder / COMPARISON_FILE, result)
    return result


def _summary(runs: Sequence[dict[str, Json]]) -> Json:
    """The results of all seeds together."""
    full = np.array([run[FULL]["rougeL"] for run in runs])  # [seeds, N]
    at: dict[str, list[NDArray[np.float64]]] = {
        method: [np.array([texts_at_ratio(method, run, ratio) for run in runs]) for ratio in RATIOS]
        for method in METHODS
    }
    methods: dict[str, list[Json]] = {}
    for method in METHODS:
        methods[method] = []
        for texts, of_policy in zip(at[method], at["policy"], strict=True):
            figures = {"rougeL": _spread(texts), "over_full_depth": _difference(texts - full)}
            if method != "policy":
                figures["under_policy"] = _difference(of_policy - texts)
            methods[method].append(figures)
    points = [
        {
            name: {k: v for k, v in p.items() if k not in ("run", "rougeL")}
            for name, p in run.items()
        }
        for run in runs
    ]
    return {"full_depth": _spread(full), "methods": methods, "points": points}


def _spread(texts: NDArray[np.float64]) -> Json:
    """Mean and standard deviation over seeds of ``[seeds, N]``; the deviation of one seed is 0."""
    values = texts.mean(axis=1).tolist()
    return {
        "mean": fmean(values),
        "sd": stdev(values) if len(values) > 1 else 0.0,
        "values": values,
    }


def _difference(texts: NDArray[np.float64]) -> Json:
    low, high = mean_interval(texts.mean(axis=0))
    return {**_spread(texts), "low": low, "high": high}
