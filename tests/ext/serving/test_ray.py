"""Ray itself: a dataset through `ClassifyBatch`, and the server as a deployment."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import pytest
from support.server import LocalServer, texts

from consistentee_ext import FastEarlyExitEncoder

ray = pytest.importorskip("ray")
from consistentee_ext.serving.ray import ClassifyBatch, deployment  # noqa: E402

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def on_ray() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_a_dataset(served: Path, encoder: FastEarlyExitEncoder) -> None:
    class WithThreads(ClassifyBatch):
        def __call__(self, table: pa.Table) -> pa.Table:
            import torch

            found = super().__call__(table)
            return found.append_column("threads", pa.array([torch.get_num_threads()] * len(found)))

    own = texts(300, seed=3)
    table = pa.table({"id": list(range(300)), "body": own})
    found = ray.data.from_arrow(table).map_batches(
        WithThreads,
        fn_constructor_kwargs={"checkpoint": str(served), "text_columns": ["body"]},
        batch_format="pyarrow",
        batch_size=64,
        num_cpus=2,
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows = sorted(found.take_all(), key=lambda row: row["id"])
    expected = encoder.predict(own)
    assert [row["id"] for row in rows] == list(range(300))
    assert [row["exit_layer"] for row in rows] == expected.exit_layers.tolist()
    assert [row["exit_score"] for row in rows] == expected.exit_scores.tolist()
    assert {row["threads"] for row in rows} == {2}


def test_limits_are_checked_where_a_deployment_is_made(served: Path) -> None:
    pytest.importorskip("ray.serve")
    with pytest.raises(ValueError, match="max_queue_tokens: expected at least 1, got 0"):
        deployment(served, queue_tokens=0)


def test_a_deployment_answers_as_the_server(served: Path) -> None:
    serve = pytest.importorskip("ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(deployment(served, client_batch_size=4).bind(), route_prefix="/")
    requests: list[tuple[str, dict[str, Any]]] = [
        ("/predict", {"inputs": texts(1)[0]}),
        ("/predict", {"inputs": [[text] for text in texts(4)], "raw_scores": True}),
        ("/predict", {"inputs": texts(1)[0], "level": "exact"}),
        ("/predict", {"inputs": ["a", "b", "c"]}),
        ("/predict", {"inputs": ""}),
        ("/classify", {"input": texts(2)}),
        ("/rerank", {"query": "w5", "texts": ["w6"]}),
    ]
    with (
        LocalServer(served) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client,
    ):
        for path, body in requests:
            ours, same = client.post(path, json=body), server.post(path, body)
            assert ours.status_code == same.status_code
            assert stable(ours.json()) == stable(same.json())
            assert ours.headers.get("x-exit-layer") == same.headers.get("x-exit-layer")
        many = client.post("/predict", json={"inputs": [[text] for text in texts(5)]})
        assert many.status_code == 422
        assert "maximum allowed batch size 4" in many.json()["error"]
        assert client.get("/health").status_code == 200
        assert client.get("/info").json()["max_client_batch_size"] == 4
    serve.shutdown()


def stable(body: Any) -> Any:
    """Without what is of one reply alone."""
    return (
        {k: v for k, v in body.items() if k not in ("id", "created")}
        if isinstance(body, dict)
        else body
    )
