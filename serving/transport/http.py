"""HTTP: a thin pure-ASGI layer in front of KServe's app. It owns every route of the contract.

CloudEvents are the one thing that is handed on to KServe's app; every other route of that app answers 404 here.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from monitoring.logs import request_id
from monitoring.metrics import Metrics
from serving.dataplane import DataPlane
from serving.errors import (
    REFUSALS,
    BadRequest,
    MethodNotAllowed,
    NoRoute,
    NotFound,
    NotOffered,
    NotReady,
    Overloaded,
    ServingError,
    refusal_of,
)
from serving.manager import ModelManager
from serving.status import index, is_ready, metadata, model_status, server_metadata
from serving.transport.answers import Response, answered, complete_headers, error_response, question
from serving.transport.document import parse_object
from serving.transport.exchange import ClientGone, Exchange, Receive, Scope, Send
from serving.transport.head import JSON
from serving.transport.room import Room
from serving.transport.routes import INFER, LABELLED, MODEL, PREDICT, VERSIONED, Target, target_of_path
from serving.transport.v1 import dumps

App = Callable[[Scope, Receive, Send], Awaitable[None]]
TEXT = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
#: What is parsed on the event loop, in bytes. KServe's code takes two tenths of a second for a megabyte of an event.
LONGEST_EVENT, LONGEST_QUESTION = 262_144, 65_536

Handler = Callable[[Exchange, dict[str, str]], Awaitable[Response]]


class Routes:
    """An ASGI application over a table of methods, patterns of paths, and handlers.

    Bodies have `limit` bytes at most, and all of them together what the `room` has; while `draining()`, answers close
    their connections.
    """

    def __init__(
        self,
        limit: int,
        draining: Callable[[], bool],
        table: Sequence[tuple[str, str, Handler]],
        metrics: Metrics,
        room: Room | None = None,
    ) -> None:
        self._limit, self._draining, self._metrics = limit, draining, metrics
        self.room = room or Room(16 * limit)
        for reason in REFUSALS:
            metrics.refusals.labels(reason)
        self._routes = [(verb, re.compile(pattern), handler) for verb, pattern, handler in table]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request; nothing a client sends makes it raise."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1003})
            return
        exchange = Exchange(scope, receive, self._limit, self.room)
        request_id.set(exchange.request_id)
        try:
            with contextlib.suppress(ClientGone):
                await self._answer(exchange, scope, send)
        finally:
            exchange.release()

    async def _answer(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        await self._send(await self._respond(exchange), exchange, send)

    async def _respond(self, exchange: Exchange) -> Response:
        try:
            handler, parts = self._route(exchange.method, exchange.path)
            if exchange.surplus and not _PROBE.fullmatch(exchange.path):
                raise Overloaded("The server has as many clients as it may (server.max_connections).", 1)
            return await handler(exchange, parts)
        except ClientGone:
            raise
        except asyncio.CancelledError:
            if not self._draining():
                raise
            return error_response(NotReady("The server is shutting down."))  # uvicorn's word for: past the bound
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            return self._refused(error, asked=exchange.asked)

    def _refused(self, error: Exception, *, asked: bool = False) -> Response:
        """The answer to an error, which is counted unless a model was `asked`."""
        reason = None if asked else refusal_of(error)
        if reason is not None:
            self._metrics.refusals.labels(reason).inc()
        return error_response(error)

    def _route(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """The handler of a path. Raises NoRoute or MethodNotAllowed."""
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
        raise NoRoute("There is no such route; see docs/api.md for all of them.")

    async def _send(self, response: Response, exchange: Exchange, send: Send) -> None:
        close = self._draining() or exchange.waits or exchange.surplus
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
        room: Room | None = None,
    ) -> None:
        self._plane, self._kserve_app = plane, kserve_app
        self._exposition = exposition
        super().__init__(max_body_bytes, lambda: plane.draining, self._table(webhook), metrics, room)

    async def _answer(self, exchange: Exchange, scope: Scope, send: Send) -> None:
        target = target_of_path(exchange.path) if exchange.method == "POST" and exchange.is_cloud_event else None
        if target is not None and target.v1 and not exchange.surplus:
            await self._cloud_event(target, exchange, scope, send)
        else:
            await super()._answer(exchange, scope, send)

    async def _cloud_event(self, target: Target, exchange: Exchange, scope: Scope, send: Send) -> None:
        """KServe's app answers, from a body that was read within the limit; its errors are `kserve_errors`'s."""
        try:
            self._plane.manager(target.model)
            if target.version or target.label:
                raise NotFound("A CloudEvent asks for what is current, without a version and without a label.")
            body = await exchange.body(LONGEST_EVENT, "a CloudEvent may be")
            if not body.strip():
                raise BadRequest("The body is empty.")
        except ServingError as error:
            await self._send(self._refused(error), exchange, send)
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
        body = await exchange.unpacked()
        call, request = question(target, exchange, body, exchange.received)
        exchange.asked = True
        reply = await exchange.unless_gone(self._plane.infer(call, request))
        self.room.check(len(reply.payload))
        return answered(reply, request)

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
        manager = self._plane.manager(parts["model"])
        status = model_status(manager)
        return Response(200, dumps(status)) if status["ready"] else _not_yet(manager, status)

    async def _server(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps(server_metadata()))

    async def _metadata(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, dumps(metadata(self._plane.manager(parts["model"]), parts.get("version"))))

    async def _model_ready(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        manager = self._plane.manager(parts["model"])
        if is_ready(manager, parts.get("version")):
            return Response(200, dumps({"name": manager.name, "ready": True}))
        return _not_yet(manager, {"name": manager.name, "ready": False, "error": f"Not READY: {manager.why()}."})

    async def _index(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        body = await exchange.body(LONGEST_QUESTION)
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
_PROBE = re.compile("|".join([READY, *(path for _, path, _ in ALIVE)]))


def _not_yet(manager: ModelManager, body: dict[str, Any]) -> Response:
    return Response(503, dumps(body), (JSON, (b"retry-after", b"%d" % manager.retry_after)))


def readiness(ready: bool) -> Response:
    """The answer of the readiness routes."""
    return Response(200 if ready else 503, dumps({"ready": ready}))


__all__ = ["ALIVE", "READY", "TEXT", "Http", "Routes", "readiness"]
