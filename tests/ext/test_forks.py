"""Processes that fork after a model was loaded, and after it was called, on two threads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.models import tiny_classifier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]
SCRIPT = """
import os, signal, sys
import torch
from consistentee_ext import FastEarlyExitEncoder

torch.set_num_threads(2)
encoder = FastEarlyExitEncoder.from_pretrained(sys.argv[1], tokenizer=object())
batch = {
    "input_ids": torch.arange(64 * 48).view(64, 48) % 100,
    "attention_mask": torch.ones(64, 48).long(),
}
if sys.argv[2] == "called":
    expected = encoder(**batch).logits
child = os.fork()
if child == 0:
    signal.alarm(60)
    logits = encoder(**batch).logits
    same = sys.argv[2] != "called" or torch.allclose(logits, expected, atol=1e-5)
    right = logits.shape == (64, 3) and bool(logits.isfinite().all()) and same
    print(torch.get_num_threads(), flush=True)
    os._exit(0 if right else 3)
_, status = os.waitpid(child, 0)
print(os.waitstatus_to_exitcode(status))
"""


def run(folder: Path, when: str) -> list[str]:
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT, str(folder), when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_classifier(hidden_size=256, intermediate_size=1024)
    model.save_pretrained(tmp_path)
    return tmp_path


def test_after_loading(folder: Path) -> None:
    """No thread was started, so that the child has its own two."""
    threads, code = run(folder, "loaded")
    assert (threads, code) == ("2", "0")


def test_after_a_call(folder: Path) -> None:
    """The call's threads are not there in the child, which runs on one."""
    threads, code = run(folder, "called")
    assert (threads, code) == ("1", "0")
