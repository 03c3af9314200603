from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from datasets import Dataset
from letters import SETTINGS, STEPS, tokenizer
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from consistentee import phases as phases_module
from consistentee import training as training_module
from consistentee.hardness import memorized_layer
from consistentee.losses import Losses
from consistentee.memorized import load_memorized_layers, row_hashes
from consistentee.modeling import ConsistentEEForSequenceClassification
from consistentee.splits import fold_rows, held_out_rows
from consistentee.trainer import PhaseTrainer
from consistentee.training import train, train_trunk
from consistentee_ext import FastEarlyExitEncoder


class Recorder(PhaseTrainer):
    """A trainer that keeps what each phase began with, ended with and was trained on, and the
    threads of its steps.
    """

    phases: ClassVar[list[Recorder]] = []

    def train(self, *args, **kwargs):
        self.before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.threads: set[int] = set()
        result = super().train(*args, **kwargs)
        self.after = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        Recorder.phases.append(self)
        return result

    def compute_loss(self, *args, **kwargs):
        self.threads.add(torch.get_num_threads())
        return super().compute_loss(*args, **kwargs)


@contextmanager
def recorded() -> Iterator[list[Recorder]]:
    """The phases that are trained inside, one after the other."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        yield Recorder.phases


@pytest.fixture(scope="module")
def phases(letters, tmp_path_factory) -> list[Recorder]:
    output = tmp_path_factory.mktemp("run") / "model"
    with recorded() as phases:
        train(*letters, output, tokenizer(), SETTINGS, policy_input="both")
    return phases


def test_output_is_a_hugging_face_folder(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json",
        "memorized_layers.safetensors",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.json",
    ]
    assert [path.name for path in trained.parent.iterdir()] == ["model"]
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    weights = load_file(trained / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())


def test_log_has_every_phase(letters, trained):
    log = train(*letters, trained, tokenizer(), SETTINGS)  # complete: read, not run again
    assert list(log["phases"]) == list(STEPS)
    for phase in log["phases"].values():
        assert len(phase["losses"]) == 2
        assert phase["seconds"] > 0
        assert len(phase["dev"]["layer_accuracy"]) == 3


def moved(phase: Recorder) -> set[str]:
    """What a phase changed: the trunk, the classifiers (with poolers), the policies."""

    def part(name: str) -> str:
        if name.startswith("backbone."):
            return "trunk"
        return "policies" if ".policy." in name else "classifiers"

    return {part(n) for n, p in phase.before.items() if not torch.equal(p, phase.after[n])}


def test_each_phase_moves_its_parameters_alone(phases):
    assert [phase.phase for phase in phases] == list(STEPS)
    for phase in phases:
        policies = phase.phase.startswith("policies")
        assert moved(phase) == ({"policies"} if policies else {"trunk", "classifiers"})


def test_policies_learn_on_one_thread(phases):
    """Their steps are too small to share."""
    threads = torch.get_num_threads()
    if threads == 1:
        pytest.skip("one thread is all there is")
    for phase in phases:
        assert phase.threads == ({1} if phase.phase.startswith("policies") else {threads})


def same_but_for_temperature(after: Recorder, before: Recorder) -> bool:
    """Whether a phase goes on from another's trunk, whose classifiers were calibrated between."""
    kept = {n: p for n, p in before.before.items() if ".policy." not in n}
    return all(torch.equal(p, after.after[n]) for n, p in kept.items() if ".classifier." not in n)


def test_each_trunk_goes_on_from_where_it_was(phases):
    held_out, trunk, policies, joint_held_out, joint, _ = phases
    assert all(torch.equal(p, trunk.before[n]) for n, p in held_out.before.items())
    assert same_but_for_temperature(held_out, joint_held_out)
    assert same_but_for_temperature(trunk, joint)
    for name in policies.after:
        if ".policy." in name:
            assert torch.equal(policies.after[name], joint.after[name])


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
    """What the trunk that a phase left makes of rows, one by one."""
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


def test_memorized_layers_are_those_of_the_trunk(phases, letters, trained):
    """Of what phase 1 leaves, unseen where that can be, looked up by what the row holds."""
    held_out, trunk = phases[:2]
    unseen = held_out_rows(letters.train["labels"], SETTINGS.held_out, SETTINGS.seed)
    stored = load_memorized_layers(trained)
    models = [load(letters.backbone, phase) for phase in (trunk, held_out)]
    for row, key, missed in zip(letters.train, row_hashes(letters.train), unseen, strict=True):
        with torch.no_grad():
            logits = models[int(missed)](input_ids=torch.tensor([row["input_ids"]])).exit_logits
        correct = logits.argmax(-1) == row["labels"]
        assert stored[key] >= memorized_layer(correct).item()
    assert set(stored) == set(row_hashes(letters.train))


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
def cross_fitted(letters, tmp_path_factory) -> list[Recorder]:
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
    for phase, mask in zip(folds, masks, strict=True):
        model = load(letters.backbone, phase)
        for row in np.flatnonzero(mask)[:4].tolist():
            with torch.no_grad():
                output = model.eval()(input_ids=torch.tensor([letters.train[row]["input_ids"]]))
            # Cooled: each layer's logits are divided by one number.
            ratio = output.exit_logits[0] / policies.train_dataset[row]["exit_logits"]
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)
        rows, seen = (letters.train.select(np.flatnonzero(m)) for m in (mask, ~mask))
        states = [states_of(letters.backbone, phase, part) for part in (rows, seen)]
        expected = mapped(*states, states_of(letters.backbone, trunk, seen))
        found = torch.stack([policies.train_dataset[row]["states"] for row in np.flatnonzero(mask)])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_policies_read_states_where_rows_are_enough(letters, tmp_path, monkeypatch):
    """12 of the 48 rows are held out; cross-fitting has all of them."""
    for enough, changes, expected in (
        (12, {}, "both"),
        (13, {}, "prediction"),
        (48, {"folds": 2}, "both"),
        (49, {"held_out": 0.0}, "prediction"),
    ):
        monkeypatch.setattr(training_module, "MIN_STATE_ROWS", enough)
        output = tmp_path / f"{enough}"
        train(*letters, output, tokenizer(), replace(SETTINGS, joint_epochs=0, **changes))
        model = AutoModelForSequenceClassification.from_pretrained(output)
        assert model.config.policy_input == expected


def test_a_seed_gives_one_trunk_whatever_the_policies_are_like(phases, letters, tmp_path):
    with recorded() as found:
        fields = {"policy_input": "state", "policy_size": 7, "alpha_range": [0.01, 0.1]}
        train(*letters, tmp_path / "model", tokenizer(), SETTINGS, **fields)
    trunk = {n: p for n, p in phases[1].after.items() if ".policy." not in n}
    assert all(torch.equal(p, found[1].after[n]) for n, p in trunk.items())


def test_iterations_alternate_phases_2_and_3(letters, tmp_path):
    settings = replace(SETTINGS, iterations=2)
    log = train(*letters, tmp_path / "model", tokenizer(), settings)
    assert [name for name in log["phases"] if "held_out" not in name] == [
        *("trunk", "policies", "joint", "policies.2", "joint.2", "policies.3"),
    ]


def test_without_phase_3_policies_learn_once(letters, tmp_path):
    log = train(*letters, tmp_path / "model", tokenizer(), replace(SETTINGS, joint_epochs=0))
    assert list(log["phases"]) == ["trunk.held_out", "trunk", "policies"]


@pytest.mark.parametrize("reward", ["plain", "oracle"])
def test_the_reward_decides_what_hardness_is(letters, tmp_path, reward, phases):
    with recorded() as found:
        train(*letters, tmp_path / "model", tokenizer(), replace(SETTINGS, reward=reward))
    joint = found[-2]
    if reward == "plain":
        assert "hardness" not in joint.train_dataset.column_names
        return
    guided = np.array(phases[-2].train_dataset["hardness"])
    oracle = np.array(joint.train_dataset["hardness"])
    assert (oracle <= guided).all()
    assert (oracle < guided).any()


def test_an_adjustable_model_is_trained_over_a_range_of_alpha(letters, tmp_path):
    seen: list[torch.Tensor] = []
    estimate = Losses._estimate

    def recorded(self, output, batch, loss):
        seen.append(batch["alpha"])
        return estimate(self, output, batch, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Losses, "_estimate", recorded)
        train(*letters, tmp_path / "model", tokenizer(), SETTINGS, alpha_range=[0.01, 1.0])
    drawn = torch.cat(seen)
    # One for each row of each batch of phases 2 and 3: 12 rows twice, 36 and 48, two epochs each.
    assert len(drawn) == 2 * (12 + 36 + 48 + 12)
    assert drawn.min() >= 0.01
    assert drawn.max() <= 1.0
    # Its logarithm is uniform: half of the draws lie below the geometric mean.
    assert 0.35 < (drawn < 0.1).float().mean() < 0.65
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model")
    assert model.config.alpha_range == [0.01, 1.0]
    encoder = FastEarlyExitEncoder(model, alpha=0.5)
    ids = torch.tensor([letters.dev[0]["input_ids"]])
    for alpha in (0.01, 0.5, 1.0):
        encoder.alpha = alpha
        with torch.no_grad():
            expected = model(input_ids=ids, alpha=alpha).policy_logits.sigmoid()[0, 0]
        encoder.threshold = max(expected.item() - 1e-4, 1e-6)
        found = encoder(ids)
        assert found.exit_layers.tolist() == [1]
        torch.testing.assert_close(found.exit_scores[0], expected, atol=1e-5, rtol=1e-4)


def test_the_trunk_alone_sees_every_row_for_as_many_epochs(letters, tmp_path):
    with recorded() as phases:
        log = train_trunk(*letters, tmp_path / "all", tokenizer(), SETTINGS)
        train_trunk(*letters, tmp_path / "two", tokenizer(), SETTINGS, num_layers=2)
    full, truncated = phases
    assert full.train_dataset["input_ids"] == letters.train["input_ids"]
    assert full.state.max_steps == (SETTINGS.epochs + SETTINGS.joint_epochs) * 6
    assert list(log["phases"]) == ["trunk"]
    assert moved(full) == {"trunk", "classifiers"}
    # Truncated: the first layers of the same backbone, and the last classifier alone.
    for name, value in truncated.before.items():
        if name.startswith("backbone."):
            assert torch.equal(value, full.before[name])
    changed = {n for n, p in truncated.before.items() if not torch.equal(p, truncated.after[n])}
    assert any(name.startswith("heads.1.classifier") for name in changed)
    assert "heads.0.classifier.bias" not in changed
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "two")
    assert len(model.heads) == 2
    assert not (tmp_path / "two" / "memorized_layers.safetensors").exists()


def test_regression(letters, tmp_path):
    """The number to predict is how far through the alphabet the first letter is."""
    parts = [
        part.remove_columns("labels").add_column(
            "labels", [(row["input_ids"][1] - 5) / 26 for row in part]
        )
        for part in (letters.train, letters.dev)
    ]
    options = {"problem_type": "regression", "num_labels": 1, "metric": "spearman"}
    settings = replace(SETTINGS, epochs=8, learning_rate=1e-3)
    log = train(letters.backbone, *parts, tmp_path / "model", tokenizer(), settings, **options)
    losses = log["phases"]["trunk"]["losses"]
    assert losses[-1] < losses[0] / 2
    dev = log["phases"]["joint"]["dev"]
    assert len(dev["layer_spearman"]) == 3
    assert -1 <= dev["spearman"] <= 1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_std"] == pytest.approx(np.std(parts[0]["labels"]))


def test_heads_have_their_own_learning_rate(phases):
    groups = phases[0].optimizer.param_groups
    peak = {round(group["initial_lr"], 12) for group in groups}
    assert peak == {SETTINGS.learning_rate, SETTINGS.learning_rate * SETTINGS.head_factor}
    trained = [name for name in phases[0].before if ".policy." not in name]
    assert sum(len(group["params"]) for group in groups) == len(trained)


def test_bad_input_leaves_nothing_behind(letters, tmp_path):
    output = tmp_path / "model"
    wrong = letters.train.map(lambda row: {"labels": row["labels"] + 1})
    long = Dataset.from_dict(
        {"input_ids": [[2] * 17], "attention_mask": [[1] * 17], "labels": [0], "length": [17]}
    )
    for bad, message in (
        ({"train": wrong}, r"^train_data: expected labels in 0\.\.1, got 1\.\.2$"),
        ({"dev": wrong}, r"^dev_data: expected labels in 0\.\.1, got 1\.\.2$"),
        ({"dev": letters.dev.select([])}, r"^dev_data: expected at least one row, got none$"),
        ({"train": long}, r"^train_data: .* at most 16 tokens, .* got 17$"),
        ({"train": letters.train.select([0])}, r"^train_data: 1 rows are too few"),
        ({"backbone": tmp_path / "none"}, r"^backbone: .*safetensors"),
    ):
        with pytest.raises(ValueError, match=message):
            train(*letters._replace(**bad), output, tokenizer(), SETTINGS)
    with pytest.raises(ValueError, match=r"^alpha: expected a number of at least 0, got -1$"):
        train(*letters, output, tokenizer(), SETTINGS, alpha=-1)
    with pytest.raises(ValueError, match=r"^num_labels: expected at least 2 classes, got 1$"):
        train(*letters, output, tokenizer(), SETTINGS, num_labels=1)
    assert not any(tmp_path.iterdir())
