"""The comparison of a decoder's exit rules, against sums by hand, and its resumption."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from support.decoder_folder import SETTINGS, WORDS, rows, save_decoder, tables

from consistentee.generation import points
from consistentee.generation.comparison import RATIOS, compare_generators
from consistentee.generation.evaluate import load_generator
from consistentee.generation.points import FULL, METHODS, texts_at_ratio
from consistentee.generation.rouge import rouge
from consistentee.measures.intervals import mean_interval
from consistentee_ext.generation.prompts import encode_prompt
from consistentee_ext.generation.reference import generate
from consistentee_ext.generation.rules import PolicyRule

TEST = Dataset.from_list(rows(10, 3))
GOLD = replace(SETTINGS, target="gold", tokens=120, policy_tokens=40)


def point(method: str, ratio: float, *rouge_l: float) -> dict[str, Any]:
    return {"method": method, "cost_ratio": ratio, "rougeL": list(rouge_l)}


def test_a_ratio_is_read_between_the_two_nearest_points() -> None:
    found = {
        FULL: point(FULL, 1.0, 40.0, 20.0),
        "a": point("truncation", 1.25, 30.0, 10.0),
        "b": point("truncation", 2.0, 10.0, 0.0),
        "c": point("policy", 1.6, 35.0, 18.0),
    }
    # A random half of the texts at full depth, half at ratio 2: 1 / (1 / 2 + 1 / 4) = 4 / 3.
    assert texts_at_ratio("saturation", found, 4 / 3).tolist() == pytest.approx([25.0, 10.0])
    assert texts_at_ratio("truncation", found, 1.25).tolist() == [30.0, 10.0]
    share = (1 / 1.4 - 1 / 2) / (1 / 1.25 - 1 / 2)
    expected = [10 + 20 * share, 10 * share]
    assert texts_at_ratio("truncation", found, 1.4).tolist() == pytest.approx(expected)
    share = (1 / 1.25 - 1 / 1.6) / (1 - 1 / 1.6)
    expected = [35 + 5 * share, 18 + 2 * share]
    assert texts_at_ratio("policy", found, 1.25).tolist() == pytest.approx(expected)


def test_the_interval_of_a_mean_difference() -> None:
    """Of many rows it is the normal distribution's."""
    differences = np.random.default_rng(1).gamma(2.0, 3.0, size=2000) - 5.0
    low, high = mean_interval(differences)
    error = differences.std() / np.sqrt(2000)
    assert low == pytest.approx(differences.mean() - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(differences.mean() + 1.96 * error, abs=0.1 * error)
    assert mean_interval(differences, 0.5)[1] - differences.mean() < 0.8 * error
    assert mean_interval(np.full(5, 2.0)) == (2.0, 2.0)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_decoder(tmp_path_factory.mktemp("decoder") / "decoder")


def test_a_comparison_goes_on_where_it_was_killed(
    backbone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    made = []
    whole = points.generate_all

    def counted(model: Any, prompts: Any, most: int, rule: Any, name: str) -> Any:
        made.append(name)
        if len(made) == 4:
            raise KeyboardInterrupt
        return whole(model, prompts, most, rule, name)

    monkeypatch.setattr(points, "generate_all", counted)

    def compare(test: Dataset = TEST) -> Any:
        return compare_generators(backbone, *tables(), test, output, GOLD, (5, 6), readout="trunk")

    with pytest.raises(KeyboardInterrupt):
        compare()
    assert not (output / "comparison.json").exists()
    found = compare()
    truncated = [f"answers, truncation at layer {layer}" for layer in (1, 2, 3)]
    at = [[f"answers, {method} at {ratio}" for method in METHODS[:4]] for ratio in RATIOS]
    first, dev = f"answers, {FULL}", "dev at full depth"
    assert made[:3] == [first, dev, at[0][0]]
    # Policy at the first ratio is kept; what died, and all after it, is made.
    rest = [*at[0][1:], *at[1], *truncated]
    assert made[3:] == [rest[0], dev, *rest, first, dev, *at[0], *at[1], *truncated]
    before = len(made)
    assert compare() == found == json.loads((output / "comparison.json").read_text())
    assert len(made) == before
    with pytest.raises(ValueError, match=r"full depth\.json, which has another test_rows$"):
        compare(Dataset.from_list(rows(10, 4)))
    check_figures(output, found)


def check_figures(output: Path, found: Any) -> None:
    assert (found["rows"], found["seeds"], found["ratios"]) == (10, [5, 6], [*RATIOS])
    assert list(found["methods"]) == [*METHODS]
    full = []
    for seed in (5, 6):
        model, read = load_generator(output / f"seed-{seed}" / "model")
        prompts = [encode_prompt(read, text) for text in TEST["prompt"]]
        tokens = generate(model, prompts, 6, PolicyRule(1.0)).tokens
        texts = [" ".join(WORDS[i] for i in ids if i > 2) for ids in tokens]
        full.append(rouge(texts, TEST["completion"][:])["rougeL"])
    means = [sum(values) / 10 for values in full]
    assert found["full_depth"]["values"] == pytest.approx(means)
    assert found["full_depth"]["sd"] == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    policy = found["methods"]["policy"][0]
    assert "under_policy" not in policy
    for method in METHODS:
        for figures in found["methods"][method]:
            over = figures["over_full_depth"]
            assert over["mean"] == pytest.approx(
                figures["rougeL"]["mean"] - found["full_depth"]["mean"]
            )
            assert over["low"] <= over["mean"] <= over["high"]
    under = found["methods"]["truncation"][0]
    assert under["under_policy"]["mean"] == pytest.approx(
        policy["rougeL"]["mean"] - under["rougeL"]["mean"]
    )
    of_seed = found["points"][1]
    assert of_seed["truncation at layer 2"]["mean_exit_layer"] == 2.0
    assert of_seed["truncation at layer 2"]["rule"] == {"first": 2, "last": 2, "length": 1}
    assert of_seed[f"confidence at {RATIOS[0]}"]["rule"].keys() == {"threshold", "layers"}


def test_what_cannot_be_compared(backbone: Path, tmp_path: Path) -> None:
    for seeds in ((), (3, 3)):
        with pytest.raises(ValueError, match=r"^seeds: expected one or more, all different, got"):
            compare_generators(backbone, *tables(), TEST, tmp_path / "out", GOLD, seeds)
    assert not (tmp_path / "out").exists()
