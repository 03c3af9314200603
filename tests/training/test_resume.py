"""Runs that are killed go on to the same result; runs that are others are refused."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.letters import SETTINGS, STEPS, tokenizer

from consistentee.training.losses import Losses
from consistentee.training.settings import TrainingSettings
from consistentee.training.train import train
from consistentee.training.trainer import PhaseTrainer


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


def same_weights(*checkpoints: Path) -> bool:
    weights, expected = (load_file(folder / "model.safetensors") for folder in checkpoints)
    return all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("step", "lost"),
    [
        pytest.param(3, 3, id="trunk, epoch 1", marks=pytest.mark.slow),
        pytest.param(7, 2, id="trunk, epoch 2"),
        pytest.param(24, 2, id="policies"),
        pytest.param(31, 0, id="between epochs", marks=pytest.mark.slow),
        pytest.param(33, 2, id="joint, epoch 2", marks=pytest.mark.slow),
        pytest.param(47, 5, id="joint of all rows", marks=pytest.mark.slow),
        pytest.param(50, 2, id="last policies", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on(letters, trained, tmp_path, step, lost):
    output = tmp_path / "model"
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            train(*letters, output, tokenizer(), SETTINGS)
    assert not any(output.glob("*"))
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, None)
        train(*letters, output, tokenizer(), SETTINGS)
    assert steps[0] == sum(STEPS.values()) - step + lost
    assert same_weights(output, trained)


SCRIPT = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from support.letters import SETTINGS, letters_on, tokenizer
from consistentee.training.trainer import PhaseTrainer
from consistentee.training.train import train
save = PhaseTrainer._save_checkpoint
def killed(self, *args):
    save(self, *args)
    os.kill(os.getpid(), signal.SIGKILL)
PhaseTrainer._save_checkpoint = killed
train(*letters_on(Path({backbone!r})), {output!r}, tokenizer(), SETTINGS)
"""


@pytest.mark.slow
def test_a_run_killed_by_signal_goes_on(letters, trained, tmp_path):
    output = tmp_path / "model"
    path = [str(Path(__file__).parents[1]), *sys.path]
    script = SCRIPT.format(path=path, backbone=str(letters.backbone), output=str(output))
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    with pytest.MonkeyPatch.context() as patch:
        steps = kill_at(patch, None)
        train(*letters, output, tokenizer(), SETTINGS)
    assert steps[0] == sum(STEPS.values()) - 5
    assert same_weights(output, trained)


def test_another_run_is_refused(letters, trained):
    with pytest.raises(ValueError, match=r"^output: .* another settings$"):
        train(*letters, trained, tokenizer(), TrainingSettings(seed=1))
    other = letters._replace(train=letters.dev, dev=letters.train)
    with pytest.raises(ValueError, match=r"^output: .* another train_data, dev_data$"):
        train(*other, trained, tokenizer(), SETTINGS)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoints(letters, tmp_path):
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
            train(*letters, output, tokenizer(), SETTINGS)
    assert not output.exists()
    kept = tmp_path / "model.partial" / "joint.held_out.checkpoints"
    assert [folder.name for folder in kept.iterdir()] == ["checkpoint-5"]
    log = train(*letters, output, tokenizer(), SETTINGS)  # goes on from there
    assert list(log["phases"]) == list(STEPS)
