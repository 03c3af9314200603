from __future__ import annotations

import signal
import subprocess
import sys
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

from consistentee import training
from consistentee.phases import PhaseTrainer
from consistentee.settings import TrainingSettings
from consistentee.training import held_out_rows, train

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SETTINGS = TrainingSettings(
    epochs=2,
    policy_epochs=2,
    joint_epochs=2,
    batch_size=8,
    policy_batch_size=8,
    held_out=0.25,
    bf16=False,
)
# 36 rows for phase 1, 12 held out: steps of 8 rows, two epochs each.
STEPS = {"trunk": 2 * 5, "policies": 2 * 2, "joint": 2 * 2}


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
        patch.setattr(training, "PhaseTrainer", Recorder)
        patch.setattr(Recorder, "phases", [])
        train(backbone, *data, tmp_path_factory.mktemp("run") / "model", tokenizer(), SETTINGS)
        return Recorder.phases


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
    trunk, policies, joint = phases
    assert moved(trunk) == {"trunk", "classifiers"}
    assert moved(policies) == {"policies"}
    assert moved(joint) == {"trunk", "classifiers", "policies"}


def test_later_phases_train_on_the_rows_phase_1_did_not_see(phases, data):
    trunk, policies, joint = phases
    held_out = held_out_rows(data[0]["labels"], SETTINGS.held_out, SETTINGS.seed)
    assert (
        trunk.train_dataset["input_ids"] == data[0].select(np.flatnonzero(~held_out))["input_ids"]
    )
    expected = data[0].select(np.flatnonzero(held_out))
    assert joint.train_dataset["input_ids"] == expected["input_ids"]
    assert [int(row["labels"]) for row in policies.train_dataset] == expected["labels"]
    layers = [int(row["memorized_layer"]) for row in policies.train_dataset]
    assert joint.train_dataset["memorized_layer"] == layers


def test_heads_have_their_own_learning_rate(phases):
    groups = phases[0].optimizer.param_groups
    peak = {round(group["initial_lr"], 12) for group in groups}
    assert peak == {SETTINGS.learning_rate, SETTINGS.learning_rate * SETTINGS.head_factor}
    assert sum(len(group["params"]) for group in groups) == len(phases[0].before)


def test_held_out_rows_keep_the_shares_of_the_classes():
    labels = [0] * 40 + [1] * 20 + [2]
    chosen = held_out_rows(labels, 0.25, seed=3)
    assert [int(chosen[:40].sum()), int(chosen[40:60].sum()), int(chosen[60])] == [10, 5, 0]
    assert np.array_equal(chosen, held_out_rows(labels, 0.25, seed=3))
    assert not np.array_equal(chosen, held_out_rows(labels, 0.25, seed=4))


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
    [(3, 3), (7, 2), (13, 3), (17, 1)],
    ids=["trunk, epoch 1", "trunk, epoch 2", "policies", "joint, epoch 2"],
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
