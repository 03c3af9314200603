from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from conftest import save_backbone
from datasets import Dataset
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    BertTokenizerFast,
)

from consistentee import phases as phases_module
from consistentee.hardness import memorized_layer
from consistentee.losses import Losses
from consistentee.memorized import load_memorized_layers, row_hashes
from consistentee.modeling import ConsistentEEForSequenceClassification
from consistentee.settings import TrainingSettings
from consistentee.splits import fold_rows, held_out_rows
from consistentee.trainer import PhaseTrainer
from consistentee.training import train, train_trunk
from consistentee_ext import FastEarlyExitEncoder

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SETTINGS = TrainingSettings(
    epochs=2,
    policy_epochs=2,
    joint_epochs=2,
    batch_size=8,
    policy_batch_size=8,
    joint_batch_size=8,
    held_out=0.25,
    bf16=False,
)
# All 48 rows train a trunk, 36 one that misses the 12 that policies learn from: steps of 8 rows,
# two epochs each.
STEPS = {
    "trunk.held_out": 2 * 5,
    "trunk": 2 * 6,
    "policies": 2 * 2,
    "joint.held_out": 2 * 5,
    "joint": 2 * 6,
    "policies.2": 2 * 2,
}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    """A random 3-layer encoder with a tokenizer of single letters."""
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, VOCABULARY)
    return folder


def tokenizer() -> BertTokenizerFast:
    return BertTokenizerFast(vocab={word: number for number, word in enumerate(VOCABULARY)})


def letters(rows: int, seed: int) -> Dataset:
    """Random letters; the class is whether the first comes before n."""
    generator = np.random.default_rng(seed)
    ids = [[2, *generator.integers(5, 31, generator.integers(1, 9)), 3] for _ in range(rows)]
    return Dataset.from_dict(
        {
            "input_ids": ids,
            "attention_mask": [[1] * len(row) for row in ids],
            "token_type_ids": [[0] * len(row) for row in ids],
            "length": [len(row) for row in ids],
            "labels": [int(row[1] >= 18) for row in ids],
        }
    )


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset]:
    return letters(48, seed=1), letters(16, seed=2)


@pytest.fixture(scope="module")
def trained(backbone, data, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("run") / "model"
    train(backbone, *data, output, tokenizer(), SETTINGS)
    return output


class Recorder(PhaseTrainer):
    """A trainer that keeps what each phase began with, ended with and was trained on."""

    phases: ClassVar[list[Recorder]] = []

    def train(self, *args, **kwargs):
        self.before = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        result = super().train(*args, **kwargs)
        self.after = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        Recorder.phases.append(self)
        return result


@pytest.fixture(scope="module")
def phases(backbone, data, tmp_path_factory) -> list[Recorder]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        train(backbone, *data, tmp_path_factory.mktemp("run") / "model", tokenizer(), SETTINGS)
        return Recorder.phases


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


def test_log_has_every_phase(backbone, data, trained):
    log = train(backbone, *data, trained, tokenizer(), SETTINGS)  # complete: read, not run again
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


def test_policies_learn_from_rows_that_one_trunk_has_not_seen(phases, data):
    held_out, trunk, policies, joint_held_out, joint, last = phases
    unseen = held_out_rows(data[0]["labels"], SETTINGS.held_out, SETTINGS.seed)
    seen = data[0].select(np.flatnonzero(~unseen))
    expected = data[0].select(np.flatnonzero(unseen))
    for phase in (held_out, joint_held_out):
        assert phase.train_dataset["input_ids"] == seen["input_ids"]
    for phase in (trunk, joint):
        assert phase.train_dataset["input_ids"] == data[0]["input_ids"]
    for phase in (policies, last):
        assert [int(row["labels"]) for row in phase.train_dataset] == expected["labels"]
    assert not any(joint.train_dataset["for_policies"])
    layers = np.array(joint.train_dataset["hardness"])
    assert [int(row["hardness"]) for row in policies.train_dataset] == layers[unseen].tolist()


def states_of(backbone: Path, phase: Recorder, row: dict) -> torch.Tensor:
    model = ConsistentEEForSequenceClassification.from_backbone(backbone)
    model.load_state_dict(phase.after)
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([row["input_ids"]])).states[0]


def test_policies_learn_once_more_what_the_classifiers_are_like_in_the_end(phases, data, backbone):
    held_out, _, policies, joint_held_out, _, last = phases
    unseen = held_out_rows(data[0]["labels"], SETTINGS.held_out, SETTINGS.seed)
    row = data[0][int(np.flatnonzero(unseen)[0])]
    for phase, trunk in ((policies, held_out), (last, joint_held_out)):
        expected = states_of(backbone, trunk, row)
        torch.testing.assert_close(phase.train_dataset[0]["states"], expected)


def test_memorized_layers_are_those_of_the_trunk(phases, data, backbone, trained):
    """Of what phase 1 leaves, unseen where that can be, looked up by what the row holds."""
    held_out, trunk = phases[:2]
    unseen = held_out_rows(data[0]["labels"], SETTINGS.held_out, SETTINGS.seed)
    stored = load_memorized_layers(trained)
    model = ConsistentEEForSequenceClassification.from_backbone(backbone)
    for row, key, missed in zip(data[0], row_hashes(data[0]), unseen, strict=True):
        model.load_state_dict((held_out if missed else trunk).after)
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row["input_ids"]])).exit_logits
        correct = logits.argmax(-1) == row["labels"]
        assert stored[key] >= memorized_layer(correct).item()
    assert set(stored) == set(row_hashes(data[0]))


def test_without_held_out_rows_policies_learn_from_all(backbone, data, tmp_path):
    """The paper's way: no row is kept from phase 1, and nothing is there to calibrate on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        settings = replace(SETTINGS, held_out=0.0)
        train(backbone, *data, tmp_path / "model", tokenizer(), settings)
        trunk, policies, joint = Recorder.phases
    assert trunk.train_dataset["input_ids"] == data[0]["input_ids"]
    assert [int(row["labels"]) for row in policies.train_dataset] == data[0]["labels"]
    assert all(joint.train_dataset["for_policies"])
    assert moved(joint) == {"trunk", "classifiers", "policies"}
    name = "heads.0.classifier.weight"
    assert torch.equal(trunk.after[name], policies.before[name])


@pytest.fixture(scope="module")
def cross_fitted(backbone, data, tmp_path_factory) -> list[Recorder]:
    settings = replace(SETTINGS, folds=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        train(backbone, *data, tmp_path_factory.mktemp("run") / "model", tokenizer(), settings)
        return Recorder.phases


def test_cross_fitting_holds_out_each_fold_in_turn(cross_fitted, data):
    folds, (trunk, policies), joint = cross_fitted[:3], cross_fitted[3:5], cross_fitted[5:-1]
    masks = fold_rows(data[0]["labels"], 3, SETTINGS.seed)
    for phase, mask in zip([*folds, *joint[:3]], masks * 2, strict=True):
        expected = data[0].select(np.flatnonzero(~mask))
        assert phase.train_dataset["input_ids"] == expected["input_ids"]
    for phase in folds:
        assert all(torch.equal(phase.before[n], folds[0].before[n]) for n in phase.before)
    for phase in (trunk, joint[3]):
        assert phase.train_dataset["input_ids"] == data[0]["input_ids"]
    assert all(torch.equal(trunk.before[n], folds[0].before[n]) for n in trunk.before)
    assert [int(row["labels"]) for row in policies.train_dataset] == data[0]["labels"]


def test_policies_of_cross_fitting_read_what_the_trunk_that_had_not_seen_a_row_says(
    cross_fitted, backbone, data
):
    folds, policies = cross_fitted[:3], cross_fitted[4]
    masks = fold_rows(data[0]["labels"], 3, SETTINGS.seed)
    for phase, mask in zip(folds, masks, strict=True):
        model = ConsistentEEForSequenceClassification.from_backbone(backbone)
        model.load_state_dict(phase.after)
        for row in np.flatnonzero(mask)[:4].tolist():
            with torch.no_grad():
                output = model.eval()(input_ids=torch.tensor([data[0][row]["input_ids"]]))
            torch.testing.assert_close(policies.train_dataset[row]["states"], output.states[0])
            # Cooled: each layer's logits are divided by one number.
            ratio = output.exit_logits[0] / policies.train_dataset[row]["exit_logits"]
            torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)


def test_iterations_alternate_phases_2_and_3(backbone, data, tmp_path):
    settings = replace(SETTINGS, iterations=2)
    log = train(backbone, *data, tmp_path / "model", tokenizer(), settings)
    assert [name for name in log["phases"] if "held_out" not in name] == [
        *("trunk", "policies", "joint", "policies.2", "joint.2", "policies.3"),
    ]


def test_without_phase_3_policies_learn_once(backbone, data, tmp_path):
    log = train(backbone, *data, tmp_path / "model", tokenizer(), replace(SETTINGS, joint_epochs=0))
    assert list(log["phases"]) == ["trunk.held_out", "trunk", "policies"]


@pytest.mark.parametrize("reward", ["plain", "oracle"])
def test_the_reward_decides_what_hardness_is(backbone, data, tmp_path, reward, phases):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        settings = replace(SETTINGS, reward=reward)
        train(backbone, *data, tmp_path / "model", tokenizer(), settings)
        joint = Recorder.phases[-2]
    if reward == "plain":
        assert "hardness" not in joint.train_dataset.column_names
        return
    guided = np.array(phases[-2].train_dataset["hardness"])
    oracle = np.array(joint.train_dataset["hardness"])
    assert (oracle <= guided).all()
    assert (oracle < guided).any()


def test_an_adjustable_model_is_trained_over_a_range_of_alpha(backbone, data, tmp_path):
    seen: list[torch.Tensor] = []
    estimate = Losses._estimate

    def recorded(self, output, batch, loss):
        seen.append(batch["alpha"])
        return estimate(self, output, batch, loss)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Losses, "_estimate", recorded)
        train(backbone, *data, tmp_path / "model", tokenizer(), SETTINGS, alpha_range=[0.01, 1.0])
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
    ids = torch.tensor([data[1][0]["input_ids"]])
    for alpha in (0.01, 0.5, 1.0):
        encoder.alpha = alpha
        with torch.no_grad():
            expected = model(input_ids=ids, alpha=alpha).policy_logits.sigmoid()[0, 0]
        encoder.threshold = max(expected.item() - 1e-4, 1e-6)
        found = encoder(ids)
        assert found.exit_layers.tolist() == [1]
        torch.testing.assert_close(found.exit_scores[0], expected, atol=1e-5, rtol=1e-4)


def test_the_trunk_alone_sees_every_row_for_as_many_epochs(backbone, data, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases_module, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        log = train_trunk(backbone, *data, tmp_path / "all", tokenizer(), SETTINGS)
        train_trunk(backbone, *data, tmp_path / "two", tokenizer(), SETTINGS, num_layers=2)
        full, truncated = Recorder.phases
    assert full.train_dataset["input_ids"] == data[0]["input_ids"]
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


def test_regression(backbone, data, tmp_path):
    """The number to predict is how far through the alphabet the first letter is."""
    parts = [
        part.remove_columns("labels").add_column(
            "labels", [(row["input_ids"][1] - 5) / 26 for row in part]
        )
        for part in data
    ]
    options = {"problem_type": "regression", "num_labels": 1, "metric": "spearman"}
    settings = replace(SETTINGS, epochs=8, learning_rate=1e-3)
    log = train(backbone, *parts, tmp_path / "model", tokenizer(), settings, **options)
    losses = log["phases"]["trunk"]["losses"]
    assert losses[-1] < losses[0] / 2
    dev = log["phases"]["joint"]["dev"]
    assert len(dev["layer_spearman"]) == 3
    assert -1 <= dev["spearman"] <= 1
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["label_std"] == pytest.approx(np.std(parts[0]["labels"]))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(
    backbone, data, tmp_path
):
    count = 0
    joint = Losses.joint

    def broken(self, output, batch):
        nonlocal count
        count += 1
        return joint(self, output, batch) * (float("nan") if count == 9 else 1.0)

    output = tmp_path / "model"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Losses, "joint", broken)
        with pytest.raises(
            RuntimeError, match=r"^joint.held_out: expected a finite loss, got nan at step 9;"
        ):
            train(backbone, *data, output, tokenizer(), SETTINGS)
    assert not output.exists()
    kept = tmp_path / "model.partial" / "joint.held_out.checkpoints"
    assert [folder.name for folder in kept.iterdir()] == ["checkpoint-5"]
    log = train(backbone, *data, output, tokenizer(), SETTINGS)  # goes on from there
    assert list(log["phases"]) == list(STEPS)


def test_heads_have_their_own_learning_rate(phases):
    groups = phases[0].optimizer.param_groups
    peak = {round(group["initial_lr"], 12) for group in groups}
    assert peak == {SETTINGS.learning_rate, SETTINGS.learning_rate * SETTINGS.head_factor}
    trained = [name for name in phases[0].before if ".policy." not in name]
    assert sum(len(group["params"]) for group in groups) == len(trained)


class Killed(BaseException):
    """Like a kill, nothing catches it."""


def kill_at(patch: pytest.MonkeyPatch, step: int | None) -> list[int]:
    """Let training die before a step, counted over all phases; the list counts the steps."""
    count = [0]
    compute_loss = PhaseTrainer.compute_loss

    def counted(self, *args, **kwargs):
        if count[0] == step:
            raise Killed
        count[0] += 1
        return compute_loss(self, *args, **kwargs)

    patch.setattr(PhaseTrainer, "compute_loss", counted)
    return count


@pytest.mark.parametrize(
    ("step", "lost"),
    [(3, 3), (7, 2), (24, 2), (31, 0), (33, 2), (47, 5), (50, 2)],
    ids=[
        *("trunk, epoch 1", "trunk, epoch 2", "policies", "between epochs", "joint, epoch 2"),
        *("joint of all rows", "last policies"),
    ],
)
def test_a_killed_run_goes_on(backbone, data, trained, tmp_path, step, lost):
    output = tmp_path / "model"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train(backbone, *data, output, tokenizer(), SETTINGS)
    assert not any(output.glob("*"))
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, None)
        train(backbone, *data, output, tokenizer(), SETTINGS)
    assert steps[0] == sum(STEPS.values()) - step + lost
    weights, expected = (load_file(f / "model.safetensors") for f in (output, trained))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


SCRIPT = """
import os, signal, sys
sys.path[:0] = {path!r}
from test_training import SETTINGS, PhaseTrainer, letters, tokenizer, train
save = PhaseTrainer._save_checkpoint
def killed(self, *args):
    save(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
PhaseTrainer._save_checkpoint = killed
train({backbone!r}, letters(48, seed=1), letters(16, seed=2), {output!r}, tokenizer(), SETTINGS)
"""


def test_a_run_killed_by_signal_goes_on(backbone, data, trained, tmp_path):
    output = tmp_path / "model"
    path = [str(Path(__file__).parent), *sys.path]
    script = SCRIPT.format(path=path, backbone=str(backbone), output=str(output))
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, None)
        train(backbone, *data, output, tokenizer(), SETTINGS)
    assert steps[0] == sum(STEPS.values()) - 5
    weights, expected = (load_file(f / "model.safetensors") for f in (output, trained))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_another_run_is_refused(backbone, data, trained):
    with pytest.raises(ValueError, match=r"^output: .* another settings$"):
        train(backbone, *data, trained, tokenizer(), TrainingSettings(seed=1))
    with pytest.raises(ValueError, match=r"^output: .* another train_data, dev_data$"):
        train(backbone, data[1], data[0], trained, tokenizer(), SETTINGS)


def test_bad_input_leaves_nothing_behind(backbone, data, tmp_path):
    output = tmp_path / "model"
    wrong = data[0].map(lambda row: {"labels": row["labels"] + 1})
    long = Dataset.from_dict(
        {"input_ids": [[2] * 17], "attention_mask": [[1] * 17], "labels": [0], "length": [17]}
    )
    for bad, message in (
        ((wrong, data[1]), r"^train_data: expected labels in 0\.\.1, got 1\.\.2$"),
        ((data[0], wrong), r"^dev_data: expected labels in 0\.\.1, got 1\.\.2$"),
        ((data[0], data[1].select([])), r"^dev_data: expected at least one row, got none$"),
        ((long, data[1]), r"^train_data: .* at most 16 tokens, .* got 17$"),
        ((data[0].select([0]), data[1]), r"^train_data: 1 rows are too few"),
    ):
        with pytest.raises(ValueError, match=message):
            train(backbone, *bad, output, tokenizer(), SETTINGS)
    with pytest.raises(ValueError, match=r"^alpha: expected a number of at least 0, got -1$"):
        train(backbone, *data, output, tokenizer(), SETTINGS, alpha=-1)
    with pytest.raises(ValueError, match=r"^num_labels: expected at least 2 classes, got 1$"):
        train(backbone, *data, output, tokenizer(), SETTINGS, num_labels=1)
    with pytest.raises(ValueError, match=r"^backbone: .*safetensors"):
        train(tmp_path / "none", *data, output, tokenizer(), SETTINGS)
    assert not any(tmp_path.iterdir())


PROCESS = """
import sys
sys.path[:0] = {path!r}
import torch
from test_training import TWO_PROCESSES, letters, tokenizer, train
torch.set_num_threads(1)
data = letters(48, seed=1), letters(16, seed=2)
train({backbone!r}, *data, {output!r}, tokenizer(), TWO_PROCESSES)
"""
# Steps that two processes can share, so that no row is repeated to fill one.
TWO_PROCESSES = replace(SETTINGS, batch_size=12, policy_batch_size=6, joint_batch_size=12)


def test_two_processes_train_as_one_does(data, tmp_path):
    """The same rows a step, the same losses; no dropout, which each process draws for itself."""
    backbone = tmp_path / "backbone"
    save_backbone(backbone, VOCABULARY, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected = train(backbone, *data, tmp_path / "one", tokenizer(), TWO_PROCESSES)
    path = [str(Path(__file__).parent), *sys.path]
    script = tmp_path / "train.py"
    output = tmp_path / "two"
    script.write_text(PROCESS.format(path=path, backbone=str(backbone), output=str(output)))
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    log = json.loads((output / "training_log.json").read_text())
    for name, phase in expected["phases"].items():
        assert log["phases"][name]["losses"] == pytest.approx(phase["losses"], rel=1e-3)
    weights, single = (load_file(f / "model.safetensors") for f in (output, tmp_path / "one"))
    for name, value in single.items():
        torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-3)
