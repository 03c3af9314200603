"""The rows that policies learn from, and their outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from support.letters import SETTINGS, Letters, tokenizer
from support.recorder import Recorder, moved, recorded
from transformers import AutoModelForSequenceClassification

from consistentee.measures.hardness import memorized_layer
from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee.training import train as training_module
from consistentee.training.held_out import fold_rows, held_out_rows
from consistentee.training.train import train


def test_policies_learn_from_rows_that_one_trunk_has_not_seen(phases, letters):
    held_out, trunk, policies, joint_held_out, joint, last = phases
    unseen = held_out_rows(letters.train["labels"], SETTINGS.held_out, SETTINGS.seed)
    seen = letters.train.select(np.flatnonzero(~unseen))
    expected = letters.train.select(np.flatnonzero(unseen))
    for phase in (held_out, joint_held_out):
        assert phase.train_dataset["input_ids"] == seen["input_ids"]
    for phase in (trunk, joint):
        assert phase.train_dataset["input_ids"] == letters.train["input_ids"]
    for phase in (policies, last):
        assert [int(row["labels"]) for row in phase.train_dataset] == expected["labels"]
    assert not any(joint.train_dataset["for_policies"])
    layers = np.array(joint.train_dataset["hardness"])
    assert [int(row["hardness"]) for row in policies.train_dataset] == layers[unseen].tolist()


def load(backbone: Path, phase: Recorder) -> ConsistentEEForSequenceClassification:
    """The model as a phase left it."""
    build = ConsistentEEForSequenceClassification.from_backbone
    model = build(backbone, policy_input="both")
    model.load_state_dict(phase.after)
    return model.eval()


def states_of(backbone: Path, phase: Recorder, rows: Dataset) -> torch.Tensor:
    """Outputs of the trunk that a phase left, row by row."""
    model = load(backbone, phase)
    with torch.no_grad():
        ids = [torch.tensor([row["input_ids"]]) for row in rows]
        return torch.cat([model.eval()(input_ids=row).states for row in ids])


def mapped(states: torch.Tensor, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """States mapped as those of `source` map to `target`: ridge regression in closed form."""
    layers = []
    for s, x, y in zip(
        *(part.double().unbind(1) for part in (states, source, target)), strict=True
    ):
        centred = x - x.mean(0)
        gram = centred.T @ centred
        penalty = 1e-3 * gram.diagonal().mean() * torch.eye(len(gram)).double()
        weight = torch.linalg.solve(gram + penalty, centred.T @ (y - y.mean(0)))
        layers.append((s - x.mean(0)) @ weight + y.mean(0))
    return torch.stack(layers, dim=1).float()


def test_policies_learn_once_more_what_the_classifiers_are_like_in_the_end(phases, letters):
    """From the rows the second trunk misses, its states mapped to those of the model's trunk."""
    held_out, trunk, policies, joint_held_out, joint, last = phases
    unseen = held_out_rows(letters.train["labels"], SETTINGS.held_out, SETTINGS.seed)
    rows, seen = (letters.train.select(np.flatnonzero(mask)) for mask in (unseen, ~unseen))
    for phase, second, first in ((policies, held_out, trunk), (last, joint_held_out, joint)):
        states = [states_of(letters.backbone, second, part) for part in (rows, seen)]
        expected = mapped(*states, states_of(letters.backbone, first, seen))
        found = torch.stack([row["states"] for row in phase.train_dataset])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_memorized_layers_are_those_of_phase_1(phases, letters):
    """Of the trunk that was not trained on a row, where there is one."""
    held_out, trunk, _, _, joint, _ = phases
    unseen = held_out_rows(letters.train["labels"], SETTINGS.held_out, SETTINGS.seed)
    models = [load(letters.backbone, phase) for phase in (trunk, held_out)]
    found = joint.train_dataset["hardness"]
    for row, layer, missed in zip(letters.train, found, unseen, strict=True):
        with torch.no_grad():
            logits = models[int(missed)](input_ids=torch.tensor([row["input_ids"]])).exit_logits
        correct = logits.argmax(-1) == row["labels"]
        assert layer == memorized_layer(correct).item()


def test_without_held_out_rows_policies_learn_from_all(letters, tmp_path):
    """The paper's way: no row is kept from phase 1, and nothing is there to calibrate on."""
    with recorded() as phases:
        train(*letters, tmp_path / "model", tokenizer(), replace(SETTINGS, held_out=0.0))
    trunk, policies, joint = phases
    assert trunk.train_dataset["input_ids"] == letters.train["input_ids"]
    assert [int(row["labels"]) for row in policies.train_dataset] == letters.train["labels"]
    assert all(joint.train_dataset["for_policies"])
    assert moved(joint) == {"trunk", "classifiers", "policies"}
    name = "heads.0.classifier.weight"
    assert torch.equal(trunk.after[name], policies.before[name])


@pytest.fixture(scope="module")
def cross_fitted(letters: Letters, tmp_path_factory) -> list[Recorder]:
    output = tmp_path_factory.mktemp("run") / "model"
    settings = replace(SETTINGS, folds=3)
    with recorded() as phases:
        train(*letters, output, tokenizer(), settings, policy_input="both")
    return phases


def test_cross_fitting_holds_out_each_fold_in_turn(cross_fitted, letters):
    folds, (trunk, policies), joint = cross_fitted[:3], cross_fitted[3:5], cross_fitted[5:-1]
    masks = fold_rows(letters.train["labels"], 3, SETTINGS.seed)
    for phase, mask in zip([*folds, *joint[:3]], masks * 2, strict=True):
        expected = letters.train.select(np.flatnonzero(~mask))
        assert phase.train_dataset["input_ids"] == expected["input_ids"]
    for phase in folds:
        assert all(torch.equal(phase.before[n], folds[0].before[n]) for n in phase.before)
    for phase in (trunk, joint[3]):
        assert phase.train_dataset["input_ids"] == letters.train["input_ids"]
    assert all(torch.equal(trunk.before[n], folds[0].before[n]) for n in trunk.before)
    assert [int(row["labels"]) for row in policies.train_dataset] == letters.train["labels"]


def test_policies_of_cross_fitting_read_what_the_trunk_that_had_not_seen_a_row_says(
    cross_fitted, letters
):
    folds, trunk, policies = cross_fitted[:3], cross_fitted[3], cross_fitted[4]
    masks = fold_rows(letters.train["labels"], 3, SETTINGS.seed)
    own: list[torch.Tensor] = []
    found: list[torch.Tensor] = []
    for phase, mask in zip(folds, masks, strict=True):
        model = load(letters.backbone, phase)
        for row in np.flatnonzero(mask)[:4].tolist():
            with torch.no_grad():
                output = model.eval()(input_ids=torch.tensor([letters.train[row]["input_ids"]]))
            own.append(output.exit_logits[0])
            found.append(policies.train_dataset[row]["exit_logits"])
        rows, seen = (letters.train.select(np.flatnonzero(m)) for m in (mask, ~mask))
        states = [states_of(letters.backbone, phase, part) for part in (rows, seen)]
        expected = mapped(*states, states_of(letters.backbone, trunk, seen))
        aligned = [policies.train_dataset[row]["states"] for row in np.flatnonzero(mask)]
        torch.testing.assert_close(torch.stack(aligned), expected, atol=1e-4, rtol=1e-3)
    # Calibrated: one temperature a layer, and one bias a class, of the rows of all folds.
    for before, after in zip(torch.stack(own, 1), torch.stack(found, 1), strict=True):
        ratios = after.diff(dim=0) / before.diff(dim=0)
        torch.testing.assert_close(ratios, ratios[:1, :1].expand_as(ratios), rtol=1e-3, atol=0)


def test_policies_read_states_where_rows_are_enough(letters, tmp_path, monkeypatch):
    """12 of the 48 rows are held out; cross-fitting has all of them."""
    brief = replace(SETTINGS, epochs=1, policy_epochs=1, joint_epochs=0)
    for enough, changes, expected in (
        (12, {}, "both"),
        (13, {}, "prediction"),
        (48, {"folds": 2}, "both"),
        (49, {"held_out": 0.0}, "prediction"),
    ):
        monkeypatch.setattr(training_module, "MIN_STATE_ROWS", enough)
        output = tmp_path / f"{enough}"
        train(*letters, output, tokenizer(), replace(brief, **changes))
        model = AutoModelForSequenceClassification.from_pretrained(output)
        assert model.config.policy_input == expected
