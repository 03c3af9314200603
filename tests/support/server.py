"""Servers of tiny checkpoints: in a process of their own, and in this one with a gate."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import uvicorn
from support.models import SEPARATOR, VOCABULARY, scramble, tiny_bert_config
from transformers import BertTokenizer

from consistentee.model.modeling import ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import ConsistentEEConfig
from consistentee_ext.serving.app import Routes
from consistentee_ext.serving.levels import ladder
from consistentee_ext.serving.metrics import Metrics
from consistentee_ext.serving.model import EncoderModel, EncoderSteps
from consistentee_ext.serving.request import Row
from consistentee_ext.serving.service import Limits, Service

COMMAND = "import sys; from consistentee.cli import main; main()"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(5, VOCABULARY))]
LEVELS = {
    "exact": {"threshold": 1.0, "guarantee": {"max_disagreement": 0.01}},
    "fast": {"threshold": 0.3, "guarantee": {"max_disagreement": 0.05}},
}


def save_checkpoint(folder: Path, classes: int = 3, seed: int = 9, **config: Any) -> Path:
    """A random model of four layers, whose rows leave at many of them, and a tokenizer."""
    if classes == 1:
        config.setdefault("metric", "spearman")
    made = ConsistentEEConfig(
        tiny_bert_config(**config.pop("bert", {})),
        policy_input="both",
        num_labels=classes,
        separator_id=SEPARATOR,
        levels=LEVELS,
        **config,
    )
    model = scramble(ConsistentEEForSequenceClassification(made), seed)
    model.save_pretrained(folder)
    numbers = {word: number for number, word in enumerate(WORDS)}
    BertTokenizer(vocab=numbers).save_pretrained(folder)
    return folder


def texts(count: int, seed: int = 0, longest: int = 40) -> list[str]:
    """Random words of the tokenizer."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS[5:], k=choose.randint(1, longest))) for _ in range(count)]


def wait_until(holds: Callable[[], object]) -> None:
    """Until it holds; a minute is never needed, however busy the machine."""
    last = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < last
        time.sleep(0.002)


class Client:
    """Requests to a server."""

    client: httpx.Client

    def post(self, path: str, body: object, **options: Any) -> httpx.Response:
        return self.client.post(path, json=body, **options)

    def metric(self, sample: str) -> float:
        """The value of a sample, by the text in front of it."""
        for line in self.client.get("/metrics").text.splitlines():
            if line.startswith(sample + " "):
                return float(line.rpartition(" ")[2])
        return 0.0


class Server(Client):
    """`consistentee serve` until the block ends."""

    def __init__(self, checkpoint: Path, *options: object, port: int = 0) -> None:
        self.checkpoint = checkpoint
        arguments = ["serve", checkpoint, "--port", port, *options]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *map(str, arguments)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Server:
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line)
            if found := re.search(r" on (http://\S+)$", line):
                self.url = found[1]
                self.client = httpx.Client(base_url=self.url, timeout=60)
                return self
        raise AssertionError(f"no server: {self.said}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.finish()

    def finish(self) -> tuple[int, str]:
        """Wait for its end: the exit code, and what it said after it was ready."""
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, rest or ""


class GatedModel(EncoderModel):
    """Its passes begin when the gate is open; it counts those that have come to it."""

    def __init__(self, encoder: FastEarlyExitEncoder) -> None:
        super().__init__(encoder)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[Row]] = []

    def start(
        self,
        rows: Sequence[Row],
        thresholds: Sequence[float],
        max_layers: Sequence[int | None],
    ) -> EncoderSteps:
        self.batches.append(list(rows))
        assert self.gate.wait(60)
        return super().start(rows, thresholds, max_layers)


class LocalServer(Client):
    """The server in threads of this process, until the block ends."""

    def __init__(
        self, checkpoint: Path, *, batch: int = 2048, queue: int = 32768, level: str | None = None
    ) -> None:
        self.checkpoint = checkpoint
        encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
        self.model = GatedModel(encoder)
        threshold = encoder.threshold
        assert isinstance(threshold, float)
        levels = ladder(encoder.config, threshold, level)
        metrics = Metrics(encoder.num_layers)
        self.service = Service(self.model, levels, Limits(batch, queue, 32), metrics)
        config = uvicorn.Config(
            Routes(self.service, str(checkpoint)).app(), log_level="warning", lifespan="on"
        )
        self._server = uvicorn.Server(config)
        self._socket = socket.socket(proto=socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    def __enter__(self) -> LocalServer:
        self._thread.start()
        wait_until(lambda: self._server.started)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.model.gate.set()
        self.client.close()
        self._server.should_exit = True
        self._thread.join(60)
        assert not self._thread.is_alive()
