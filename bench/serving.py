"""The server beside its encoder called directly, client and server on this machine.

python bench/serving.py                              # BERT-base, random weights, layer ratio 2
python bench/serving.py --checkpoint runs/demo/model # a trained one

Prints rows a second with 32 texts a request over those of `encoder.predict`, the milliseconds that
a text alone takes over `predict`'s, and medians at a load of 0.8, with answers at the exits and at
the batch's end. Ratios are of one run. The client's own CPU time is measured and named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import BertConfig, BertTokenizer

from consistentee import ConsistentEEConfig, ConsistentEEForSequenceClassification
from consistentee_ext import FastEarlyExitEncoder

SPELL = 80  # requests to one server before the other has its turn
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{n}" for n in range(5, 30522))]


def save_bert_base(folder: Path) -> Path:
    """BERT-base's shape with random weights, and one threshold at which the layer ratio is 2."""
    torch.manual_seed(0)
    config = ConsistentEEConfig(BertConfig(), num_labels=2, criterion="confidence")
    model = ConsistentEEForSequenceClassification(config)
    model.save_pretrained(folder)
    BertTokenizer(vocab={word: n for n, word in enumerate(WORDS)}).save_pretrained(folder)
    encoder = FastEarlyExitEncoder.from_pretrained(folder)
    low, high, rows = 0.5, 1.0, texts(32, seed=1)
    for _ in range(12):
        encoder.threshold = middle = (low + high) / 2
        shallow = encoder.predict(rows).exit_layers.double().mean() < encoder.num_layers / 2
        low, high = (middle, high) if shallow else (low, middle)
    model.config.threshold = high
    model.save_pretrained(folder)
    return folder


def texts(count: int, seed: int) -> list[str]:
    """As long as sentences are: 8 to 45 words."""
    choose = random.Random(seed)
    return [" ".join(choose.choices(WORDS[5:], k=choose.randint(8, 45))) for _ in range(count)]


class Server:
    """The command in a process of its own; `at_end` holds each answer until its batch ends, and
    the seconds of each step are written to the lines of `steps`.
    """

    def __init__(self, checkpoint: Path, at_end: bool, steps: Path | None = None) -> None:
        code = "from consistentee.cli import main\n"
        if steps is not None:
            code += (
                "import time\n"
                "from consistentee_ext.serving.model import EncoderSteps\n"
                f"step, file = EncoderSteps.step, open({str(steps)!r}, 'w', buffering=1)\n"
                "def timed(self, whole):\n"
                "    begun = time.perf_counter()\n"
                "    left = step(self, whole)\n"
                "    print(time.perf_counter() - begun, file=file)\n"
                "    return left\n"
                "EncoderSteps.step = timed\n"
            )
        if at_end:
            code += (
                "from consistentee_ext.serving.model import EncoderSteps\n"
                "step = EncoderSteps.step\n"
                "EncoderSteps.step = lambda self, whole: step(self, True)\n"
            )
        options = ["serve", str(checkpoint), "--port", "0", "--max-queue-tokens", "1000000"]
        command = [sys.executable, "-c", code + "main()", *options]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if found := re.search(r" on http://127.0.0.1:(\d+)$", line):
                self.port = int(found[1])
                return
        raise RuntimeError("the server did not start")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Connection:
    """One connection, one request at a time."""

    async def open(self, port: int) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", port)
        return self

    async def ask(self, inputs: Any) -> float:
        """The seconds until the reply is there."""
        body = json.dumps({"inputs": inputs}).encode()
        head = (
            "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        begun = time.perf_counter()
        self.writer.write(head.encode() + body)
        reply = await self.reader.readuntil(b"\r\n\r\n")
        if not reply.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(reply.decode())
        size = re.search(rb"content-length: (\d+)", reply)
        assert size is not None
        await self.reader.readexactly(int(size[1]))
        return time.perf_counter() - begun


async def saturate(port: int, requests: list[Any], clients: int) -> list[float]:
    """All requests by some clients, each as soon as its last one is answered."""
    left = iter(requests)
    taken = []

    async def work() -> None:
        connection = await Connection().open(port)
        taken.extend([await connection.ask(inputs) for inputs in left])

    await asyncio.gather(*(work() for _ in range(clients)))
    return taken


async def poisson(port: int, requests: list[Any], rate: float) -> list[float]:
    """Requests that come at random times, so many a second on average."""
    choose = random.Random(3)
    idle: list[Connection] = []
    taken = []

    async def ask(inputs: Any) -> None:
        connection = idle.pop() if idle else await Connection().open(port)
        taken.append(await connection.ask(inputs))
        idle.append(connection)

    due, tasks = time.perf_counter(), []
    for inputs in requests:
        due += choose.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(ask(inputs)))
    await asyncio.gather(*tasks)
    return taken


def milliseconds(seconds: list[float]) -> str:
    ordered = sorted(seconds)
    slow = ordered[-1 - len(ordered) // 100]
    return f"{1000 * statistics.median(ordered):.2f} (p99 {1000 * slow:.1f})"


def measure(checkpoint: Path, rows: int, alone: int, clients: int) -> None:
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads of {os.cpu_count()}, {encoder.backend}")
    own = texts(rows, seed=2)
    encoder.predict(own[:64])
    server = Server(checkpoint, at_end=False)
    batches = [[[text] for text in own[at : at + 32]] for at in range(0, rows, 32)]
    asyncio.run(saturate(server.port, batches[:2], 2))

    begun = time.perf_counter()
    found = encoder.predict(own)
    direct = time.perf_counter() - begun
    ratio = encoder.num_layers / found.exit_layers.double().mean().item()
    begun, cpu = time.perf_counter(), time.process_time()
    asyncio.run(saturate(server.port, batches, clients))
    served, client = time.perf_counter() - begun, time.process_time() - cpu
    share = direct / (served - client)
    print(f"layer ratio {ratio:.2f}; predict {rows / direct:.1f} rows/s")
    print(f"32 texts a request: {rows / served:.1f} rows/s, {share:.2f} of predict")
    print(f"  less the client's CPU time, {client:.2f} of {served:.2f} s")

    plain, one = [], []
    for text in own[:alone]:  # in turn: what else the machine does slows both
        begun = time.perf_counter()
        encoder.predict([text])
        plain.append(time.perf_counter() - begun)
        one += asyncio.run(saturate(server.port, [text], 1))
    added = 1000 * statistics.median(b - a for a, b in zip(plain, one, strict=True))
    print(f"a text alone: predict {milliseconds(plain)} ms, served {milliseconds(one)} ms")
    print(f"  {added:.2f} ms added at the median")

    begun = time.perf_counter()
    asyncio.run(saturate(server.port, own, clients * 4))
    capacity = rows / (time.perf_counter() - begun)
    print(f"one text a request, {clients * 4} clients: {capacity:.1f} rows/s")
    other = Server(checkpoint, at_end=True)
    asyncio.run(saturate(other.port, own[:64], clients))
    at_exit, at_end = [], []
    for at in range(0, rows, SPELL):  # in turn, again
        spell = own[at : at + SPELL]
        at_exit += asyncio.run(poisson(server.port, spell, 0.8 * capacity))
        at_end += asyncio.run(poisson(other.port, spell, 0.8 * capacity))
    server.stop()
    other.stop()
    fewer = 1 - statistics.median(at_exit) / statistics.median(at_end)
    print(
        f"load 0.8: at the exits {milliseconds(at_exit)} ms, at the end {milliseconds(at_end)} ms"
    )
    print(f"  {fewer:.0%} less at the median")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--rows", type=int, default=640)
    parser.add_argument("--alone", type=int, default=100)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or save_bert_base(Path(folder))
        measure(checkpoint, given.rows, given.alone, given.clients)


if __name__ == "__main__":
    main()
