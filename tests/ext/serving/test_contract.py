"""Requests as clients send them, valid and not, and the replies that they must get."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import pytest
from support.server import LocalServer, Server, texts

A, B, C = texts(3, seed=4, longest=6)
SHAPE = (
    "inputs: expected a string, a pair of strings [string, string], or a batch of both "
    "[[string], [string, string], ...]"
)
FLAT = "; a flat list is one pair: write a batch of texts as [[string], [string], ...]"
EMPTY = "`inputs` cannot be empty"
Case = tuple[dict[str, Any], int, str, str]


def validation(body: dict[str, Any], message: str) -> Case:
    return body, 422, "Validation", message


WRONG_SHARED: list[Case] = [
    validation({"raw_scores": 1}, "raw_scores: expected true or false, got a number"),
    validation({"truncate": "yes"}, "truncate: expected true or false, got a string"),
    validation(
        {"truncation_direction": "up"}, "truncation_direction: expected left or right, got 'up'"
    ),
    validation(
        {"truncation_direction": []}, "truncation_direction: expected left or right, got a list"
    ),
    validation({"threshold": 0}, "threshold: expected a number in (0, 1], got 0"),
    validation({"threshold": 1.5}, "threshold: expected a number in (0, 1], got 1.5"),
    validation({"threshold": True}, "threshold: expected a number in (0, 1], got true or false"),
    validation({"threshold": "0.5"}, "threshold: expected a number in (0, 1], got a string"),
    validation({"threshold": float("nan")}, "threshold: expected a number in (0, 1], got nan"),
    validation(
        {"threshold": 0.5, "level": "fast"}, "threshold: expected none beside a level, got both"
    ),
    validation({"level": 3}, "level: expected a string, got a number"),
    validation(
        {"level": "x"}, "level: expected one of the checkpoint's ('exact', 'fast'), got 'x'"
    ),
    validation({"max_layers": 0}, "max_layers: expected 1 to 4, got 0"),
    validation({"max_layers": 5}, "max_layers: expected 1 to 4, got 5"),
    validation({"max_layers": 2.5}, "max_layers: expected an integer, got a number"),
    validation({"deadline_ms": 0}, "deadline_ms: expected a number above 0, got 0"),
    validation({"deadline_ms": -1}, "deadline_ms: expected a number above 0, got -1"),
    validation({"deadline_ms": float("inf")}, "deadline_ms: expected a number above 0, got inf"),
    validation({"deadline_ms": "1"}, "deadline_ms: expected a number above 0, got a string"),
]
WRONG_INPUTS: list[Case] = [
    validation({}, "inputs: expected this field, got none"),
    validation({"input": A}, "inputs: expected this field, got none"),
    validation({"inputs": None}, f"{SHAPE}, got null"),
    validation({"inputs": 3}, f"{SHAPE}, got a number"),
    validation({"inputs": {}}, f"{SHAPE}, got an object"),
    validation({"inputs": True}, f"{SHAPE}, got true or false"),
    validation({"inputs": []}, f"{SHAPE}, got an empty list"),
    validation({"inputs": [A, B, C]}, f"{SHAPE}, got a list of 3 strings{FLAT}"),
    validation({"inputs": [A, 3]}, f"{SHAPE}, got a list with other things in it"),
    validation({"inputs": [A, [B]]}, f"{SHAPE}, got a list with other things in it"),
    validation({"inputs": [[A], B]}, f"{SHAPE}, got a string with other things in it"),
    validation({"inputs": [[A], 3]}, f"{SHAPE}, got a number with other things in it"),
    validation({"inputs": [[]]}, f"{SHAPE}, got a list of 0 strings"),
    validation({"inputs": [[A, B, C]]}, f"{SHAPE}, got a list of 3 strings"),
    validation({"inputs": [[[A]]]}, f"{SHAPE}, got a list with other things in it"),
    validation({"inputs": [[A]] * 33}, "batch size 33 > maximum allowed batch size 32"),
    validation({"inputs": "\ud800"}, "inputs: expected text, got half a character, '\\ud800'"),
    ({"inputs": ""}, 400, "Empty", EMPTY),
    ({"inputs": ["", ""]}, 400, "Empty", EMPTY),
    ({"inputs": [[A], [""]]}, 400, "Empty", EMPTY),
]
WRONG_RERANKS: list[Case] = [
    validation({"texts": [A]}, "query: expected this field, got none"),
    validation({"query": A}, "texts: expected this field, got none"),
    validation({"query": 3, "texts": [A]}, "query: expected a string, got a number"),
    validation({"query": A, "texts": A}, "texts: expected a list of strings, got a string"),
    validation(
        {"query": A, "texts": [A, 3]}, "texts: expected a list of strings, got a number in it"
    ),
    validation(
        {"query": A, "texts": [A], "return_text": 1},
        "return_text: expected true or false, got a number",
    ),
    validation({"query": A, "texts": [A] * 33}, "batch size 33 > maximum allowed batch size 32"),
    ({"query": A, "texts": []}, 400, "Empty", "`texts` cannot be empty"),
]


def raw(server: Server | LocalServer, content: bytes, kind: str = "application/json") -> Any:
    return server.client.post("/predict", content=content, headers={"content-type": kind})


def dumps(body: object) -> bytes:
    """JSON with NaN and halves of characters, which a client's library may refuse to write."""
    return json.dumps(body).encode()


@pytest.mark.parametrize(
    "case", [*WRONG_INPUTS, *(({"inputs": A} | c[0], *c[1:]) for c in WRONG_SHARED)], ids=repr
)
def test_wrong_predict(server: Server, case: Case) -> None:
    body, status, kind, message = case
    for path in ("/predict", "/", "/invocations"):
        reply = server.client.post(
            path, content=dumps(body), headers={"content-type": "application/json"}
        )
        assert (reply.status_code, reply.json()) == (
            status,
            {"error": message, "error_type": kind},
        )


@pytest.mark.parametrize("case", WRONG_RERANKS, ids=repr)
def test_wrong_rerank(reranker: LocalServer, case: Case) -> None:
    body, status, kind, message = case
    reply = reranker.post("/rerank", body)
    assert (reply.status_code, reply.json()) == (status, {"error": message, "error_type": kind})


def test_rerank_needs_a_reranker(server: Server) -> None:
    reply = server.post("/rerank", {"query": A, "texts": [B]})
    message = "Backend error: model is not a re-ranker model"
    assert (reply.status_code, reply.json()) == (
        424,
        {"error": message, "error_type": "Backend"},
    )


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({}, 400, "input: expected this field, got none"),
        ({"input": 3}, 400, "input: expected a list of strings, got a number"),
        ({"input": [A, 3]}, 400, "input: expected a list of strings, got a number in it"),
        ({"input": [[1, 2]]}, 400, "input: expected a list of strings, got a list in it"),
        ({"input": []}, 400, "`input` cannot be empty"),
        ({"input": ""}, 400, EMPTY),
        ({"input": [A] * 33}, 400, "batch size 33 > maximum allowed batch size 32"),
        ({"input": A, "model": "other"}, 404, "The model `other` does not exist."),
        (
            {"input": A, "truncate_prompt_tokens": 5},
            400,
            "truncate_prompt_tokens: expected -1, the model's limit, got 5",
        ),
        ({"input": A, "use_activation": 0}, 400, "use_activation: expected true or false, got a"),
    ],
    ids=repr,
)
def test_wrong_classify(server: Server, body: dict[str, Any], status: int, message: str) -> None:
    reply = server.post("/classify", body)
    error = reply.json()["error"]
    assert reply.status_code == error["code"] == status
    assert error["message"].startswith(message)
    assert error["type"] == {400: "BadRequestError", 404: "NotFoundError"}[status]
    assert list(error) == ["message", "type", "param", "code"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "instances: expected a list of objects"),
        ({"instances": [A]}, "instances: expected a list of objects"),
        ({"instances": [{"inputs": A}, {}]}, "inputs: expected this field, got none"),
        ({"instances": [{"inputs": A}] * 33}, "batch size 33 > maximum allowed batch size 32"),
    ],
    ids=repr,
)
def test_wrong_vertex(server: Server, body: dict[str, Any], message: str) -> None:
    reply = server.post("/vertex", body)
    assert (reply.status_code, reply.json()) == (
        422,
        {"error": message, "error_type": "Validation"},
    )


@pytest.mark.parametrize(
    ("content", "kind", "status", "message"),
    [
        (b"", "application/json", 400, "body: expected JSON in UTF-8: "),
        (b"{", "application/json", 400, "body: expected JSON in UTF-8: "),
        (b'{"inputs": "\xff"}', "application/json", 400, "body: expected JSON in UTF-8: "),
        (b"[" * 200_000, "application/json", 400, "body: expected JSON in UTF-8: it is nested"),
        (b"[]", "application/json", 422, "body: expected an object, got a list"),
        (b"null", "application/json", 422, "body: expected an object, got null"),
        (b'{"inputs": "a"}', "text/plain", 415, "Expected request with `Content-Type: appl"),
        (b" " * 2_000_001, "application/json", 413, "body: expected at most 2000000 bytes"),
    ],
    ids=str,
)
def test_bodies_that_cannot_be_read(
    server: Server, content: bytes, kind: str, status: int, message: str
) -> None:
    reply = raw(server, content, kind)
    assert reply.status_code == status
    assert reply.json()["error"].startswith(message)
    assert reply.json()["error_type"] == "Validation"


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": A, "parameters": {"top_k": 1}},
        {"inputs": A, "truncate": None, "raw_scores": None, "level": None},
        {"inputs": A, "unknown": 1},
        {"inputs": "😀 \u0000 \t\n"},
        {"inputs": " "},
        {"inputs": A, "deadline_ms": 1e9, "max_layers": 4, "threshold": 1},
    ],
    ids=repr,
)
def test_unusual_and_right(server: Server, body: dict[str, Any]) -> None:
    reply = server.post("/predict", body)
    assert reply.status_code == 200
    assert sum(row["score"] for row in reply.json()) == pytest.approx(1.0, abs=1e-5)


def test_other_paths_and_methods(server: Server) -> None:
    assert server.client.get("/nothing").status_code == 404
    assert server.client.get("/predict").status_code == 405
    assert server.client.delete("/health").status_code == 405
    assert raw(server, dumps({"inputs": A}), "application/json; charset=utf-8").status_code == 200
    assert raw(server, dumps({"inputs": A}), "application/vnd.api+json").status_code == 200


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_hostile_requests_are_refused_and_the_server_lives(server: Server, count: int) -> None:
    """Bodies cut, changed and glued at random; heads that are none; clients that go."""
    choose = random.Random(7)
    good = [dumps(case[0] | {"inputs": [[A], [B, C]]}) for case in WRONG_SHARED]
    statuses = set()
    for _ in range(count):
        body = bytearray(choose.choice(good))
        for _ in range(choose.randint(0, 4)):
            body[choose.randrange(len(body))] = choose.randrange(256)
        cut = bytes(body[: choose.randint(0, len(body))]) if choose.random() < 0.3 else bytes(body)
        statuses.add(raw(server, cut).status_code)
    assert statuses <= {200, 400, 422}
    for head in (b"\r\n\r\n", b"\x16\x03\x01", b"GET / HTTP/9.9\r\n\r\n", b"POST /predict\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
            client.sendall(head)
            client.shutdown(socket.SHUT_WR)
            while client.recv(65536):
                pass
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{")
    assert server.post("/predict", {"inputs": A}).status_code == 200
