"""Servers that the tests share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.server import LocalServer, Server, save_checkpoint

from consistentee_ext import FastEarlyExitEncoder


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    labels = {0: "low", 1: "middle", 2: "high"}
    return save_checkpoint(tmp_path_factory.mktemp("served") / "classifier", id2label=labels)


@pytest.fixture(scope="session")
def encoder(served: Path) -> FastEarlyExitEncoder:
    return FastEarlyExitEncoder.from_pretrained(served)


@pytest.fixture(scope="session")
def server(served: Path) -> Iterator[Server]:
    with Server(served) as running:
        yield running
        running.process.terminate()
        code, said = running.finish()
    assert code == 0
    assert "Traceback" not in said


@pytest.fixture(scope="session")
def reranker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    folder = save_checkpoint(tmp_path_factory.mktemp("served") / "reranker", classes=1)
    with LocalServer(folder) as running:
        yield running
