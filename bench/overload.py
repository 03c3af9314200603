"""A minute of more requests than the server can answer: who is answered, when, and how right.

python bench/overload.py --checkpoint runs/demo/model --data runs/demo/data/test.tsv

The checkpoint has levels, as `calibrate --level` writes them. Requests of some texts come at random
times, at a multiple of the rate that was measured before, each with a deadline. Printed are the
replies by status, the time of answers over their deadline beside the time of a layer, the server's
memory, and the share of rows whose answer is not that of full depth, by level.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from serving import Connection, Server, milliseconds

from consistentee.data.tables import load_texts
from consistentee_ext import FastEarlyExitEncoder
from consistentee_ext.configuration import class_names

TEXTS = 8  # of a request


@dataclass
class Seen:
    """What came of requests.

    Attributes:
        statuses: of the replies.
        over: seconds of answers beyond their deadline, by the client's clock.
        server_over: likewise, by the server's, from a request's arrival.
        early: rows that left for their deadline.
        labels: of answered rows by level: the number of the text, its label.
        megabytes: of the server, each second.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    over: list[float] = field(default_factory=list)
    server_over: list[float] = field(default_factory=list)
    early: int = 0
    labels: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    megabytes: list[float] = field(default_factory=list)


async def ask(
    connection: Connection, texts: list[str], rows: list[int], deadline: float, seen: Seen
) -> None:
    body = json.dumps({"inputs": [[texts[row]] for row in rows], "deadline_ms": 1000 * deadline})
    head = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    begun = time.perf_counter()
    connection.writer.write(head.encode() + body.encode())
    reply = (await connection.reader.readuntil(b"\r\n\r\n")).decode()
    size = re.search(r"content-length: (\d+)", reply)
    assert size is not None
    content = await connection.reader.readexactly(int(size[1]))
    took = time.perf_counter() - begun
    status = int(reply[9:12])
    seen.statuses[status] += 1
    if status == 429 and "retry-after" not in reply:
        raise RuntimeError(reply)
    if status != 200:
        return
    headers = dict(line.split(": ", 1) for line in reply.split("\r\n")[1:] if line)
    cut = headers.get("x-deadline-exit")
    early = set() if cut is None else set(map(int, cut.split(",")))
    seen.over.append(took - deadline)
    seen.server_over.append(int(headers["x-total-time"]) / 1000 - deadline)
    seen.early += len(early)
    level = headers.get("x-level", "")
    for number, (row, found) in enumerate(zip(rows, json.loads(content), strict=True)):
        name = "at the deadline" if number in early else level
        seen.labels[name].append((row, found[0]["label"]))


async def flood(
    server: Server, texts: list[str], rate: float, seconds: float, deadline: float
) -> Seen:
    """Requests at a rate, each by a connection that is free."""
    choose, seen, idle = random.Random(5), Seen(), list[Connection]()
    memory = Path(f"/proc/{server.process.pid}/status")

    async def one() -> None:
        connection = idle.pop() if idle else await Connection().open(server.port)
        rows = choose.sample(range(len(texts)), TEXTS)
        await ask(connection, texts, rows, deadline, seen)
        idle.append(connection)

    begun = due = time.perf_counter()
    tasks: set[asyncio.Task[None]] = set()
    while due < begun + seconds:
        due += choose.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.add(asyncio.ensure_future(one()))
        if time.perf_counter() - begun > len(seen.megabytes):
            found = re.search(r"VmRSS:\s+(\d+)", memory.read_text())
            assert found is not None
            seen.megabytes.append(int(found[1]) / 1024)
    await asyncio.gather(*tasks)
    return seen


async def capacity(server: Server, texts: list[str], seconds: float) -> float:
    """Requests a second of some clients, each as soon as its last one is answered."""
    end, seen = time.perf_counter() + seconds, Seen()

    async def work(seed: int) -> None:
        choose = random.Random(seed)
        connection = await Connection().open(server.port)
        while time.perf_counter() < end:
            rows = choose.sample(range(len(texts)), TEXTS)
            await ask(connection, texts, rows, 60.0, seen)

    await asyncio.gather(*(work(seed) for seed in range(8)))
    return seen.statuses[200] / seconds


def metric(server: Server, sample: str) -> float:
    async def read() -> bytes:
        connection = await Connection().open(server.port)
        connection.writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return await connection.reader.read()

    found = re.search(f"^{re.escape(sample)} (.*)$", asyncio.run(read()).decode(), re.MULTILINE)
    return float(found[1]) if found else 0.0


def measure(checkpoint: Path, data: Path, seconds: float, times: float, deadline: float) -> None:
    texts = list(load_texts(data)[1]["sentence1"])
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint, threshold=1.0)
    logits = encoder.predict(texts).logits
    names = class_names(encoder.config)
    full = [names[label] for label in logits.argmax(-1).tolist()]
    server = Server(checkpoint, at_end=False)
    asyncio.run(capacity(server, texts, 3.0))
    work = 'ce_token_layers_total{kind="computed"}'
    before, begun = metric(server, work), time.perf_counter()
    rate = asyncio.run(capacity(server, texts, 10.0))
    done = (metric(server, work) - before) / (time.perf_counter() - begun)
    print(f"capacity: {rate:.0f} requests of {TEXTS} texts a second")
    print(f"a layer of 2,048 tokens: {2048 / done * 1000:.0f} ms")
    seen = asyncio.run(flood(server, texts, times * rate, seconds, deadline))
    alive = server.process.poll() is None
    server.stop()
    print(f"{times:g} times that for {seconds:g} s, deadline {deadline * 1000:g} ms: ", end="")
    print(", ".join(f"{count} of {status}" for status, count in sorted(seen.statuses.items())))
    late = sorted(seen.over)
    print(f"server alive: {alive}; rows that left for their deadline: {seen.early}")
    print(
        f"answers over their deadline, the latest: {1000 * late[-1]:.0f} ms by the client's ",
        end="",
    )
    print(f"clock, {1000 * max(seen.server_over):.0f} ms by the server's")
    for clock, found in (("client", seen.over), ("server", seen.server_over)):
        print(
            f"answers after {milliseconds([over + deadline for over in found])} ms by the {clock}"
        )
    third = len(seen.megabytes) // 3
    print(f"memory, MB: {max(seen.megabytes[:third]):.0f} at most in the first third, ", end="")
    print(f"{max(seen.megabytes[-third:]):.0f} in the last")
    for level, rows in seen.labels.items():
        other = sum(label != full[row] for row, label in rows) / len(rows)
        print(f"level {level}: {len(rows)} rows, {other:.2%} other answers than at full depth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=3.0)
    parser.add_argument("--deadline", type=float, default=1.0)
    given = parser.parse_args()
    measure(given.checkpoint, given.data, given.seconds, given.times, given.deadline)


if __name__ == "__main__":
    main()
