"""HTTP: a thin pure-ASGI layer in front of KServe's app. It owns every route of the contract.

CloudEvents are the one thing that is handed on to KServe's app; every other route of that app answers 404 here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, TypeVar

from monitoring.logs import request_id
from monitoring.metrics import Metrics
from serving.dataplane import DataPlane
from serving.errors import (
    BadRequest,
    MethodNotAllowed,
    NotFound,
    NotOffered,
    NotReady,
    ServingError,
)
from serving.status import index, is_ready, metadata, model_status, server_metadata
from serving.transport.answers import Response, answered, complete_headers, error_response, question
from serving.transport.head import Head
from serving.transport.routes import INFER, LABELLED, MODEL, PREDICT, VERSIONED, target_of_path
from serving.transport.v1 import dumps, parse_object

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
App = Callable[[Scope, Receive, Send], Awaitable[None]]

TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
LINGER_SECONDS = 5.0


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


class Exchange(Head):
    """One HTTP request: its route's parts, its headers, and its body, read once and bounded."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        super().__init__(dict(scope["headers"]), limit)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._unread = b"content-length" in self.headers or b"transfer-encoding" in self.headers

    async def body(self, limit: int | None = None) -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be too long; a route may take less."""
        if limit is not None and limit < self.limit:
            self.limit, self.limited_by = limit, "this route takes"
        self.check_length()
        body = await self._next()
        if not self._unread and len(body) <= self.limit:
            return body
        chunks, size = [body], len(body)
        while size <= self.limit and self._unread:
            chunks.append(await self._next())
            size += len(chunks[-1])
        if size > self.limit:
            raise self.too_large()
        return b"".join(chunks)

    async def _next(self) -> bytes:
        message = await self._receive()
        if message.get("type") == "http.disconnect":
            raise ClientGone
        self._unread = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What the work returns. A client that hangs up after its whole body was read cancels it: raises ClientGone."""
        asked = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ClientGone
            return asked.result()
        finally:
            asked.cancel()
            gone.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

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
        with contextlib.suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread:
                    await self._next()


Handler = Callable[[Exchange, dict[str, str]], Awaitable[Response]]


class Routes:
    """An ASGI application over a table of methods, patterns of paths, and handlers.

    Bodies have `limit` bytes at most; while `draining()`, answers close their connections.
    """

    def __init__(self, limit: int, draining: Callable[[], bool], table: Sequence[tuple[str, str, Handler]]) -> None:
        self._limit, self._draining = limit, draining
        self._routes = [(verb, re.compile(pattern), handler) for verb, pattern, handler in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; nothing a client sends makes it raise."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        exchange = Exchange(scope, receive, self._limit)
        request_id.set(exchange.request_id)
        with contextlib.suppress(ClientGone):
            await self._answer(exchange, scope, send)

    async def _answer(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        await self._send(await self._respond(exchange), exchange, send)

    async def _respond(self, exchange: Exchange) -> Response:
        try:
            handler, parts = self._route(exchange.method, exchange.path)
            return await handler(exchange, parts)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            if not self._draining():
                raise
            return error_response(NotReady("The server is shutting down."))  # uvicorn's word for: past the bound
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
        close = self._draining() or exchange.waits
        headers = complete_headers(response, exchange, close=close)
        body, lingers = b"" if exchange.method == "HEAD" else response.body, exchange.lingers
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": lingers})
        if lingers:
            await exchange.discard()
            await send({"type": "http.response.body"})


class Http(Routes):
    """The server's application. `kserve_app` answers CloudEvents only; without a `webhook` its route does not exist."""

    def __init__(
        self,
        plane: DataPlane,
        metrics: Metrics,
        kserve_app: App,
        max_body_bytes: int,
        exposition: Callable[[], Awaitable[bytes]],
        webhook: Handler | None = None,
    ) -> None:
        self._plane, self._metrics, self._kserve_app = plane, metrics, kserve_app
        self._exposition = exposition
        super().__init__(max_body_bytes, lambda: plane.draining, self._table(webhook))

    async def _answer(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        if exchange.method == "POST" and exchange.is_cloud_event and _is_predict(exchange.path):
            await self._cloud_event(exchange, scope, send)
        else:
            await super()._answer(exchange, scope, send)

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

    def _table(self, webhook: Handler | None) -> list[tuple[str, str, Handler]]:
        routes: list[tuple[str, str, Handler]] = [
            ("POST", PREDICT, self._infer),
            ("POST", INFER, self._infer),
            ("POST", f"/v1/models/{VERSIONED}:explain", self._explain),
            ("POST", f"/v1/models/{LABELLED}:explain", self._explain),
            *ALIVE,
            ("GET", READY, self._ready),
            ("GET", "/metrics", self._show_metrics),
            ("GET", "/v1/models", self._models),
            ("GET", f"/v1/models/{MODEL}", self._model),
            ("GET", "/v2/?", self._server),
            ("GET", f"/v2/models/{VERSIONED}", self._metadata),
            ("GET", f"/v2/models/{VERSIONED}/ready", self._model_ready),
            ("POST", "/v2/repository/index", self._index),
            ("POST", f"/v2/repository/models/{MODEL}/(?P<what>load|unload)", self._repository),
        ]
        if webhook is not None:
            routes.append(("POST", "/webhooks/mlflow", webhook))
        return routes

    async def _infer(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        """V1 and V2; a client that hangs up cancels its request."""
        target = target_of_path(exchange.path)
        assert target is not None
        exchange.check_content()
        call, request = question(target, exchange, await exchange.body())
        return answered(await exchange.unless_gone(self._plane.infer(call, request)), request)

    async def _explain(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        self._plane.manager(parts["model"])
        raise NotOffered("This model has no explainer.")

    async def _ready(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return readiness(self._plane.ready)

    async def _show_metrics(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, await self._exposition(), (TEXT,))

    async def _models(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps({"models": self._plane.names}))

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
        return Response(200, dumps(index(self._plane.managers, self._plane.asleep, only_ready=only_ready)))

    async def _repository(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        await self._plane.repository(parts["model"], load=parts["what"] == "load")
        return Response(200, dumps({"name": parts["model"], parts["what"]: True}))


def _constant(body: dict[str, Any]) -> Handler:
    encoded = dumps(body)

    async def answer(exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, encoded)

    return answer


#: Liveness: the process can answer.
ALIVE: Sequence[tuple[str, str, Handler]] = (
    ("GET", "/|/health|/health/live", _constant({"status": "alive"})),
    ("GET", "/v2/health/live", _constant({"live": True})),
)
READY = "/ready|/health/ready|/v2/health/ready"


def readiness(ready: bool) -> Response:
    """The answer of the readiness routes."""
    return Response(200 if ready else 503, dumps({"ready": ready}))


def _is_predict(path: str) -> bool:
    return path.startswith("/v1/models/") and path.endswith(":predict")


__all__ = ["ALIVE", "READY", "TEXT", "ClientGone", "Exchange", "Http", "Routes", "readiness"]
