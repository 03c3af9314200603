"""The process: how it starts, stops, is killed, and shares a port with others."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from support.command_line import Run
from support.server import Server, texts, wait_until


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    from consistentee import cli

    def call(*arguments: object) -> Run:
        monkeypatch.setattr("sys.argv", ["consistentee", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capsys.readouterr()
        return Run(int(stopped.value.code or 0), out, err)

    return call


def test_mistakes_are_one_line(run: Callable[..., Run], served: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for options, line in (
            (("--port", port), f"serve: cannot listen at 127.0.0.1:{port}: [Errno 98] Address alr"),
            (("--port", 70000), "port: expected 0 to 65535, got 70000"),
            (("--port", 0, "--workers", 0), "workers: expected at least 1, got 0"),
            (("--port", 0, "--max-batch-tokens", 0), "max_batch_tokens: expected at least 1"),
            (("--port", 0, "--max-queue-tokens", -1), "max_queue_tokens: expected at least 1"),
            (("--port", 0, "--max-client-batch-size", 0), "max_client_batch_size: expected"),
            (("--port", 0, "--level", "x"), "level: expected one of the checkpoint's ('exact', "),
        ):
            done = run("serve", served, *options)
            assert done.code == 2
            assert done.err.startswith(f"consistentee: {line}")
            assert done.err.count("\n") == 1
    nowhere = run("serve", tmp_path / "none")
    assert (nowhere.code, nowhere.err.count("\n")) == (2, 1)


def test_without_the_extra_the_cure_is_named(
    run: Callable[..., Run], served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    done = run("serve", served)
    line = "consistentee: serve: expected the package uvicorn: pip install 'consistentee[serve]'\n"
    assert (done.code, done.err) == (2, line)


def test_the_library_imports_no_server() -> None:
    code = (
        "import sys, consistentee_ext, consistentee, consistentee.cli\n"
        "from consistentee_ext import FastEarlyExitEncoder\n"
        "names = {'starlette', 'uvicorn', 'prometheus_client', 'ray'}\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"[]\n"


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@pytest.mark.slow
def test_sigterm_answers_what_is_under_way(served: Path) -> None:
    """A client is still sending when the signal comes; a second one is idle."""
    body = json.dumps({"inputs": texts(1)[0]}).encode()
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with Server(served) as server, socket.create_connection(("127.0.0.1", server.port)) as client:
        assert server.client.get("/health").status_code == 200
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:5])
        wait_until(lambda: "requests now</th><td>1" in server.client.get("/status").text)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not accepts(server.port))
        client.sendall(body[5:])
        reply = b""
        while part := client.recv(65536):
            reply += part
        assert reply.startswith(b"HTTP/1.1 200 OK")
        assert b'"score"' in reply
        code, said = server.finish()
    assert (code, said) == (0, "")


@pytest.mark.slow
def test_a_killed_server_starts_again_on_its_port(served: Path) -> None:
    before = sorted((path.name, path.stat().st_mtime_ns) for path in served.iterdir())
    with Server(served) as server, ThreadPoolExecutor(8) as pool:
        url, port = server.url, server.port

        def ask(text: str) -> int:
            for _ in range(10_000):
                try:
                    return httpx.post(f"{url}/predict", json={"inputs": text}).status_code
                except httpx.TransportError:  # killed: the client comes again
                    wait_until(lambda: accepts(port))
            return 0

        replies = [pool.submit(ask, text) for text in texts(64)]
        wait_until(lambda: any(reply.done() for reply in replies))
        server.process.kill()
        server.finish()
        with Server(served, port=port):
            assert [reply.result() for reply in replies] == [200] * 64
    assert sorted((path.name, path.stat().st_mtime_ns) for path in served.iterdir()) == before


@pytest.mark.slow
def test_workers_share_a_port_and_their_metrics(served: Path) -> None:
    with Server(served, "--workers", 2) as server:
        for text in texts(30):
            with httpx.Client(base_url=server.url) as client:  # a connection of its own
                assert client.post("/predict", json={"inputs": text}).status_code == 200
        counts = [server.metric('te_request_count{method="single"}') for _ in range(4)]
        assert counts == [30.0] * 4
        server.process.send_signal(signal.SIGTERM)
        code, said = server.finish()
    assert code == 0
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "parent"])
def test_workers_end_together(served: Path, victim: str) -> None:
    with Server(served, "--workers", 2) as server:
        pid = server.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        workers = [
            int(child)
            for child in children
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]
        assert len(workers) == 2
        os.kill(workers[0] if victim == "worker" else pid, signal.SIGKILL)
        server.process.wait(60)
        wait_until(lambda: not accepts(server.port))
        wait_until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
        code, said = server.finish()
    if victim == "worker":
        assert code == 2
        assert "serve: expected workers to run, one ended with code -9" in said
    assert "Traceback" not in said
