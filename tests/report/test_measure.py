"""A report of a random checkpoint, against counts by hand from the model's own outputs."""

from __future__ import annotations

import random
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from support.models import save_backbone, scramble
from transformers import AutoTokenizer, BertTokenizer

from consistentee.evaluation.evaluate import load_model
from consistentee.measures.curves import Curve
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.report import measure as report_data
from consistentee.report.contents import ClassDepth, Report, ScoreBin
from consistentee.report.measure import (
    build_report,
    class_depths,
    hardness_table,
    mean_curves,
    score_bins,
    spread_thresholds,
    time_thresholds,
)
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.criteria import PLAIN_CRITERIA

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnop"]
CLASSES = ["tea", "coffee", "milk"]
ROWS = 60


def save_checkpoint(folder: Path, **config: Any) -> None:
    """Three layers, random."""
    save_backbone(folder / "backbone", WORDS)
    model = ConsistentEEForSequenceClassification.from_backbone(folder / "backbone", **config)
    scramble(model, seed=16).save_pretrained(folder / "model")
    BertTokenizer.from_pretrained(folder / "backbone").save_pretrained(folder / "model")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    save_checkpoint(
        folder,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
        policy_input="both",  # with this seed rows leave at every layer
        alpha=0.1,
        alpha_range=[0.01, 0.9],
    )
    return folder / "model"


@pytest.fixture(scope="module")
def table() -> Dataset:
    choose = random.Random(0)
    texts = [" ".join(choose.choices(WORDS[5:], k=choose.randint(1, 9))) for _ in range(ROWS)]
    labels = [choose.choice(CLASSES) for _ in range(ROWS)]
    return Dataset.from_dict({"sentence1": texts, "label": labels})


@pytest.fixture(scope="module")
def report(checkpoint: Path, table: Dataset) -> Report:
    return build_report(checkpoint, table)


class Row:
    """One row at every layer, and where the policy lets it leave."""

    def __init__(self, label: int, logits: torch.Tensor, policy: torch.Tensor) -> None:
        self.label = label
        self.scores = policy.sigmoid().tolist()
        self.answers = logits.argmax(dim=-1).tolist()
        self.right = [answer == label for answer in self.answers]
        early = [layer for layer, score in enumerate(self.scores, start=1) if score > 0.5]
        self.exit = min(early, default=3)
        streaks = [layer for layer in (1, 2, 3) if all(self.right[layer - 1 :])]
        self.memorized = min(streaks, default=3)


@pytest.fixture(scope="module")
def rows(checkpoint: Path, table: Dataset) -> list[Row]:
    """Each row by itself, without padding."""
    model = load_model(checkpoint)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    found = []
    for text, label in zip(table["sentence1"], table["label"], strict=True):
        with torch.no_grad():
            output = model(**tokenizer(text, return_tensors="pt"))
        found.append(Row(CLASSES.index(label), output.exit_logits[0], output.policy_logits[0]))
    assert {row.exit for row in found} == {1, 2, 3}
    assert {row.memorized for row in found} == {1, 2, 3}
    return found


def test_what_is_measured_is_what_is_evaluated(report: Report, rows: list[Row]) -> None:
    exits = [row.exit for row in rows]
    right = [row.right[row.exit - 1] for row in rows]
    assert report.title == "model"
    assert report.seeds is None
    assert report.metrics["accuracy"] == pytest.approx(sum(right) / ROWS)
    assert report.metrics["mean_exit_layer"] == pytest.approx(sum(exits) / ROWS)
    assert report.exit_histogram == [exits.count(layer) for layer in (1, 2, 3)]


def test_curves_of_the_same_weights(report: Report, rows: list[Row]) -> None:
    assert list(report.curves) == [
        "this checkpoint, by policy",
        *(f"by {name}, same weights" for name in PLAIN_CRITERIA),
        "every row stops at this layer",
        "oracle",
    ]
    layer_accuracy = [sum(row.right[layer] for row in rows) / ROWS for layer in range(3)]
    ours = report.curves["this checkpoint, by policy"]
    assert ours.at(report.metrics["mean_exit_layer"]) == pytest.approx(report.metrics["accuracy"])
    assert ours.accuracy[-1] == pytest.approx(layer_accuracy[2])
    truncation = report.curves["every row stops at this layer"]
    assert truncation.layers == (1.0, 2.0, 3.0)
    assert truncation.accuracy == pytest.approx(layer_accuracy)
    # Patience leaves at layer 2 where the two answers so far agree: one exit of two, score 1/2.
    exits = [2 if row.answers[0] == row.answers[1] else 3 for row in rows]
    right = [row.right[layer - 1] for row, layer in zip(rows, exits, strict=True)]
    patience = report.curves["by patience, same weights"]
    assert patience.at(sum(exits) / ROWS) == pytest.approx(sum(right) / ROWS)
    assert report.curves["oracle"].accuracy[-1] == sum(any(row.right) for row in rows) / ROWS


def test_hardness_counts_rows(report: Report, rows: list[Row]) -> None:
    pairs = [(row.memorized, row.exit) for row in rows]
    assert report.hardness == [
        [pairs.count((memorized, left)) for left in (1, 2, 3)] for memorized in (1, 2, 3)
    ]
    means = [
        statistics.fmean(row.exit for row in rows if row.memorized == layer) for layer in (1, 2, 3)
    ]
    assert report.mean_exit_by_hardness() == pytest.approx(means)


def test_scores_are_measured_by_whether_they_tell_right_from_wrong(
    report: Report, rows: list[Row]
) -> None:
    """The chance that of a right answer and a wrong one the right one has the higher score."""
    for layer, found in enumerate(report.failure_auroc):
        right = [row.scores[layer] for row in rows if row.right[layer]]
        wrong = [row.scores[layer] for row in rows if not row.right[layer]]
        wins = [(a > b) + (a == b) / 2 for a in right for b in wrong]
        assert found == pytest.approx(statistics.fmean(wins), abs=1e-3)
    assert len(report.failure_auroc) == 2


def test_reliability_is_of_the_layers_that_rows_reach(report: Report, rows: list[Row]) -> None:
    reached = sorted(
        (row.scores[layer], row.right[layer], row.exit == layer + 1)
        for row in rows
        for layer in range(min(row.exit, 2))
    )
    assert sum(each.answers for each in report.reliability) == len(reached) > ROWS
    sizes = [each.answers for each in report.reliability]
    assert len(sizes) == 10
    assert max(sizes) - min(sizes) <= 1
    start = 0
    for each in report.reliability:
        inside = reached[start : start + each.answers]
        start += each.answers
        assert each.low == pytest.approx(inside[0][0], abs=1e-5)
        assert each.high == pytest.approx(inside[-1][0], abs=1e-5)
        assert each.score == pytest.approx(statistics.fmean(s for s, _, _ in inside), abs=1e-5)
        assert each.right == pytest.approx(statistics.fmean(right for _, right, _ in inside))
        assert each.left == sum(left for _, _, left in inside)


def test_classes_by_depth(report: Report, rows: list[Row]) -> None:
    expected = []
    for number, name in enumerate(CLASSES):
        mine = [row for row in rows if row.label == number]
        depth = statistics.fmean(row.exit for row in mine)
        right = [row.right[row.exit - 1] for row in mine]
        expected.append(ClassDepth(name, depth, sum(right) / len(mine), len(mine)))
    found = sorted(report.classes, key=lambda each: CLASSES.index(each.label))
    for one, other in zip(found, expected, strict=True):
        assert one.mean_exit_layer == pytest.approx(other.mean_exit_layer)
        assert (one.label, one.rows) == (other.label, other.rows)
        assert one.accuracy == pytest.approx(other.accuracy)
    depths = [each.mean_exit_layer for each in report.classes]
    assert depths == sorted(depths)


def test_timings_spread_from_shallow_to_full_depth(report: Report, rows: list[Row]) -> None:
    layers = [timing.mean_exit_layer for timing in report.timings]
    assert len(layers) == 6
    assert layers == sorted(layers)
    assert layers == pytest.approx([1.0, 1.4, 1.8, 2.2, 2.6, 3.0], abs=0.1)
    assert report.timings[-1].threshold == 1.0
    for timing in report.timings:
        early = [[n for n, s in enumerate(row.scores, 1) if s > timing.threshold] for row in rows]
        mean = statistics.fmean(min(layers, default=3) for layers in early)
        # A threshold is some row's score, which padding moves in its last bits.
        assert timing.mean_exit_layer == pytest.approx(mean, abs=2.01 / ROWS)
        assert len(timing.passes) == 3
        assert min(timing.passes) > 0


def test_examples_are_the_first_and_the_last_to_leave(
    report: Report, rows: list[Row], table: Dataset
) -> None:
    assert len(report.first_out) == len(report.last_out) == 8
    order = sorted(rows, key=lambda row: (row.exit, -[*row.scores, 1.0][row.exit - 1]))
    for example, row in zip(report.first_out, order, strict=False):
        assert (example.exit_layer, example.label) == (row.exit, CLASSES[row.label])
        assert example.predicted == CLASSES[row.answers[row.exit - 1]]
        assert example.text == table["sentence1"][rows.index(row)]
    assert {example.exit_layer for example in report.last_out} == {3}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_data, "REPEATS", 1)


@pytest.mark.usefixtures("quick")
def test_threshold_and_alpha_are_those_asked_for(checkpoint: Path, table: Dataset) -> None:
    pairs = table.add_column("sentence2", ["p"] * ROWS)
    found = build_report(checkpoint, pairs, "Mine", threshold=0.6, alpha=0.9)
    assert found.title == "Mine"
    assert found.first_out[0].text.endswith(" | p")
    # All exits and scores are of the same alpha: who left had a score above the threshold.
    assert found.metrics["threshold"] == 0.6
    for each in found.reliability:
        if each.low > 0.6:
            assert each.left == each.answers
        elif each.high < 0.6:
            assert each.left == 0
    assert sum(each.left for each in found.reliability) == sum(found.exit_histogram[:2])
    mean, accuracy = found.metrics["mean_exit_layer"], found.metrics["accuracy"]
    assert found.curves["this checkpoint, by policy"].at(mean) == pytest.approx(accuracy)
    default = build_report(checkpoint, pairs, threshold=0.6)
    assert default.reliability != found.reliability


@pytest.mark.usefixtures("quick")
def test_compared_methods_take_the_place_of_other_criteria(
    checkpoint: Path, table: Dataset
) -> None:
    seeds = [
        {"ours": [[1.0, 3.0], [0.5, 0.9]], "truncation": [[2.0, 3.0], [0.6, 0.8]]},
        {"ours": [[1.5, 2.0, 3.0], [0.6, 0.7, 0.8]], "truncation": [[2.0, 3.0], [0.8, 0.9]]},
    ]
    found = build_report(checkpoint, table, comparison={"rows": ROWS, "curves": seeds})
    assert list(found.curves) == ["this checkpoint, by policy", "ours", "truncation"]
    assert found.seeds == 2
    ours, truncation = found.curves["ours"], found.curves["truncation"]
    # From where both seeds have a curve on.
    assert (ours.layers[0], ours.layers[-1]) == (1.5, 3.0)
    assert (ours.accuracy[0], ours.accuracy[-1]) == pytest.approx((0.6, 0.85))
    assert ours.at(2.0) == pytest.approx(0.7)
    assert truncation.layers[0] == 2.0
    assert truncation.at(2.5) == pytest.approx((0.7 + 0.85) / 2)


def test_a_comparison_must_fit() -> None:
    curves = [{"ours": [[1.0, 3.0], [0.5, 0.9]]}]
    with pytest.raises(ValueError, match=r"comparison: expected 'rows' and 'curves'.*'seeds'"):
        mean_curves({"seeds": [1]}, 7, 3)
    with pytest.raises(ValueError, match="comparison: expected one on 7 rows, got 8"):
        mean_curves({"rows": 8, "curves": curves}, 7, 3)
    with pytest.raises(ValueError, match="expected curves of 4 layers, got 'ours' of 3"):
        mean_curves({"rows": 7, "curves": curves}, 7, 4)


def test_regression_has_no_report(tmp_path: Path, table: Dataset) -> None:
    save_checkpoint(tmp_path, num_labels=1, problem_type="regression", metric="spearman")
    with pytest.raises(ValueError, match="checkpoint: expected a classifier, got a regression"):
        build_report(tmp_path / "model", table)


def test_hardness_table_by_hand() -> None:
    memorized, exits = torch.tensor([1, 1, 3, 3, 3]), torch.tensor([1, 2, 3, 3, 1])
    assert hardness_table(memorized, exits, 3) == [[1, 1, 0], [0, 0, 0], [1, 0, 2]]


def test_equal_scores_share_a_bin() -> None:
    # Row 1 leaves at layer 1; rows 2 to 4 reach layer 2, where row 2 leaves.
    scores = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.5], [0.0, 0.0]])
    correct = torch.tensor([[1, 1, 1], [0, 1, 1], [1, 0, 1], [0, 0, 0]]).bool()
    assert score_bins(scores, correct, torch.tensor([1, 2, 3, 3])) == [
        ScoreBin(low=0.0, high=0.0, score=0.0, right=0.25, answers=4, left=0),
        ScoreBin(low=0.5, high=0.5, score=0.5, right=0.0, answers=1, left=0),
        ScoreBin(low=1.0, high=1.0, score=1.0, right=1.0, answers=2, left=2),
    ]
    nothing = torch.zeros(2, 0)
    assert score_bins(nothing, correct[:2, :1], torch.tensor([1, 1])) == []


def test_class_depths_by_hand() -> None:
    labels, predicted = torch.tensor([2, 0, 0, 2]), torch.tensor([2, 0, 2, 0])
    exits = torch.tensor([1, 3, 2, 1])
    assert class_depths(labels, predicted, exits, CLASSES) == [
        ClassDepth("milk", 1.0, 0.5, 2),
        ClassDepth("tea", 2.5, 0.5, 2),
    ]


def test_thresholds_are_spread_by_depth() -> None:
    layers = (1.0, 1.1, 1.9, 2.4, 3.0, 4.8, 5.0)
    curve = Curve(layers, (0.5,) * 7, (-1.0, 0.1, 0.2, 0.3, 0.4, 0.9, 1.0))
    assert spread_thresholds(curve, 5) == [0.1, 0.2, 0.4, 0.9, 1.0]
    assert spread_thresholds(Curve((1.0,), (0.5,), (-1.0,))) == [1.0]
    few = Curve((1.0, 2.0, 5.0), (0.5,) * 3, (-1.0, 0.5, 1.0))
    assert spread_thresholds(few) == [0.5, 1.0]


def test_each_threshold_is_timed_in_whole_passes(checkpoint: Path) -> None:
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    batches = [{"input_ids": torch.tensor([[2, 6, 3], [2, 7, 3]])}] * 2
    low, full = time_thresholds(encoder, batches, [1e-6, 1.0])
    assert (low.mean_exit_layer, full.mean_exit_layer) == (1.0, 3.0)
    assert full.seconds == statistics.median(full.passes)
    assert encoder.threshold == 1.0
