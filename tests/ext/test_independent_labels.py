"""Independent labels: the criteria by other formulas, and every backend and engine beside them."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from support.exit_cases import clone, decide_by, make_batch, make_results, make_weights
from support.models import random_batch, tiny_classifier, tiny_model
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from consistentee.measures.exit_scores import exit_scores
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.criteria import MULTI_LABEL_CRITERIA, check_criterion
from consistentee_ext.names import MULTI_LABEL
from consistentee_ext.ops import load_ops
from consistentee_ext.ops.prediction import answers, no_answers, prediction_statistics
from consistentee_ext.packed import ExitResults, PackedBatch
from consistentee_ext.weights import HeadWeights

INF, NAN = float("inf"), float("nan")
LENGTHS = [5, 2, 9, 30, 9, 1, 12, 7, 3, 4, 4, 17]


def statistics_of(z: np.ndarray) -> list[float]:
    """Confidence, probability margin, certainty and logit margin of a row of float64 logits."""
    p = 1.0 / (1.0 + np.exp(-z))
    entropies = [entropy([label, 1.0 - label], base=2) for label in p]
    return [
        np.maximum(p, 1.0 - p).min(),
        np.abs(2.0 * p - 1.0).min(),
        1.0 - max(entropies),
        np.abs(z).min(),
    ]


def test_statistics_by_other_formulas() -> None:
    logits = 3 * torch.randn(50, 4, generator=torch.Generator().manual_seed(3))
    found = prediction_statistics(logits, no_answers(logits, True), multi_label=True)
    expected = torch.tensor([statistics_of(row) for row in logits.double().numpy()])
    torch.testing.assert_close(found[:, :4].double(), expected, atol=1e-5, rtol=1e-4)
    assert not found[:, 4].any()


def test_sets_agree_as_a_whole() -> None:
    logits = torch.tensor([[1.0, -2.0, 3.0], [-1.0, -1.0, -0.5], [0.5, 0.5, -3.0]])
    assert answers(logits, True).tolist() == [[1, 0, 1], [0, 0, 0], [1, 1, 0]]
    assert torch.equal(answers(logits, True) == 1, logits.sigmoid() > 0.5)
    previous = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 0, 0]])
    assert prediction_statistics(logits, previous, True)[:, 4].tolist() == [1, 1, 0]
    none = no_answers(logits, True)  # an empty set is not the same as none
    assert prediction_statistics(logits, none, True)[:, 4].tolist() == [0, 0, 0]


def two_layers(backend: str, weights: HeadWeights, pooled: list[Tensor]) -> ExitResults:
    """Two exit layers that no row leaves early, the second of which is the last."""
    rows, classes = len(pooled[0]), len(weights.classifier_bias)
    results = ExitResults.empty(rows, classes)
    batch = make_batch([1] * rows, pooled[0].shape[1], torch.float32)
    batch = batch._replace(row_ids=torch.arange(rows))
    for layer, values in enumerate(pooled, start=1):
        decision = decide_by(results, "patience", 1.0, layer, max_streak=1, last=layer == 2)
        batch = load_ops(backend).exit_step(batch, values, weights, decision, results)
    return results


def test_patience_compares_the_sets_of_two_layers(backend: str) -> None:
    """A head that shows its input: signs are kept, one changed, and all."""
    weights = HeadWeights(torch.eye(2), torch.zeros(2), multi_label=True)
    first = torch.tensor([[0.5, -0.5], [0.5, -0.5], [-0.5, -0.5], [-0.5, -0.5]])
    second = torch.tensor([[2.0, -0.1], [0.5, 0.5], [-1.0, -1.0], [1.0, 1.0]])
    results = two_layers(backend, weights, [first, second])
    assert results.exit_scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    torch.testing.assert_close(results.logits, second.tanh(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("policy_input", ["state", "prediction", "both"])
@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
@pytest.mark.parametrize("classes", [1, 2, 5, 77])
@pytest.mark.needs_native
def test_the_compiled_exit_step_is_the_reference(
    dtype: torch.dtype, policy_input: str, criterion: str, classes: int
) -> None:
    torch.manual_seed(classes)
    batch = make_batch([3, 1, 4, 2, 7, 5, 1], 19, dtype)
    weights = make_weights(19, classes, policy_input)._replace(multi_label=True)
    start = make_results(10, classes, multi_label=True)
    for last in (True, False):
        pooled = torch.randn(7, 19).to(dtype)
        outcomes = []
        for name in ("torch", "cpu"):
            results = clone(start)
            decision = decide_by(results, criterion, 0.55, layer=2, max_streak=3, last=last)
            stay = load_ops(name).exit_step(batch, pooled, weights, decision, results)
            outcomes.append((stay, results))
        (stay, expected), (found_stay, found) = outcomes
        assert found_stay.row_ids.tolist() == stay.row_ids.tolist()
        assert torch.equal(found.streaks, expected.streaks)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.exit_layers, expected.exit_layers)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.exit_scores, expected.exit_scores, atol=1e-5, rtol=1e-4)
        start = expected  # so that some sets agree with those of the layer before
        start.exit_layers.zero_()


@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
@pytest.mark.parametrize("bias", [[NAN, 1.0], [1.0, NAN], [INF, 1.0], [-INF, INF], [NAN, INF]])
def test_logits_that_are_not_finite(criterion: str, bias: list[float], backend: str) -> None:
    """A NaN is never sure; an infinite label is surer than any other."""
    weights = HeadWeights(torch.zeros(2, 8), torch.tensor(bias), multi_label=True)
    results = ExitResults.empty(1, 2)
    batch = PackedBatch(
        torch.zeros(1, 8), torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1).long()
    )
    decision = decide_by(results, criterion, 0.1, last=True)
    load_ops(backend).exit_step(batch, torch.zeros(1, 8), weights, decision, results)
    p = 1.0 / (1.0 + math.exp(-1.0))
    finite = 1.0 in bias and not any(map(math.isnan, bias))
    expected = {
        "policy": 1.0,
        "confidence": p if finite else NAN,
        "entropy": 1.0 - entropy([p, 1.0 - p], base=2) if finite else NAN,
        "patience": 0.0,
    }[criterion]
    assert results.exit_scores.item() == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("criterion", MULTI_LABEL_CRITERIA)
def test_rows_leave_where_the_models_own_outputs_say(
    criterion: str, pooling: str, backend: str
) -> None:
    model = tiny_model(pooling, problem_type=MULTI_LABEL)
    inputs = random_batch(LENGTHS, seed=3)
    with torch.no_grad():
        output = model(**inputs)
    scores = exit_scores(criterion, output.exit_logits, output.policy_logits, multi_label=True)
    # Where a row leaves, row by row: the first layer above the threshold.
    edges = scores.flatten().unique()
    middles = ((edges[1:] + edges[:-1]) / 2)[edges.diff() > 1e-4]
    layers = set()
    for threshold in middles[:: max(len(middles) // 6, 1)].tolist():
        encoder = FastEarlyExitEncoder(
            model, criterion=criterion, threshold=threshold, backend=backend
        )
        found = encoder(**inputs)
        for row, row_scores in enumerate(scores.tolist()):
            above = [layer for layer, score in enumerate(row_scores, start=1) if score > threshold]
            layer = above[0] if above else 4
            assert found.exit_layers[row] == layer
            expected = output.exit_logits[row, layer - 1]
            torch.testing.assert_close(found.logits[row], expected, atol=1e-4, rtol=1e-4)
            layers.add(layer)
    assert len(layers) >= (2 if criterion == "patience" else 3)


def test_scores_of_all_layers_by_other_formulas() -> None:
    logits = 2 * torch.randn(40, 4, 3, generator=torch.Generator().manual_seed(5))
    nothing = torch.zeros(40, 3)
    for column, criterion in ((0, "confidence"), (2, "entropy")):
        found = exit_scores(criterion, logits, nothing, multi_label=True)
        expected = [[statistics_of(z)[column] for z in row[:-1]] for row in logits.double().numpy()]
        torch.testing.assert_close(found.double(), torch.tensor(expected), atol=1e-5, rtol=1e-4)
    streaks = []
    for row in (logits > 0).tolist():
        streak, of_row = 0, []
        for layer in range(3):
            streak = streak + 1 if layer and row[layer] == row[layer - 1] else 0
            of_row.append(streak / 3)
        streaks.append(of_row)
    found = exit_scores("patience", logits, nothing, multi_label=True)
    torch.testing.assert_close(found, torch.tensor(streaks))
    assert len(found.unique()) >= 3


def test_a_hugging_face_checkpoint(tmp_path: Path, backend: str) -> None:
    tiny_classifier(classes=5, problem_type=MULTI_LABEL).save_pretrained(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    encoder = FastEarlyExitEncoder.from_pretrained(tmp_path, backend=backend, tokenizer=object())
    inputs = random_batch(LENGTHS, seed=3)
    found = encoder(**inputs)
    with torch.no_grad():
        expected = model(**inputs).logits
    torch.testing.assert_close(found.logits, expected, atol=1e-5, rtol=1e-4)
    p = expected.sigmoid()
    confidence = torch.maximum(p, 1 - p).amin(dim=1)
    torch.testing.assert_close(found.exit_scores, confidence, atol=1e-5, rtol=1e-4)


def test_energy_is_refused_everywhere(backend: str) -> None:
    message = r"^criterion: expected one of \('policy', 'confidence', 'entropy', 'patience'\) for"
    with pytest.raises(ValueError, match=message):
        check_criterion("energy", multi_label=True)
    with pytest.raises(ValueError, match=message):
        ConsistentEEConfig(problem_type=MULTI_LABEL, criterion="energy", num_labels=3)
    with pytest.raises(ValueError, match=message):
        exit_scores("energy", torch.zeros(2, 3, 4), torch.zeros(2, 2), multi_label=True)
    encoder = FastEarlyExitEncoder(tiny_model(problem_type=MULTI_LABEL), backend=backend)
    with pytest.raises(ValueError, match=message):
        encoder.criterion = "energy"
    weights = make_weights(8, 3, None)._replace(multi_label=True)
    results = ExitResults.empty(5, 3)
    decision = decide_by(results, "energy", 0.5)
    with pytest.raises(ValueError, match=message):
        load_ops(backend).exit_step(
            make_batch([1, 2], 8, torch.float32), torch.zeros(2, 8), weights, decision, results
        )
    FastEarlyExitEncoder(tiny_model(), criterion="energy")  # of classes
