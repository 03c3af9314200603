"""A whole training: its phases, what each of them changes, what is left on disk."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from support.letters import SETTINGS, STEPS, tokenizer
from support.recorder import Recorder, moved, recorded
from transformers import AutoModelForSequenceClassification

from consistentee.training.consistent_weights import ConsistentWeights
from consistentee.training.losses import Losses
from consistentee.training.train import train, train_trunk
from consistentee_ext import FastEarlyExitEncoder


def test_output_is_a_hugging_face_folder(trained):
    assert sorted(path.name for path in trained.iterdir()) == [
        "config.json",
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
        assert len(phase["dev"]["layer_accuracy"]) == 3
    # In tenths: a phase of a few small steps may have none.
    seconds = [phase["seconds"] for phase in log["phases"].values()]
    assert min(seconds) >= 0
    assert sum(seconds) > 0


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


def same_but_for_calibration(after: Recorder, before: Recorder) -> bool:
    """Whether a phase goes on from another's trunk, whose classifiers were calibrated between."""
    kept = {n: p for n, p in before.before.items() if ".policy." not in n}
    return all(torch.equal(p, after.after[n]) for n, p in kept.items() if ".classifier." not in n)


def test_each_trunk_goes_on_from_where_it_was(phases):
    held_out, trunk, policies, joint_held_out, joint, _ = phases
    assert all(torch.equal(p, trunk.before[n]) for n, p in held_out.before.items())
    assert same_but_for_calibration(held_out, joint_held_out)
    assert same_but_for_calibration(trunk, joint)
    for name in policies.after:
        if ".policy." in name:
            assert torch.equal(policies.after[name], joint.after[name])


def test_a_seed_gives_one_trunk_whatever_the_policies_are_like(phases, letters, tmp_path):
    with recorded() as found:
        fields = {"policy_input": "state", "policy_size": 7, "alpha_range": [0.01, 0.1]}
        train(*letters, tmp_path / "model", tokenizer(), SETTINGS, **fields)
    trunk = {n: p for n, p in phases[1].after.items() if ".policy." not in n}
    assert all(torch.equal(p, found[1].after[n]) for n, p in trunk.items())


def test_iterations_alternate_phases_2_and_3(letters, tmp_path):
    settings = replace(SETTINGS, iterations=2, epochs=1, policy_epochs=1, joint_epochs=1)
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


def test_an_objective_in_place_of_phase_1s_sees_how_far_the_phase_is(letters, tmp_path):
    seen = []

    class Recorded(ConsistentWeights):
        def weights(self, scores, progress):
            seen.append(progress.item())
            return super().weights(scores, progress)

    with recorded() as phases:
        log = train_trunk(*letters, tmp_path / "model", tokenizer(), SETTINGS, objective=Recorded())
    steps = STEPS["joint"] * 2
    assert seen == pytest.approx([step / steps for step in range(steps)])
    assert log["run"]["settings"]["objective"]["decay"] == ConsistentWeights().decay
    assert moved(phases[0]) == {"trunk", "classifiers"}
    with pytest.raises(ValueError, match=r"^output: expected a folder of this run, .* settings$"):
        train_trunk(*letters, tmp_path / "model", tokenizer(), SETTINGS)


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


def test_a_phase_shows_one_bar_with_its_name_and_its_loss(letters, tmp_path, capsys, monkeypatch):
    steps = STEPS["joint"] * 2
    log = train_trunk(*letters, tmp_path / "model", tokenizer(), SETTINGS)
    out, err = capsys.readouterr()
    assert not out
    loss = log["phases"]["trunk"]["losses"][-1]
    assert re.findall("^trunk: .*$", err, re.MULTILINE) == [
        f"trunk: {steps} of {steps} in 00:00, 00:00 left, loss={loss:.4g}"
    ]
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train_trunk(*letters, tmp_path / "again", tokenizer(), SETTINGS)
    err = capsys.readouterr().err
    assert re.search(rf"\rtrunk: 100%.* {steps}/{steps} .*loss={loss:.4g}\]", err)


def test_bad_input_leaves_nothing_behind(letters, tmp_path):
    output = tmp_path / "model"
    wrong = letters.train.map(lambda row: {"labels": row["labels"] + 1})
    long = Dataset.from_dict(
        {
            "input_ids": [[2] * 17] * 8,
            "attention_mask": [[1] * 17] * 8,
            "labels": [0, 1] * 4,
            "length": [17] * 8,
        }
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


def test_sets_of_labels_are_checked(letters, tmp_path):
    for row, got in (
        ([0.0, 2.0], r"0\.0\.\.2\.0 of shape \(48, 2\)"),
        ([1.0] * 3, r".* \(48, 3\)"),
    ):
        data = letters.train.remove_columns("labels").add_column("labels", [row] * 48)
        with pytest.raises(ValueError, match=rf"^train_data: expected 2 numbers 0 or 1 .* {got}$"):
            train(letters.backbone, data, data, tmp_path / "model", tokenizer(), SETTINGS,
                  problem_type="multi_label_classification", num_labels=2)  # fmt: skip
    assert not any(tmp_path.iterdir())
