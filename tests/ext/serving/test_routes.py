"""Each route over HTTP, compared with the encoder called directly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from support.server import LocalServer, Server, save_checkpoint, texts

from consistentee_ext import FastEarlyExitEncoder

LABELS = ["low", "middle", "high"]
BATCH = texts(12, seed=3)


def by_label(predictions: list[dict[str, Any]]) -> list[float]:
    """The scores in the labels' order; they must come highest first."""
    shown = [prediction["score"] for prediction in predictions]
    assert shown == sorted(shown, reverse=True)
    scores = {prediction["label"]: prediction["score"] for prediction in predictions}
    assert set(scores) == set(LABELS)
    return [scores[label] for label in LABELS]


def check_close(found: list[list[float]], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(found), expected, atol=1e-5, rtol=0)


def test_predict_gives_what_the_encoder_gives(
    server: Server, encoder: FastEarlyExitEncoder
) -> None:
    expected = encoder.predict(BATCH)
    assert len(expected.exit_layers.unique()) > 2
    for raw, wanted in ((False, expected.logits.softmax(-1)), (True, expected.logits)):
        body = {"inputs": [[text] for text in BATCH], "raw_scores": raw}
        reply = server.post("/predict", body)
        assert reply.status_code == 200
        check_close([by_label(row) for row in reply.json()], wanted)
        layers = [int(layer) for layer in reply.headers["x-exit-layer"].split(",")]
        assert layers == expected.exit_layers.tolist()
    for row, text in enumerate(BATCH):
        reply = server.post("/predict", {"inputs": text})
        check_close([by_label(reply.json())], expected.logits[row : row + 1].softmax(-1))
        assert reply.headers["x-exit-layer"] == str(expected.exit_layers[row].item())


def test_one_text_one_pair_and_a_batch_of_both(
    server: Server, encoder: FastEarlyExitEncoder
) -> None:
    first, second = BATCH[:2]
    pair = encoder.predict([(first, second)]).logits.softmax(-1)
    single = encoder.predict([first]).logits.softmax(-1)
    check_close([by_label(server.post("/predict", {"inputs": [first, second]}).json())], pair)
    check_close([by_label(server.post("/predict", {"inputs": [first]}).json())], single)
    mixed = server.post("/predict", {"inputs": [[first], [first, second], [first]]}).json()
    check_close([by_label(row) for row in mixed], torch.cat([single, pair, single]))


def test_headers_and_aliases(server: Server) -> None:
    text = BATCH[0]
    reply = server.post("/predict", {"inputs": text})
    headers = reply.headers
    assert headers["x-compute-type"] == "cpu"
    assert headers["x-compute-characters"] == str(len(text))
    assert headers["x-compute-tokens"] == str(len(text.split()) + 2)
    assert headers["x-level"] == "default"
    assert "x-deadline-exit" not in headers
    names = ("compute", "total", "tokenization", "queue", "inference")
    assert all(int(headers[f"x-{name}-time"]) >= 0 for name in names)
    for path in ("/", "/invocations"):
        assert server.post(path, {"inputs": text}).json() == reply.json()
    instances = [{"inputs": text}, {"inputs": [[text]]}]
    vertex = server.post("/vertex", {"instances": instances}).json()
    assert vertex == {"predictions": [reply.json(), [reply.json()]]}
    assert server.post("/vertex", {"instances": []}).json() == {"predictions": []}
    for path in ("/health", "/ping", "/"):
        found = server.client.get(path)
        assert (found.status_code, found.content) == (200, b"")


def test_info(server: Server, served: Path) -> None:
    info = server.client.get("/info").json()
    assert info["model_id"] == str(served)
    assert info["model_dtype"] == "float32"
    names = {str(number): label for number, label in enumerate(LABELS)}
    numbers = {label: number for number, label in enumerate(LABELS)}
    assert info["model_type"] == {"classifier": {"id2label": names, "label2id": numbers}}
    fields = {
        "model_sha", "max_concurrent_requests", "max_batch_requests", "auto_truncate",
        "tokenization_workers", "version",
    }  # fmt: skip
    assert fields <= info.keys()
    limits = ("max_input_length", "max_batch_tokens", "max_client_batch_size", "max_queue_tokens")
    assert [info[name] for name in limits] == [512, 2048, 32, 32768]


def test_speeds_of_single_requests(server: Server, encoder: FastEarlyExitEncoder) -> None:
    inputs = [[text] for text in BATCH]
    expected = encoder.predict(BATCH)
    bounded = server.post("/predict", {"inputs": inputs, "max_layers": 2})
    layers = [int(layer) for layer in bounded.headers["x-exit-layer"].split(",")]
    assert layers == expected.exit_layers.clamp(max=2).tolist()
    seen = set()
    for speed, threshold in (
        ({"threshold": 1.0}, 1.0),
        ({"level": "exact"}, 1.0),
        ({"level": "fast"}, 0.3),
        ({"threshold": 0.3}, 0.3),
    ):
        encoder.threshold = threshold
        wanted = encoder.predict(BATCH)
        reply = server.post("/predict", {"inputs": inputs, "raw_scores": True, **speed})
        layers = [int(layer) for layer in reply.headers["x-exit-layer"].split(",")]
        assert layers == wanted.exit_layers.tolist()
        check_close([by_label(row) for row in reply.json()], wanted.logits)
        assert reply.headers.get("x-level") == speed.get("level")
        seen.add(tuple(layers))
    assert len(seen) == 2
    encoder.threshold = 0.5


def test_long_texts_are_cut_or_refused(server: Server, encoder: FastEarlyExitEncoder) -> None:
    long = " ".join(texts(30, seed=9))
    words = long.split()
    assert len(words) > 520
    right = encoder.predict([" ".join(words[:510])]).logits.softmax(-1)
    left = encoder.predict([" ".join(words[-510:])]).logits.softmax(-1)
    check_close([by_label(server.post("/predict", {"inputs": long}).json())], right)
    for side in ("left", "Left"):
        body = {"inputs": long, "truncation_direction": side}
        check_close([by_label(server.post("/predict", body).json())], left)
    check_close([by_label(server.post("/predict", {"inputs": long}).json())], right)
    refused = server.post("/predict", {"inputs": long, "truncate": False})
    given = len(words) + 2
    message = f"Input validation error: `inputs` must have less than 512 tokens. Given: {given}"
    assert (refused.status_code, refused.json()) == (
        422,
        {"error": message, "error_type": "Validation"},
    )


def test_classify_is_vllms(server: Server, encoder: FastEarlyExitEncoder, served: Path) -> None:
    expected = encoder.predict(BATCH).logits
    reply = server.post("/classify", {"model": str(served), "input": BATCH}).json()
    assert reply["object"] == "list"
    assert reply["model"] == str(served)
    assert reply["id"].startswith("classify-")
    check_close([row["probs"] for row in reply["data"]], expected.softmax(-1))
    assert [row["index"] for row in reply["data"]] == list(range(len(BATCH)))
    wanted = [LABELS[number] for number in expected.argmax(-1).tolist()]
    assert [row["label"] for row in reply["data"]] == wanted
    assert {row["num_classes"] for row in reply["data"]} == {3}
    tokens = sum(len(text.split()) + 2 for text in BATCH)
    assert reply["usage"]["prompt_tokens"] == reply["usage"]["total_tokens"] == tokens
    one = server.post("/classify", {"input": BATCH[0], "use_activation": False}).json()
    check_close([row["probs"] for row in one["data"]], expected[:1])
    long = " ".join(texts(30, seed=9))
    assert server.post("/classify", {"input": long}).status_code == 400
    cut = server.post("/classify", {"input": long, "truncate_prompt_tokens": -1})
    assert cut.json()["usage"]["prompt_tokens"] == 512


def test_rerank(reranker: LocalServer) -> None:
    direct = FastEarlyExitEncoder.from_pretrained(reranker.checkpoint)
    query, documents = BATCH[0], BATCH[1:]
    logits = direct.predict([(query, text) for text in documents]).logits[:, 0]
    body = {"query": query, "texts": documents}
    for raw, scores in ((False, logits.sigmoid()), (True, logits)):
        found = reranker.post("/rerank", body | {"raw_scores": raw, "return_text": True}).json()
        assert [list(rank) for rank in found] == [["index", "text", "score"]] * len(documents)
        assert [rank["index"] for rank in found] == scores.argsort(descending=True).tolist()
        assert all(rank["text"] == documents[rank["index"]] for rank in found)
        shown = [rank["score"] for rank in found]
        torch.testing.assert_close(
            torch.tensor(shown), scores.sort(descending=True).values, atol=1e-5, rtol=0
        )
    plain = reranker.post("/", body).json()
    assert [list(rank) for rank in plain] == [["index", "score"]] * len(documents)
    vertex = reranker.post("/vertex", {"instances": [body]}).json()
    assert vertex == {"predictions": [plain]}
    info = reranker.client.get("/info").json()
    assert list(info["model_type"]) == ["reranker"]
    single = reranker.post("/predict", {"inputs": [query, documents[0]]}).json()
    assert single[0]["score"] == pytest.approx(logits[0].sigmoid().item(), abs=1e-5)


@pytest.mark.parametrize(
    ("problem_type", "classes"), [("multi_label_classification", 3), ("regression", 1)]
)
def test_the_problem_type_decides_what_a_score_is(
    tmp_path: Path, problem_type: str, classes: int
) -> None:
    folder = save_checkpoint(tmp_path, classes, problem_type=problem_type)
    logits = FastEarlyExitEncoder.from_pretrained(folder).predict(BATCH).logits
    wanted = logits if classes == 1 else logits.sigmoid()
    with LocalServer(folder) as server:
        reply = server.post("/classify", {"input": BATCH}).json()
        check_close([row["probs"] for row in reply["data"]], wanted)
        rows = server.post("/predict", {"inputs": [[text] for text in BATCH]}).json()
        shown = [sorted(p["score"] for p in row) for row in rows]
        check_close(shown, wanted.sort(-1).values)


def test_inference_clients_element(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub takes element 0 of the reply: of a flat list, the highest label."""
    from huggingface_hub import InferenceClient

    # an offline environment would refuse this machine's own server too
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    found: Any = InferenceClient(model=server.url).text_classification(BATCH[0])
    best = server.post("/", {"inputs": BATCH[0]}).json()[0]
    assert (found.label, found.score) == (best["label"], best["score"])


def test_metrics_and_status(server: Server) -> None:
    names = (
        'te_request_count{method="single"}',
        'te_request_success{method="single"}',
        "te_request_duration_count",
        "te_predict_count",
        "te_predict_success",
        "ce_exit_layer_count",
    )
    before = [server.metric(name) for name in names]
    server.post("/predict", {"inputs": BATCH[0]})
    server.post("/predict", {"inputs": 3})
    after = [server.metric(name) for name in names]
    assert [b - a for a, b in zip(before, after, strict=True)] == [1.0] * len(names)
    assert server.metric('te_request_failure{err="validation"}') >= 1.0
    text = server.client.get("/metrics").text
    for name in (
        "te_queue_size", "te_batch_next_size_bucket", "te_batch_next_tokens_bucket", "ce_level",
        "te_request_queue_duration_bucket", "te_request_inference_duration_bucket",
        "te_request_tokenization_duration_bucket", "te_request_input_length_bucket",
        "te_predict_duration_bucket", "ce_deadline_exits", "ce_token_layers",
    ):  # fmt: skip
        assert f"\n{name}" in text
    assert "# TYPE te_request_count counter" in text
    computed = server.metric('ce_token_layers_total{kind="computed"}')
    saved = server.metric('ce_token_layers_total{kind="saved"}')
    assert computed > 0 < saved
    page = server.client.get("/status").text
    assert "rows a second" in page
    assert "ready" in page
    assert page.count('class="bar"') == 4


def test_many_clients_get_their_own_answers(server: Server, encoder: FastEarlyExitEncoder) -> None:
    """The same alone and in any batch."""
    from concurrent.futures import ThreadPoolExecutor

    own = texts(96, seed=5)
    expected = encoder.predict(own)
    with httpx.Client(base_url=server.url, timeout=60) as client, ThreadPoolExecutor(16) as pool:

        def ask(row: int) -> tuple[list[float], int]:
            reply = client.post("/predict", json={"inputs": own[row], "raw_scores": True})
            return by_label(reply.json()), int(reply.headers["x-exit-layer"])

        found = list(pool.map(ask, range(96)))
    check_close([scores for scores, _ in found], expected.logits)
    assert [layer for _, layer in found] == expected.exit_layers.tolist()
    assert server.metric("te_queue_size") == 0.0


def test_replies_are_compact_json(server: Server) -> None:
    reply = server.post("/predict", {"inputs": BATCH[0]})
    assert reply.headers["content-type"] == "application/json"
    assert reply.text == json.dumps(reply.json(), separators=(",", ":"))
    assert list(reply.json()[0]) == ["score", "label"]
