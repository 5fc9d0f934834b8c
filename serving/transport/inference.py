"""One inference request of the lane: it stands where uvicorn keeps its own cycle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from serving.calls import Reply
from serving.errors import Overloaded, ServingError, refusal_of
from serving.flight import Flight
from serving.outbox import OUTBOX
from serving.transport.answers import Response, complete_headers, error_response, question, written
from serving.transport.head import Head
from serving.transport.inflating import POOL
from serving.transport.protocol import render
from serving.transport.room import FREE
from serving.transport.routes import Target
from serving.transport.v1 import V1Request
from serving.transport.v2 import V2Request

if TYPE_CHECKING:
    from serving.transport.lane import LaneProtocol

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _NoEvent:
    """Uvicorn wakes a cycle's task by its event; an inference has no task."""

    def set(self) -> None:
        """There is nobody to wake."""


class Inference(Head):
    """One inference request on its connection."""

    __slots__ = ("_allowed", "_body", "_error", "_flight", "_held", "_inflating", "_protocol", "_target", "_unasked",
                 "disconnected", "keep_alive", "more_body", "response_complete", "response_started")  # fmt: skip
    message_event = _NoEvent()

    def __init__(self, protocol: LaneProtocol, target: Target, headers: Mapping[bytes, bytes]) -> None:
        super().__init__(headers, protocol.limit)
        self._protocol, self._target = protocol, target
        self.keep_alive = protocol.parser.get_http_version() != "1.0" and protocol.parser.should_keep_alive()
        self.disconnected = self.response_started = self.response_complete = False
        self.more_body = True
        self._unasked = protocol.expect_100_continue
        self._body: bytes | bytearray = b""
        self._allowed, self._held = protocol.free, 0
        self._inflating: asyncio.Future[bytes] | None = None
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
            self._refuse(self._error)
        elif not self.more_body:
            self._ask()
        elif self._unasked:
            self._unasked = False
            self._protocol.transport.write(_CONTINUE)

    def add(self, body: bytes, size: int) -> None:
        """A piece of the body, which now has `size` bytes; what comes after the refusal of the request is dropped."""
        if size > self._allowed and not self._fits(size):
            return
        if not self._body:
            self._body = body
        elif isinstance(self._body, bytearray):
            self._body += body
        else:
            self._body = bytearray(self._body) + body

    def _fits(self, size: int) -> bool:
        """Whether a body of this size may go on coming in; what is not small takes room, in steps."""
        if self._error is not None:
            return False
        try:
            if size > self.limit:
                raise self.too_large()
            self._held = self._protocol.room.grow(self._held, size)
            self._allowed = min(self._held, self.limit)
        except ServingError as error:
            self._drop(error)
        return self._error is None

    def _drop(self, error: ServingError) -> None:
        """Refuses the request, whose body may go on coming in."""
        self._error, self._allowed, self._body = error, -1, b""
        self.release()
        if self._protocol.front is self:
            self._refuse(error)

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
        if self._inflating is not None:
            self._inflating.cancel()

    def release(self) -> None:
        """Nothing of the request is held any more."""
        self._protocol.room.used -= self._held
        self._held = 0

    def _ask(self) -> None:
        received, body, self._body = time.monotonic(), bytes(self._body), b""
        inflating = self.inflating()
        if inflating is None:
            self._start(body, received)
            return
        try:
            unpacked = inflating.begin(body)
        except ServingError as error:
            self._refuse(error)
            return
        if unpacked is not None:
            self._start(unpacked, received)
            return
        self._inflating = self._protocol.loop.run_in_executor(POOL, inflating.finish)
        self._inflating.add_done_callback(partial(self._inflated, received))

    def _inflated(self, received: float, inflating: asyncio.Future[bytes]) -> None:
        self._inflating = None
        if inflating.cancelled() or self.disconnected:
            return
        try:
            body = inflating.result()
            self._held = self._protocol.room.grow(self._held, self._held + len(body))
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            self._refuse(error)
            return
        self._start(body, received)

    def _start(self, body: bytes, received: float) -> None:
        try:
            call, request = question(self._target, self, body, received)
            flight = self._protocol.plane.start(call, request, partial(self._done, request))
            if not self.response_started:
                self._flight = flight
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            self._refuse(error)

    def _done(self, request: V1Request | V2Request, result: Reply[bytes] | Exception) -> None:
        self._flight = None
        if isinstance(result, Exception):
            self._respond(error_response(result))
        elif not self.disconnected:
            self._answer(result, request)

    def _answer(self, reply: Reply[bytes], request: V1Request | V2Request) -> None:
        if len(reply.payload) > FREE:
            try:
                self._protocol.room.check(len(reply.payload))
            except Overloaded as error:
                self._respond(error_response(error))
                return
        self.response_started = True
        if self._protocol.plane.draining:
            self.keep_alive = False
        OUTBOX.put(self._send, written(reply, request, self, close=not self.keep_alive))

    def _send(self, data: bytes) -> None:
        self._protocol.transport.write(data)
        self._finish()

    def _refuse(self, error: Exception) -> None:
        """Answers an error from before a model was asked, and counts it."""
        reason = refusal_of(error)
        if reason is not None:
            self._protocol.plane.metrics.refusals.labels(reason).inc()
        self._respond(error_response(error))

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
        if self._held:
            self.release()
        if not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()
