"""Clients that are broken, slow or ill-meant: the server answers, and goes on."""

from __future__ import annotations

import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.hostile import GOOD, KINDS, send, slow_clients
from support.server import Server


@pytest.mark.parametrize("count", [160, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_traceback_and_no_fault_of_the_server(served: Path, count: int) -> None:
    with Server(served) as server:
        body = {"inputs": [["w5 w6"], ["w7", "w8 w9"]]}
        before = server.post("/predict", body).json()
        slow = slow_clients(server.port, count // 50)

        def ask(number: int) -> list[int]:
            choose = random.Random(number)
            return list(send(server.port, KINDS[number % len(KINDS)](choose), choose))

        statuses: Counter[int] = Counter()
        with ThreadPoolExecutor(8) as pool:
            for found in pool.map(ask, range(count)):
                statuses.update(found)
        assert server.post("/predict", body).json() == before
        rest = GOOD[1:]
        slow[0].sendall(rest)
        for client in slow:
            client.close()
        assert server.client.get("/health").status_code == 200
        server.process.terminate()
        code, said = server.finish()
    assert sum(statuses.values()) > count / 2
    assert {status for status in statuses if status >= 500} <= {503}
    assert {200, 400, 422} <= set(statuses)
    assert code == 0
    assert "Traceback" not in said
    assert "Error" not in said
