"""The fixtures that several files share."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Before torch is imported. A thread that spins while it waits for the others of a tiny operation
# keeps them from running where another process has the cores: trainings here took 30 times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from support.backends import BACKENDS
from support.models import save_backbone
from support.needs import check_needs, skip_or_fail

if TYPE_CHECKING:
    from support.letters import Letters
    from support.recorder import Recorder


def pytest_collection_finish() -> None:
    """Each phase of a training collects garbage, which takes most of its time where it has to look
    at all that torch, transformers and datasets have imported.
    """
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def pytest_runtest_setup(item: pytest.Item) -> None:
    check_needs(item)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Letters:
    # imported here: the GPU tests run where the training package's dependencies are missing
    from support.letters import WORDS, letters_on

    folder = tmp_path_factory.mktemp("letters") / "backbone"
    save_backbone(folder, WORDS)
    return letters_on(folder)


@pytest.fixture(scope="session")
def trained(letters: Letters) -> Path:
    """The checkpoint of a whole training, alone in its folder."""
    from support.letters import SETTINGS, tokenizer

    from consistentee.training.train import train

    output = letters.backbone.parent / "run" / "model"
    train(*letters, output, tokenizer(), SETTINGS)
    return output


@pytest.fixture(scope="session")
def phases(letters: Letters, tmp_path_factory: pytest.TempPathFactory) -> list[Recorder]:
    """The phases of a training whose policies read states too."""
    from support.letters import SETTINGS, tokenizer
    from support.recorder import recorded

    from consistentee.training.train import train

    output = tmp_path_factory.mktemp("run") / "model"
    with recorded() as phases:
        train(*letters, output, tokenizer(), SETTINGS, policy_input="both")
    return phases


@pytest.fixture(params=["cuda", "triton"])
def gpu_backend(request: pytest.FixtureRequest) -> str:
    from support.gpu import DEVICE

    from consistentee_ext.backend import availability

    found = availability(request.param, DEVICE)
    if not found.usable:
        skip_or_fail("cuda", f"{request.param}: {found.reason}")
    return request.param
