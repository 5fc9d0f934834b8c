"""HTTP: a thin pure-ASGI layer in front of KServe's app. It owns every route of the contract.

CloudEvents are the one thing that is handed on to KServe's app; every other route of that app answers 404 here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from monitoring.logs import request_id
from monitoring.metrics import Metrics
from serving.calls import STAGES, Call, Reply
from serving.dataplane import DataPlane
from serving.errors import (
    BadRequest,
    BodyTooLarge,
    MethodNotAllowed,
    NotFound,
    NotLoadedYet,
    NotOffered,
    QueueFull,
    RateLimited,
    ServingError,
    UnsupportedMediaType,
    outcome_of,
    public_text,
)
from serving.status import index, is_ready, metadata, model_status, server_metadata
from serving.transport.v1 import V1Request, dumps, parse_object
from serving.transport.v2 import V2Request

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = (b"content-type", b"application/json")
TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
TIMING = b", ".join(stage.encode() + b";dur=%.3f" for stage in STAGES)
LONGEST_ID = 128
LINGER_SECONDS = 5.0


class Response:
    """Status, body and extra headers of one answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (JSON,)) -> None:
        self.status, self.body, self.headers = status, body, list(headers)


class Exchange:
    """One HTTP request: its route's parts, its headers, and its body, read once and bounded."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive, self._limit, self._limited_by = receive, limit, "server.max_body_bytes"
        self._unread = b"content-length" in self.headers or b"transfer-encoding" in self.headers
        given = self.headers.get(b"x-request-id", b"").decode("latin-1")
        self.request_id = given if 0 < len(given) <= LONGEST_ID and given.isprintable() else uuid.uuid4().hex

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be too long; a route may take less."""
        if limit is not None and limit < self._limit:
            self._limit, self._limited_by = limit, "this route takes"
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:19]) > self._limit:
            raise BodyTooLarge(self._too_large())
        body = await self._next()
        if not self._unread and len(body) <= self._limit:
            return body
        chunks, size = [body], len(body)
        while size <= self._limit and self._unread:
            chunks.append(await self._next())
            size += len(chunks[-1])
        if size > self._limit:
            raise BodyTooLarge(self._too_large())
        return b"".join(chunks)

    async def _next(self) -> bytes:
        message = await self._receive()
        self._unread = message.get("more_body", False)
        return bytes(message.get("body", b""))

    @property
    def lingers(self) -> bool:
        """Whether the client may still be sending a body that the answer did not need."""
        return self._unread and not self.waits

    @property
    def waits(self) -> bool:
        """Whether the client holds a body back until it is asked for it, which the answer never did."""
        return self._unread and b"expect" in self.headers

    async def discard(self) -> None:
        """Reads and drops the rest of the body: closing on bytes that nobody read would cut the answer off."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread:
                    await self._next()

    def _too_large(self) -> str:
        return f"The body is longer than {self._limited_by} ({self._limit})."

    def check_media_type(self) -> None:
        """Raises UnsupportedMediaType unless the content type is absent, JSON or octet-stream."""
        given = self.headers.get(b"content-type", b"")
        media = given.split(b";", 1)[0].strip().lower()
        if media and media not in (b"application/json", b"application/octet-stream"):
            raise UnsupportedMediaType("The content type must be application/json.")
        if b"inference-header-content-length" in self.headers:
            raise NotOffered("Binary tensors are not offered yet; send the tensors as JSON, or over gRPC.")

    def timeout(self) -> float | None:
        """The client's own deadline in seconds, from `x-request-timeout-ms`."""
        text = self.headers.get(b"x-request-timeout-ms")
        if text is None:
            return None
        if not text.isdigit() or int(text[:12]) == 0:
            raise BadRequest("The header x-request-timeout-ms must be a positive number of milliseconds.")
        return int(text[:12]) / 1000


Handler = Callable[[Exchange, dict[str, str]], Awaitable[Response]]


class Http:
    """The ASGI application. `kserve_app` answers CloudEvents only; without a `webhook` its route does not exist."""

    def __init__(
        self,
        plane: DataPlane,
        metrics: Metrics,
        kserve_app: App,
        max_body_bytes: int,
        exposition: Callable[[], bytes],
        webhook: Handler | None = None,
    ) -> None:
        self._plane, self._metrics, self._kserve_app = plane, metrics, kserve_app
        self._limit, self._exposition = max_body_bytes, exposition
        self._routes = self._table(webhook)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; nothing a client sends makes it raise."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        exchange = Exchange(scope, receive, self._limit)
        request_id.set(exchange.request_id)
        if _is_cloud_event(scope):
            await self._cloud_event(exchange, scope, send)
        else:
            await self._send(await self._respond(exchange), exchange, send)

    async def _cloud_event(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        """KServe's app answers, from a body that was read within the limit."""
        try:
            body = await exchange.body()
            if not body.strip():
                raise BadRequest("The body is empty.")
        except ServingError as error:
            await self._send(error_response(error), exchange, send)
            return

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        await self._kserve_app(scope, receive, send)

    async def _respond(self, exchange: Exchange) -> Response:
        try:
            handler, parts = self._route(exchange.method, exchange.path)
            return await handler(exchange, parts)
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            return error_response(error)

    def _route(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler of a path. Raises NotFound or MethodNotAllowed."""
        allow: list[str] = []
        for verb, pattern, handler in self._routes:
            match = pattern.fullmatch(path)
            if match is None:
                continue
            verbs = ("GET", "HEAD") if verb == "GET" else (verb,)
            if method in verbs:
                return handler, match.groupdict()
            allow += verbs
        if allow:
            raise MethodNotAllowed("This route does not take that method.", allow)
        raise NotFound("There is no such route; see docs/api.md for all of them.")

    async def _send(self, response: Response, exchange: Exchange, send: Send) -> None:
        headers = [
            *response.headers,
            (b"content-length", str(len(response.body)).encode()),
            (b"x-request-id", exchange.request_id.encode("latin-1", "replace")),
        ]
        if self._plane.draining or exchange.waits:
            headers.append((b"connection", b"close"))
        body, lingers = b"" if exchange.method == "HEAD" else response.body, exchange.lingers
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": lingers})
        if lingers:
            await exchange.discard()
            await send({"type": "http.response.body"})

    def _table(self, webhook: Handler | None) -> list[tuple[str, re.Pattern[str], Handler]]:
        model = "(?P<model>[^/:]+)"
        versioned = f"{model}(?:/versions/(?P<version>[^/:]+))?"
        routes: list[tuple[str, str, Handler]] = [
            ("POST", f"/v1/models/{versioned}:predict", self._predict),
            ("POST", f"/v1/models/{model}/labels/(?P<label>[^/:]+):predict", self._predict),
            ("POST", f"/v1/models/{versioned}:explain", self._explain),
            ("POST", f"/v1/models/{model}/labels/(?P<label>[^/:]+):explain", self._explain),
            ("GET", "/|/health|/health/live", _constant({"status": "alive"})),
            ("GET", "/v2/health/live", _constant({"live": True})),
            ("GET", "/ready|/health/ready|/v2/health/ready", self._ready),
            ("GET", "/metrics", self._show_metrics),
            ("GET", "/v1/models", self._models),
            ("GET", f"/v1/models/{model}", self._model),
            ("GET", "/v2/?", self._server),
            ("GET", f"/v2/models/{versioned}", self._metadata),
            ("GET", f"/v2/models/{versioned}/ready", self._model_ready),
            ("POST", "/v2/repository/index", self._index),
            ("POST", f"/v2/models/{versioned}/infer", self._infer),
            ("POST", f"/v2/repository/models/{model}/(?P<what>load|unload)", self._repository),
        ]
        if webhook is not None:
            routes.append(("POST", "/webhooks/mlflow", webhook))
        return [(verb, re.compile(pattern), handler) for verb, pattern, handler in routes]

    async def _predict(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        exchange.check_media_type()
        call, body = await self._call(exchange, parts)
        return _answered(await self._plane.infer(call, V1Request(body)))

    async def _infer(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        exchange.check_media_type()
        call, body = await self._call(exchange, parts)
        return _answered(await self._plane.infer(call, V2Request(body)))

    async def _call(self, exchange: Exchange, parts: dict[str, str]) -> tuple[Call, bytes]:
        body = await exchange.body()
        received, timeout = time.monotonic(), exchange.timeout()
        call = Call(parts["model"], parts.get("version"), parts.get("label"), exchange.request_id, received, timeout)
        return call, body

    async def _explain(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        self._plane.manager(parts["model"])
        raise NotOffered("This model has no explainer.")

    async def _ready(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        ready = self._plane.ready
        return Response(200 if ready else 503, dumps({"ready": ready}))

    async def _show_metrics(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, self._exposition(), (TEXT,))

    async def _models(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps({"models": list(self._plane.managers)}))

    async def _model(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        status = model_status(self._plane.manager(parts["model"]))
        return Response(200 if status["ready"] else 503, dumps(status))

    async def _server(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps(server_metadata()))

    async def _metadata(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps(metadata(self._plane.manager(parts["model"]), parts.get("version"))))

    async def _model_ready(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        manager = self._plane.manager(parts["model"])
        if is_ready(manager, parts.get("version")):
            return Response(200, dumps({"name": manager.name, "ready": True}))
        return Response(503, dumps({"name": manager.name, "ready": False, "error": f"Not READY: {manager.why()}."}))

    async def _index(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        body = await exchange.body()
        only_ready = bool(parse_object(body).get("ready", False)) if body.strip() else False
        return Response(200, dumps(index(self._plane.managers.values(), only_ready=only_ready)))

    async def _repository(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        await self._plane.repository(parts["model"], load=parts["what"] == "load")
        return Response(200, dumps({"name": parts["model"], parts["what"]: True}))


def _constant(body: dict[str, Any]) -> Handler:
    encoded = dumps(body)

    async def answer(exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, encoded)

    return answer


def _answered(reply: Reply[bytes]) -> Response:
    timing = TIMING % tuple(1000 * seconds for seconds in reply.stages)
    headers = [JSON, (b"x-model-version", reply.version.encode()), (b"server-timing", timing)]
    if reply.features:
        headers.append((b"x-headway-features", reply.features.encode()))
    return Response(200, reply.payload, headers)


def error_response(error: Exception) -> Response:
    """The contract's error body and status for any exception."""
    headers = [JSON]
    if isinstance(error, QueueFull | RateLimited | NotLoadedYet):
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    return Response(outcome_of(error).http, dumps({"error": public_text(error)}), headers)


def _is_cloud_event(scope: Scope) -> bool:
    """Binary mode has `ce-specversion`; structured mode has its own media type. Both only on `:predict`."""
    if (
        scope["method"] != "POST"
        or not scope["path"].startswith("/v1/models/")
        or not scope["path"].endswith(":predict")
    ):
        return False
    return any(
        name == b"ce-specversion" or (name == b"content-type" and value.startswith(b"application/cloudevents+json"))
        for name, value in scope["headers"]
    )


__all__ = ["Http", "error_response"]
