"""The transformer's routes: inference for its one model, completed and handed on; questions about it, handed on."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from monitoring.metrics import Metrics
from serving.errors import DeadlineExceeded, NotFound, outcome_of
from serving.predictor import OF_A_HOP, Answered, Predictor
from serving.slices import Shared, in_slices
from serving.transforming import Transformer
from serving.transport.answers import Response
from serving.transport.exchange import ClientGone, Exchange
from serving.transport.http import ALIVE, READY, TEXT, Routes, readiness
from serving.transport.room import Room
from serving.transport.routes import INFER, MODEL, PREDICT, VERSIONED, target_of_path

log = logging.getLogger("headway.requests")


class TransformerHttp(Routes):
    """The ASGI application in front of a predictor. `timeout` is the deadline of a request in seconds, or None."""

    def __init__(
        self,
        transformer: Transformer,
        predictor: Predictor,
        metrics: Metrics,
        limit: int,
        timeout: float | None,
        room: Room | None = None,
    ) -> None:
        self._transformer, self._predictor = transformer, predictor
        self._timeout = timeout
        self._page = Shared(self._written)
        self.draining = False
        table = [
            ("POST", PREDICT, self._infer),
            ("POST", INFER, self._infer),
            *ALIVE,
            ("GET", READY, self._ready),
            ("GET", "/metrics", self._show_metrics),
            ("GET", f"/v1/models/{MODEL}", self._pass_on),
            ("GET", f"/v2/models/{VERSIONED}(?:/ready)?", self._pass_on),
        ]
        super().__init__(limit, lambda: self.draining, table, metrics, room)

    async def _infer(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        """V1 and V2; a client that hangs up cancels its request, to the predictor too."""
        try:
            answer = await self._answered(exchange)
        except ClientGone:
            raise
        except Exception as error:
            self._count(exchange, error)
            if isinstance(error, DeadlineExceeded):
                self._time(504, time.monotonic() - exchange.received)
            raise
        self._time(answer.status, time.monotonic() - exchange.received)
        return answer

    def _time(self, status: int, seconds: float) -> None:
        """As the server times its requests: one that was refused at the door is none, one past its deadline is slow."""
        spread = self._metrics.request_latency.labels(self._transformer.name, "")
        if status == 504:
            spread.exceed(seconds)
        elif status != 503:
            spread.observe(seconds)

    async def _answered(self, exchange: Exchange) -> Response:
        target = target_of_path(exchange.path)
        assert target is not None
        self._check(target.model)
        exchange.check_content()
        body = await exchange.unpacked()
        deadline = self._deadline(exchange)

        async def asked() -> Response:
            raw = b"inference-header-content-length" in exchange.headers  # binary tensors: no key is looked for
            sent, note = (body, "") if raw else await self._transformer.complete(body, v1=target.v1, deadline=deadline)
            answer = await self._ask(exchange, sent, deadline)
            self.room.check(len(answer.body))
            return _response(answer, note)

        return await exchange.unless_gone(asked())

    def _count(self, exchange: Exchange, error: Exception) -> None:
        outcome, name = outcome_of(error), self._transformer.name
        self._metrics.failed(name, "", outcome.reason)
        if outcome.http == 500:
            log.error("request failed", extra={"model": name, "request_id": exchange.request_id}, exc_info=error)

    async def _pass_on(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        self._check(parts["model"])
        return _response(await self._ask(exchange, b"", self._deadline(exchange)), "")

    async def _ask(self, exchange: Exchange, body: bytes, deadline: float | None) -> Answered:
        headers = [(name, value) for name, value in exchange.headers.items() if name not in OF_A_HOP]
        headers.append((b"x-request-id", exchange.request_id.encode("latin-1")))
        return await self._predictor.ask(exchange.method, quote(exchange.path, "/:"), headers, body, deadline)

    async def _ready(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return readiness(self._transformer.ready and not self.draining)

    async def _show_metrics(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        return Response(200, await self._page(), (TEXT,))

    async def _written(self) -> bytes:
        return b"".join(await in_slices(self._metrics.exposition()))

    def _check(self, model: str) -> None:
        if model != self._transformer.name:
            raise NotFound("There is no such model here; a transformer stands before one alone.")

    def _deadline(self, exchange: Exchange) -> float | None:
        wishes = [each for each in (exchange.timeout(), self._timeout) if each is not None]
        return exchange.received + min(wishes) if wishes else None


def _response(answer: Answered, note: str) -> Response:
    """The predictor's answer as it is, and how the rows that it took were completed."""
    told = [(b"x-headway-features", note.encode())] if note and answer.status == 200 else []
    return Response(answer.status, answer.body, (*answer.headers, *told))
