"""What happens when there is too much to do: refusals, faster levels, deadlines, hang-ups."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.server import LocalServer, texts, wait_until

from consistentee_ext import FastEarlyExitEncoder

WORD = texts(1, longest=1)[0]
ROW = " ".join([WORD] * 8)  # with the two special tokens 10


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as threads:
        yield threads


def ask(server: LocalServer, pool: ThreadPoolExecutor, **fields: object) -> Future[httpx.Response]:
    """A request under way that has come to the queue or to a batch."""
    count = server.metric('te_request_count{method="single"}')
    queued = server.service.batcher.queued_tokens, len(server.model.batches)
    future = pool.submit(server.post, "/predict", {"inputs": ROW, **fields})
    wait_until(lambda: server.metric('te_request_count{method="single"}') == count + 1)
    wait_until(
        lambda: (
            (server.service.batcher.queued_tokens, len(server.model.batches)) != queued
            or future.done()
        )
    )
    return future


def blocked(server: LocalServer, pool: ThreadPoolExecutor) -> Future[httpx.Response]:
    """A request whose pass waits at the gate; what comes after it queues."""
    server.model.gate.clear()
    first = ask(server, pool)
    wait_until(lambda: len(server.model.batches) == 1 and not server.service.batcher.queued_tokens)
    return first


def test_a_full_queue_refuses_and_says_when_to_come_again(
    served: Path, pool: ThreadPoolExecutor
) -> None:
    with LocalServer(served, batch=10, queue=20) as server:
        first = blocked(server, pool)
        queued = [ask(server, pool) for _ in range(2)]
        assert server.metric("te_queue_size") == 2.0
        assert server.metric("ce_queue_tokens") == 20.0
        refused = server.post("/predict", {"inputs": ROW})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.json() == {"error": "Model is overloaded", "error_type": "Overloaded"}
        vllm = server.post("/classify", {"input": ROW})
        assert vllm.status_code == 429
        assert int(vllm.headers["retry-after"]) >= 1
        assert vllm.json()["error"] == {
            "message": "Model is overloaded",
            "type": "TooManyRequestsError",
            "param": None,
            "code": 429,
        }
        never = server.post("/predict", {"inputs": [[ROW]] * 3})
        assert never.status_code == 422
        message = "request of 30 tokens > maximum queue of 20 tokens"
        assert never.json() == {"error": message, "error_type": "Validation"}
        assert server.metric('te_request_failure{err="overloaded"}') == 2.0
        server.model.gate.set()
        replies = [future.result() for future in (first, *queued)]
        assert [reply.status_code for reply in replies] == [200] * 3
        assert server.post("/predict", {"inputs": ROW}).status_code == 200


def test_before_a_refusal_answers_come_at_the_next_level(
    served: Path, pool: ThreadPoolExecutor, encoder: FastEarlyExitEncoder
) -> None:
    with LocalServer(served, batch=10, queue=40, level="exact") as server:
        first = blocked(server, pool)
        assert server.metric("ce_level") == 0.0
        queued = [ask(server, pool) for _ in range(3)]
        assert server.metric("ce_level") == 1.0
        assert server.client.get("/info").json()["level"] == "fast"
        own = ask(server, pool, level="exact")
        server.model.gate.set()
        levels = [future.result().headers["x-level"] for future in (first, *queued, own)]
        layers = [future.result().headers["x-exit-layer"] for future in (first, *queued, own)]
        encoder.threshold = 0.3
        fast = str(encoder.predict([ROW]).exit_layers.item())
        encoder.threshold = 0.5
        assert fast != "4"
        assert levels == ["exact", "fast", "fast", "fast", "exact"]
        assert layers == ["4", fast, fast, fast, "4"]


def test_what_has_expired_enters_no_batch(served: Path, pool: ThreadPoolExecutor) -> None:
    with LocalServer(served, batch=10) as server:
        first = blocked(server, pool)
        late, kept = ask(server, pool, deadline_ms=1), ask(server, pool, deadline_ms=60_000)
        time.sleep(0.002)
        server.model.gate.set()
        assert late.result().status_code == 429
        assert late.result().headers["retry-after"] == "1"
        message = "the deadline passed before a batch was free"
        assert late.result().json() == {"error": message, "error_type": "Overloaded"}
        assert [first.result().status_code, kept.result().status_code] == [200, 200]
        assert len(server.model.batches) == 2
        assert server.metric('ce_dropped_rows_total{reason="deadline"}') == 1.0


def test_a_row_at_its_deadline_leaves_with_its_newest_answer(
    served: Path, encoder: FastEarlyExitEncoder
) -> None:
    with LocalServer(served) as server:
        server.service.batcher._work_seconds = 60.0  # so much for a token in a layer
        body = {"inputs": [[ROW]], "threshold": 1.0, "raw_scores": True, "deadline_ms": 60_000}
        reply = server.post("/predict", body)
        assert reply.headers["x-deadline-exit"] == "0"
        assert reply.headers["x-exit-layer"] == "1"
        body = {"inputs": [[ROW]], "threshold": 1.0, "raw_scores": True, "max_layers": 1}
        bounded = server.post("/predict", body)
        assert bounded.json() == reply.json()
        assert "x-deadline-exit" not in bounded.headers
        server.service.batcher._work_seconds = 60.0
        both = server.post("/predict", body | {"deadline_ms": 60_000})
        assert both.json() == reply.json()
        assert "x-deadline-exit" not in both.headers
        assert server.metric("ce_deadline_exits_total") == 1.0


def test_rows_of_clients_that_hang_up_are_dropped(served: Path, pool: ThreadPoolExecutor) -> None:
    with LocalServer(served, batch=10) as server:
        first = blocked(server, pool)
        body = json.dumps({"inputs": [[ROW]] * 2}).encode()
        head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: server.service.batcher.queued_tokens == 20)
        wait_until(lambda: server.metric('ce_dropped_rows_total{reason="hung_up"}') == 2.0)
        assert server.service.batcher.queued_tokens == 0
        after = ask(server, pool)
        server.model.gate.set()
        assert [first.result().status_code, after.result().status_code] == [200, 200]
        assert [len(batch) for batch in server.model.batches] == [1, 1]
        wait_until(lambda: server.service.running == 0)


def test_a_failing_pass_is_told_and_the_next_one_runs(
    served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LocalServer(served) as server:

        def fail(*arguments: object) -> None:
            raise RuntimeError("no memory\nfor it")

        with monkeypatch.context() as patch:
            patch.setattr(server.model, "start", fail)
            reply = server.post("/predict", {"inputs": ROW})
        assert reply.status_code == 424
        assert reply.json() == {"error": "Backend error: no memory for it", "error_type": "Backend"}
        assert server.post("/predict", {"inputs": ROW}).status_code == 200
        assert server.client.get("/health").status_code == 200


def test_what_is_queued_is_answered_before_the_end(served: Path, pool: ThreadPoolExecutor) -> None:
    with LocalServer(served, batch=10) as server:
        first = blocked(server, pool)
        queued = [ask(server, pool) for _ in range(5)]
        server._server.should_exit = True
        wait_until(lambda: not accepts(server.port))
        server.model.gate.set()
        assert [future.result().status_code for future in (first, *queued)] == [200] * 6
    assert not server.service.batcher.is_healthy


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
