"""The lane: the inference routes below ASGI.

A subclass of uvicorn's own protocol takes the inference routes of V1 and V2 itself and hands every other request to the
application as if nothing had happened. Parsing, keep-alive, pipelining, flow control and shutdown stay uvicorn's:
an `Inference` stands where uvicorn keeps its own cycle, and has the attributes that uvicorn reads of one. Several
requests of one connection are answered one after the other, in order, whichever way each of them goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.calls import Reply
from serving.dataplane import DataPlane
from serving.errors import ServingError
from serving.flight import Flight
from serving.outbox import OUTBOX
from serving.transport.answers import Response, complete_headers, error_response, question, written
from serving.transport.exchange import LINGER_SECONDS
from serving.transport.head import Head
from serving.transport.protocol import Protocol, render
from serving.transport.resuming import DROPPED
from serving.transport.routes import Target, target_of
from serving.transport.v1 import V1Request
from serving.transport.v2 import V2Request

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _NoEvent:
    """Uvicorn wakes a cycle's task by its event; an inference has no task."""

    def set(self) -> None:
        """There is nobody to wake."""


class Inference(Head):
    """One inference request on its connection."""

    __slots__ = ("_chunks", "_error", "_flight", "_protocol", "_target", "_unasked",
                 "disconnected", "keep_alive", "more_body", "response_complete", "response_started")  # fmt: skip
    message_event = _NoEvent()

    def __init__(self, protocol: LaneProtocol, target: Target, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(headers, protocol.limit)
        self._protocol, self._target = protocol, target
        self.keep_alive = protocol.parser.get_http_version() != "1.0" and protocol.parser.should_keep_alive()
        self.disconnected = self.response_started = self.response_complete = False
        self.more_body = True
        self._unasked = protocol.expect_100_continue
        self._chunks: list[bytes] = []
        self._flight: Flight[bytes] | None = None
        self._error: ServingError | None = None
        try:
            self.check_content()
            self.check_length()
        except ServingError as error:
            self._error = error

    # -- the request comes in -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """All requests before this one on the connection are answered."""
        if self._error is not None:
            self._respond(error_response(self._error))
        elif not self.more_body:
            self._ask()
        elif self._unasked:
            self._unasked = False
            self._protocol.transport.write(_CONTINUE)

    def add(self, body: bytes, size: int) -> None:
        """A piece of the body, which now has `size` bytes; what comes after the refusal of the request is dropped."""
        if self._error is None and size <= self.limit:
            self._chunks.append(body)
        elif self._error is None:
            self._chunks.clear()
            self._error = self.too_large()
            if self._protocol.front is self:
                self._respond(error_response(self._error))

    def end(self) -> None:
        """The body is complete."""
        self.more_body = False
        if self.response_started:
            self._finish()
        elif self._protocol.front is self:
            self._ask()

    # -- the answer goes out --------------------------------------------------------------------------------------

    def hang_up(self) -> None:
        """The client is gone."""
        if self._flight is not None:
            self._flight.cancel()

    def _ask(self) -> None:
        try:
            call, request = question(self._target, self, b"".join(self._chunks))
            self._chunks.clear()
            flight = self._protocol.plane.start(call, request, partial(self._done, request))
            if not self.response_started:
                self._flight = flight
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            self._respond(error_response(error))

    def _done(self, request: V1Request | V2Request, result: Reply[bytes] | Exception) -> None:
        self._flight = None
        if isinstance(result, Exception):
            self._respond(error_response(result))
        elif not self.disconnected:
            self.response_started = True
            if self._protocol.plane.draining:
                self.keep_alive = False
            OUTBOX.put(self._send, written(result, request, self, close=not self.keep_alive))

    def _send(self, data: bytes) -> None:
        self._protocol.transport.write(data)
        self._finish()

    def _respond(self, response: Response) -> None:
        """Writes an error. A client that still sends is listened to for a while: closing would cut the answer off."""
        if self.disconnected:
            return
        self.response_started = True
        waits = self.more_body and self._unasked
        if self._protocol.plane.draining or waits:
            self.keep_alive = False
        headers = complete_headers(response, self, close=not self.keep_alive)
        self._protocol.transport.write(render(response.status, headers, response.body))
        if self.more_body and not waits:
            self._protocol.linger()
        else:
            self._finish()

    def _finish(self) -> None:
        if self._protocol.flow.write_paused:
            self._protocol.hold(self)
        else:
            self.complete()

    def complete(self) -> None:
        """The answer is on its way: the next request of the connection may begin."""
        self.response_complete = True
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()


class LaneProtocol(Protocol):
    """One connection; its inference requests go straight to the data plane. `limit` is of a body, in bytes."""

    def __init__(self, plane: DataPlane, limit: int, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.plane, self.limit = plane, limit
        self._held: Inference | None = None

    def on_message_begin(self) -> None:
        """A request begins; who will answer it is not known yet."""
        self._begin()
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.expect_100_continue = False

    def on_headers_complete(self) -> None:
        """Takes the inference routes, and leaves the others."""
        parser = self.parser
        target = target_of(self.url) if parser.get_method() == b"POST" else None
        inference = None if target is None else Inference(self, target, dict(self.headers))
        if inference is None or inference.is_cloud_event:
            self._leave()
            return
        self._end_head()
        self.headers = DROPPED
        before, self.cycle = self.cycle, inference
        if before is None or before.response_complete:
            self.front = inference
            inference.begin()
        else:
            self.flow.pause_reading()
            self.pipeline.appendleft((inference, self.app))

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        cycle = self.cycle
        if isinstance(cycle, Inference):
            self._size = size = self._size + len(body)
            cycle.add(body, size)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is complete."""
        cycle = self.cycle
        if not isinstance(cycle, Inference):
            super().on_message_complete()
        elif self._not_upgraded is None:
            self._reading, self._due = False, math.inf
            cycle.end()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: what it asked for is not computed any more."""
        front = self.front
        super().connection_lost(exc)
        if isinstance(front, Inference):
            front.hang_up()

    def linger(self) -> None:
        """The answer is written; the rest of the request may come for so long."""
        self._due = self.loop.time() + LINGER_SECONDS

    def hold(self, inference: Inference) -> None:
        """The client does not take its answers: no further request begins until it does."""
        self._held, self._due = inference, self.loop.time() + self._read_seconds

    def resume_writing(self) -> None:
        """The client takes its answers again."""
        super().resume_writing()
        held, self._held = self._held, None
        if held is not None and not self.transport.is_closing():
            self._due = math.inf
            held.complete()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Inference):
            self.front = cycle
            cycle.begin()
        else:
            super()._start_asgi_task(cycle, app)

    def _leave(self) -> None:
        """Uvicorn prepares a request when it begins; for those that are its own after all that is done now."""
        url, headers, expect = self.url, self.headers, self.expect_100_continue
        HttpToolsProtocol.on_message_begin(self)
        self.url, self.expect_100_continue = url, expect
        self.headers.extend(headers)
        super().on_headers_complete()
