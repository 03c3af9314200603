"""The routes: text-embeddings-inference's and vLLM's, as their clients call them."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

import consistentee_ext
from consistentee_ext.configuration import class_names
from consistentee_ext.encoder import FastEarlyExitEncoder
from consistentee_ext.serving import bodies
from consistentee_ext.serving.errors import ApiError, validation
from consistentee_ext.serving.levels import ladder
from consistentee_ext.serving.metrics import Metrics
from consistentee_ext.serving.model import EncoderModel
from consistentee_ext.serving.service import (
    MAX_CONCURRENT_REQUESTS,
    HungUpError,
    Limits,
    Reply,
    Service,
)
from consistentee_ext.serving.status import status_page

BODY_BYTES = 2_000_000
HUNG_UP = 499  # a status that nobody reads
Body = dict[str, Any]
Formatted = tuple[Any, Sequence[Reply]]


def load_app(
    checkpoint: str | os.PathLike[str], limits: Limits, level: str | None = None
) -> Starlette:
    """The server of a checkpoint, as an ASGI application.

    Args:
        checkpoint: as for `FastEarlyExitEncoder.from_pretrained`; clients see it as ``model_id``.
        limits: of requests.
        level: of the checkpoint's, at which it runs; default its threshold.

    Raises:
        ValueError: a level that the checkpoint does not have.
        OSError: there is no such checkpoint.
    """
    encoder = FastEarlyExitEncoder.from_pretrained(checkpoint)
    threshold = encoder.threshold
    assert isinstance(threshold, float)  # a checkpoint has one for all layers
    levels = ladder(encoder.config, threshold, level)
    service = Service(EncoderModel(encoder), levels, limits, Metrics(encoder.num_layers))
    return Routes(service, str(checkpoint)).app()


class Routes:
    """Endpoints around a service.

    Args:
        service: answers.
        model_id: the checkpoint, as clients see it.
    """

    def __init__(self, service: Service, model_id: str) -> None:
        self._service = service
        self._model_id = model_id
        self._created = int(time.time())
        self._labels = class_names(service.config)
        self._is_reranker = len(self._labels) == 1

    def app(self) -> Starlette:
        """All routes; the service starts and drains with it."""
        default = self.rerank if self._is_reranker else self.predict
        post = {"/predict": self.predict, "/rerank": self.rerank, "/vertex": self.vertex}
        post |= {"/": default, "/invocations": default}
        get = {"/": self.health, "/health": self.health, "/ping": self.health}
        get |= {
            "/v1/models": self.models,
            "/info": self.info,
            "/metrics": self.metrics,
            "/status": self.status,
        }
        routes = [Route(path, self._tei(route), methods=["POST"]) for path, route in post.items()]
        routes += [Route("/classify", self._vllm(self.classify), methods=["POST"])]
        routes += [Route(path, route, methods=["GET"]) for path, route in get.items()]
        return Starlette(routes=routes, lifespan=self._lifespan)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._service.start()
        yield
        await self._service.drain()

    async def predict(self, body: Body, request: Request) -> Formatted:
        """Scores of each text's labels, the highest first."""
        ask = bodies.predict_ask(body)
        self._count("batch" if ask.is_batch else "single")
        (reply,) = await self._answer([ask], request)
        return self._predictions(ask, reply), [reply]

    async def rerank(self, body: Body, request: Request) -> Formatted:
        """Texts by their scores beside a query."""
        ask = self._rerank_ask(body)
        shows_text = bodies.returns_text(body)
        self._count("batch")
        (reply,) = await self._answer([ask], request)
        return _ranks(ask, reply, shows_text), [reply]

    async def vertex(self, body: Body, request: Request) -> Formatted:
        """Several bodies of ``/predict`` or ``/rerank`` as ``instances``."""
        instances = body.get("instances")
        if not isinstance(instances, list) or not all(isinstance(i, dict) for i in instances):
            raise validation("instances: expected a list of objects")
        most = self._service.limits.client_batch_size
        if len(instances) > most:
            message = f"batch size {len(instances)} > maximum allowed batch size {most}"
            raise validation(message, reason="batch_size")
        ranked = [{"query", "texts"} <= instance.keys() for instance in instances]
        asks = [
            self._rerank_ask(instance) if is_ranked else bodies.predict_ask(instance)
            for instance, is_ranked in zip(instances, ranked, strict=True)
        ]
        self._count("batch")
        replies = await self._answer(asks, request)
        predictions = [
            _ranks(ask, reply, bodies.returns_text(instance))
            if is_ranked
            else self._predictions(ask, reply)
            for instance, is_ranked, ask, reply in zip(
                instances, ranked, asks, replies, strict=True
            )
        ]
        return {"predictions": predictions}, replies

    async def classify(self, body: Body, request: Request) -> Formatted:
        """vLLM's: the label and the probabilities of each text."""
        model = body.get("model")
        if model not in (None, self._model_id):
            message = f"The model `{model}` does not exist."
            raise ApiError("Validation", message, status=404, reason="model")
        ask = bodies.classify_ask(body)
        self._count("batch")
        (reply,) = await self._answer([ask], request)
        data = [
            {
                "index": index,
                "label": self._labels[max(range(len(row)), key=row.__getitem__)],
                "probs": row,
                "num_classes": len(row),
            }
            for index, row in enumerate(reply.scores)
        ]
        usage = {
            "prompt_tokens": reply.tokens,
            "total_tokens": reply.tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        }
        return {
            "id": f"classify-{uuid.uuid4().hex}",
            "object": "list",
            "created": int(time.time()),
            "model": self._model_id,
            "data": data,
            "usage": usage,
        }, [reply]

    async def health(self, request: Request) -> Response:
        """200, or 503 while it drains or when the batcher's thread has died."""
        if self._service.batcher.is_healthy:
            return Response()
        error = ApiError("Unhealthy", "unhealthy")
        return JSONResponse(error.body(), error.status)

    async def info(self, request: Request) -> Response:
        """What is served, and its limits."""
        service = self._service
        names = {str(number): name for number, name in enumerate(self._labels)}
        kind = "reranker" if self._is_reranker else "classifier"
        numbers = {name: number for number, name in enumerate(self._labels)}
        return JSONResponse(
            {
                "model_id": self._model_id,
                "model_sha": getattr(service.config, "_commit_hash", None),
                "model_dtype": str(service.model.encoder.dtype).removeprefix("torch."),
                "model_type": {kind: {"id2label": names, "label2id": numbers}},
                "max_concurrent_requests": MAX_CONCURRENT_REQUESTS,
                "max_input_length": service.model.encoder.max_tokens,
                "max_batch_tokens": service.limits.batch_tokens,
                "max_batch_requests": None,
                "max_client_batch_size": service.limits.client_batch_size,
                "auto_truncate": True,
                "tokenization_workers": 1,
                "version": consistentee_ext.__version__,
                "max_queue_tokens": service.limits.queue_tokens,
                "level": service.batcher.level.name,
            }
        )

    async def models(self, request: Request) -> Response:
        """vLLM's: its clients ask for the name that they send with ``/classify``."""
        model = {
            "id": self._model_id,
            "object": "model",
            "created": self._created,
            "owned_by": "consistentee",
            "root": self._model_id,
            "parent": None,
            "max_model_len": self._service.model.encoder.max_tokens,
        }
        return JSONResponse({"object": "list", "data": [model]})

    async def metrics(self, request: Request) -> Response:
        """For Prometheus."""
        return PlainTextResponse(self._service.metrics.render())

    async def status(self, request: Request) -> Response:
        """For a person."""
        return HTMLResponse(status_page(self._model_id, self._service))

    def _rerank_ask(self, body: Body) -> bodies.Ask:
        ask = bodies.rerank_ask(body)
        if not self._is_reranker:
            message = "Backend error: model is not a re-ranker model"
            raise ApiError("Backend", message, reason="model_type")
        return ask

    async def _answer(self, asks: Sequence[bodies.Ask], request: Request) -> list[Reply]:
        async def hang_up() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        return await self._service.answer(asks, hang_up)

    def _predictions(self, ask: bodies.Ask, reply: Reply) -> list[Any]:
        rows = [
            [{"score": row[label], "label": self._labels[label]} for label in _highest_first(row)]
            for row in reply.scores
        ]
        return rows if ask.is_batch else rows[0]

    def _count(self, method: str) -> None:
        self._service.metrics.requests.labels(method).inc()

    def _tei(
        self, route: Callable[[Body, Request], Awaitable[Formatted]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return await self._respond(route, request)
            except ApiError as error:
                return self._refuse(error, error.body(), error.status)

        return endpoint

    def _vllm(
        self, route: Callable[[Body, Request], Awaitable[Formatted]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            try:
                return await self._respond(route, request)
            except ApiError as error:
                return self._refuse(error, error.vllm_body(), error.vllm_status)

        return endpoint

    def _refuse(self, error: ApiError, body: Any, status: int) -> Response:
        self._service.metrics.failures.labels(error.reason).inc()
        return JSONResponse(body, status, error.headers)

    async def _respond(
        self, route: Callable[[Body, Request], Awaitable[Formatted]], request: Request
    ) -> Response:
        service = self._service
        begun = time.monotonic()
        if service.running >= MAX_CONCURRENT_REQUESTS:
            raise ApiError("Overloaded", "Model is overloaded", retry_after=1)
        service.running += 1
        try:
            content, replies = await route(await _read(request), request)
        except (ClientDisconnect, HungUpError):
            return Response(status_code=HUNG_UP)
        finally:
            service.running -= 1
        response = JSONResponse(content)
        response.headers.update(self._measured(replies, time.monotonic() - begun))
        return response

    def _measured(self, replies: Sequence[Reply], seconds: float) -> dict[str, str]:
        """The headers of what a reply took; metrics are told too."""
        metrics = self._service.metrics
        answers = [answer for reply in replies for answer in reply.answers]
        parts = {
            name: sum(reply.seconds[name] for reply in replies) / max(len(replies), 1)
            for name in ("tokenization", "queue", "inference")
        }
        metrics.successes.labels("single" if len(answers) == 1 else "batch").inc()
        metrics.duration.observe(seconds)
        metrics.tokenization.observe(parts["tokenization"])
        metrics.queue.observe(parts["queue"])
        metrics.inference.observe(parts["inference"])
        whole = str(int(seconds * 1000))
        levels = dict.fromkeys(answer.level for answer in answers if answer.level is not None)
        cut = [str(row) for row, answer in enumerate(answers) if answer.at_deadline]
        return {
            "x-compute-type": self._service.model.encoder.device.type,
            "x-compute-time": whole,
            "x-compute-characters": str(sum(reply.characters for reply in replies)),
            "x-compute-tokens": str(sum(reply.tokens for reply in replies)),
            "x-total-time": whole,
            **{f"x-{name}-time": str(int(taken * 1000)) for name, taken in parts.items()},
            "x-exit-layer": ",".join(str(answer.exit_layer) for answer in answers),
            **({"x-level": ",".join(map(_header, levels))} if levels else {}),
            **({"x-deadline-exit": ",".join(cut)} if cut else {}),
        }


def _ranks(ask: bodies.Ask, reply: Reply, shows_text: bool) -> list[Any]:
    """Of the pairs of a query and each text: numbers of texts, the highest score first."""
    scores = [row[0] for row in reply.scores]
    found = []
    for index in _highest_first(scores):
        rank: Body = {"index": index}
        if shows_text:
            rank["text"] = ask.texts[index][1]
        found.append(rank | {"score": scores[index]})
    return found


def _highest_first(scores: Sequence[float]) -> list[int]:
    """Their places; of equal ones the last comes first, as from the other server."""
    return sorted(range(len(scores)), key=scores.__getitem__)[::-1]


def _header(name: str) -> str:
    """A level's name as a header can hold it."""
    return name.encode("unicode_escape").decode()


async def _read(request: Request) -> Body:
    """The JSON object of a request."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (
        kind.startswith("application/") and kind.endswith("+json")
    ):
        message = "Expected request with `Content-Type: application/json`"
        raise ApiError("Validation", message, status=415)
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > BODY_BYTES:
            message = f"body: expected at most {BODY_BYTES} bytes"
            raise ApiError("Validation", message, status=413)
    return bodies.parse_object(bytes(raw))
