"""The server as processes: one, or some on the same port."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import wait
from tempfile import TemporaryDirectory
from typing import Any

import torch
import uvicorn
from typing_extensions import override

from consistentee_ext.serving.app import load_app
from consistentee_ext.serving.service import Limits

DRAIN_SECONDS = 30  # for requests under way, and for clients that are slow to send theirs
KEEP_ALIVE_SECONDS = 75  # longer than clients keep idle connections, so that they close first


def serve(
    checkpoint: str | os.PathLike[str],
    *,
    host: str,
    port: int,
    limits: Limits,
    level: str | None = None,
    workers: int = 1,
) -> None:
    """Serve a checkpoint until SIGTERM or SIGINT, after which what is under way is answered.

    Args:
        checkpoint: as for `FastEarlyExitEncoder.from_pretrained`; clients see it as ``model_id``.
        host: to listen at.
        port: likewise; 0 for a free one, which is written to stderr.
        limits: of requests.
        level: of the checkpoint's, at which the server runs; default its threshold.
        workers: processes, each with its copy of the weights and its share of the threads.

    Raises:
        ValueError: a number out of its range, a level that the checkpoint does not have.
        OSError: the port is taken, or there is no such checkpoint.
        RuntimeError: a worker ended by itself.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    with _bound(host, port) as listener:
        if workers == 1:
            _run(checkpoint, limits, level, listener)
        else:
            _run_workers(workers, (checkpoint, limits, level, listener))


def _bound(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet: clients are refused until the model is there."""
    if not 0 <= port <= 65535:  # which the system would take modulo 65536
        raise ValueError(f"port: expected 0 to 65535, got {port}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # The protocol by its number: asyncio looks at it before it turns off Nagle's algorithm,
        # which holds a reply back for 40 ms.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise OSError(f"serve: cannot listen at {host}:{port}: {error}") from None
    return listener


def _run(
    checkpoint: str | os.PathLike[str], limits: Limits, level: str | None, listener: socket.socket
) -> None:
    config = uvicorn.Config(
        load_app(checkpoint, limits, level),
        # Not what else is installed: on uvloop a reply to a client that has gone is a traceback.
        loop="asyncio",
        http="h11",
        log_level="error",  # a warning for each request that is none would fill the log
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
    _Server(config, str(checkpoint)).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Says where it is; after a signal it drains and returns, in place of dying by the signal."""

    def __init__(self, config: uvicorn.Config, model_id: str) -> None:
        super().__init__(config)
        self._model_id = model_id

    @override
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        sys.stderr.write(f"consistentee: {self._model_id} on http://{shown}:{port}\n")
        sys.stderr.flush()

    @override
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _run_workers(workers: int, arguments: tuple[Any, ...]) -> None:
    with TemporaryDirectory(prefix="consistentee-metrics-") as folder:
        # Workers write their metrics there, so that each can give the sums of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        spawn = multiprocessing.get_context("spawn")
        processes = [
            spawn.Process(target=_work, args=(workers, *arguments)) for _ in range(workers)
        ]
        stopping = False

        def stop(*_: object) -> None:
            nonlocal stopping
            stopping = True
            for process in processes:
                if process.is_alive():
                    process.terminate()

        for process in processes:
            process.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        first = wait([process.sentinel for process in processes])[0]
        ended_by_itself = not stopping
        stop()
        for process in processes:
            process.join()
    if ended_by_itself:
        code = next(process.exitcode for process in processes if process.sentinel == first)
        raise RuntimeError(f"serve: expected workers to run, one ended with code {code}")


def _work(workers: int, *arguments: Any) -> None:
    """A worker process."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)  # it was killed: nobody else would stop this one

    threading.Thread(target=follow, daemon=True).start()
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))
    try:
        _run(*arguments)
    except (ValueError, OSError, RuntimeError) as error:
        line = " ".join(str(error).split())
        sys.stderr.write(f"consistentee: {line}\n")
        sys.exit(2)
