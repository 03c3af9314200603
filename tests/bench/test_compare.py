"""The engines that benchmarks compare, on a tiny model: each gives the rows' logits."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from support.models import random_batch, tiny_model

pytest.importorskip("pytest_benchmark")
sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))
from compare import compare
from engines import ENGINES, FULL, LIMIT, OURS
from workloads import Workload

from consistentee.data.batch import Batch

# Without torch.compile, which takes too long here. What is not installed is named as absent.
NAMES = [name for name in ENGINES if "compile" not in name and "bf16" not in name]


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_engine_runs(pooling: str) -> None:
    batches: list[Batch] = [random_batch([5, 9, 3, 12], seed=1), random_batch([7, 2], seed=2)]
    for batch in batches:
        batch["token_type_ids"].zero_()
    shares = (0.25, 0.25, 0.25, 0.25)
    workload = Workload("tiny", tiny_model(pooling), batches, shares, labels=None, calibration=[])
    saved: list[dict[str, Any]] = []
    result = compare(workload, NAMES, 2, lambda part: saved.append(copy.deepcopy(part)))
    assert len(saved) == len(result["rows"]) + 2
    assert saved[-1] == result
    assert [part["repeats"] for part in saved[-3:]] == [0, 1, 2]
    assert {OURS, FULL, LIMIT} <= result["rows"].keys()
    assert result["rows"].keys() | result["absent"].keys() == set(NAMES)
    assert all(row["median"] > 0 for row in result["rows"].values())
    ours = result["rows"][OURS]
    assert ours["layer_ratio"] == pytest.approx(workload.layer_ratio)
    assert ours["over_limit"] == ours["median"] / result["rows"][LIMIT]["median"]


def test_full_depth_gives_hugging_faces_logits() -> None:
    workload = Workload(
        "tiny", tiny_model("cls"), [random_batch([5, 9, 3], seed=1)], None, None, []
    )
    with torch.inference_mode():
        expected = workload.model(**workload.batches[0]).logits
        (found,) = ENGINES[FULL](workload)()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in ENGINES if "bf16" in name])
def test_what_the_processor_only_emulates_is_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engines.is_fast", lambda dtype: dtype == torch.float32)
    workload = Workload(
        "tiny", tiny_model("cls"), [random_batch([5, 9, 3], seed=1)], None, None, []
    )
    result = compare(workload, [name], 1, lambda part: None)
    assert result["rows"] == {}
    assert result["absent"] == {name: "this processor only emulates bfloat16 products"}
