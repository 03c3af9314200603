"""Requests as other projects' clients sent them, byte for byte but for host and model.

Recorded with llama-index-postprocessor-tei-rerank 0.6.0 (`TextEmbeddingInference`),
huggingface-api-haystack 3.1.0 (`HuggingFaceTEIRanker`) and requests 2.34.2, as in vLLM's
classification example.
"""

from __future__ import annotations

import json
import re
import socket
from typing import Any

import pytest
from support.server import LocalServer, Server

TEXTS = ["w5 w6", "w7", "w8 w9 w10"]
LLAMA_INDEX = b"""\
POST /rerank HTTP/1.1
Host: localhost
Accept: */*
Accept-Encoding: gzip, deflate
Connection: keep-alive
User-Agent: python-httpx/0.28.1
Content-Type: application/json
Content-Length: 49

{"query":"w5","texts":["w5 w6","w7","w8 w9 w10"]}"""
HAYSTACK = b"""\
POST /rerank HTTP/1.1
Host: localhost
Accept: */*
Accept-Encoding: gzip, deflate
Connection: keep-alive
User-Agent: python-httpx/0.28.1
Content-Length: 68
Content-Type: application/json

{"query":"w5","texts":["w5 w6","w7","w8 w9 w10"],"raw_scores":false}"""
VLLM_MODELS = b"""\
GET /v1/models HTTP/1.1
Host: localhost
User-Agent: python-requests/2.34.2
Accept-Encoding: gzip, deflate
accept: application/json
Connection: keep-alive
Content-Type: application/json

"""
VLLM = b"""\
POST /classify HTTP/1.1
Host: localhost
User-Agent: python-requests/2.34.2
Accept-Encoding: gzip, deflate
accept: application/json
Connection: keep-alive
Content-Type: application/json
Content-Length: %d

%b"""


def send(port: int, recorded: bytes) -> Any:
    """The JSON of the reply, which is one that such a client reads."""
    head, _, body = recorded.partition(b"\n\n")
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        with connection.makefile("rb") as reply:
            assert reply.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = b"".join(iter(reply.readline, b"\r\n")).decode()
            assert re.search("^content-type: application/json\r$", headers, re.M)
            size = re.search("^content-length: ([0-9]+)\r$", headers, re.M)
            assert size is not None
            return json.loads(reply.read(int(size[1])))


@pytest.mark.parametrize("recorded", [LLAMA_INDEX, HAYSTACK], ids=["LlamaIndex", "Haystack"])
def test_rerankers(reranker: LocalServer, recorded: bytes) -> None:
    pairs = [("w5", text) for text in TEXTS]
    scores = reranker.model.encoder.predict(pairs).logits[:, 0].sigmoid().tolist()
    order = sorted(range(3), key=lambda index: -scores[index])
    found = send(reranker.port, recorded)
    assert [rank["index"] for rank in found] == order
    assert [rank["score"] for rank in found] == pytest.approx([scores[i] for i in order], abs=1e-6)


def test_vllm(server: Server) -> None:
    (model,) = send(server.port, VLLM_MODELS)["data"]
    assert (model["id"], model["object"]) == (str(server.checkpoint), "model")
    body = json.dumps({"model": model["id"], "input": TEXTS}).encode()
    found = send(server.port, VLLM % (len(body), body))
    expected = server.post("/predict", {"inputs": [[text] for text in TEXTS]}).json()
    assert [row["label"] for row in found["data"]] == [row[0]["label"] for row in expected]
    assert [max(row["probs"]) for row in found["data"]] == [row[0]["score"] for row in expected]
