"""Processes that share the rows of each step, against one process that has them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support import letters
from support.letters import WORDS, letters_on, tokenizer
from support.models import save_backbone

from consistentee.training.train import train

PROCESS = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import torch
from test_distributed import SETTINGS, letters_on, tokenizer, train
torch.set_num_threads(1)
train(*letters_on(Path({backbone!r})), {output!r}, tokenizer(), SETTINGS)
"""
# Steps that two processes can share, so that no row is repeated to fill one.
SETTINGS = replace(letters.SETTINGS, batch_size=12, policy_batch_size=6, joint_batch_size=12)


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    """The same rows a step, the same losses; no dropout, which each process draws for itself."""
    backbone = tmp_path / "backbone"
    save_backbone(backbone, WORDS, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    expected = train(*letters_on(backbone), tmp_path / "one", tokenizer(), SETTINGS)
    path = [*map(str, Path(__file__).parents[:2]), *sys.path]
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
