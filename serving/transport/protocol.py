"""Uvicorn's HTTP/1.1 on httptools, with bounds on clients that are slow, and errors in the shape of all others."""

from __future__ import annotations

import asyncio
import math
import select
from collections.abc import Sized
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.transport.answers import CLOSE, LINE
from serving.transport.exchange import LINGER_SECONDS, SURPLUS
from serving.transport.head import JSON
from serving.transport.resuming import DROPPED, framing_of, resumed
from serving.transport.room import Bounds
from serving.transport.v1 import dumps

LARGEST_HEAD = 65536
#: Of one read, beside the body: that is thousands of chunks.
MOST_FRAMING = 16_384
#: So many clients over `server.max_connections` are told so, and may ask for health; more are hung up on.
SPARE = 100
#: When to look again at a connection whose bytes a late loop has still to read.
AGAIN_SECONDS = 0.05
NO_HTTP = "The request is not valid HTTP."


class Protocol(HttpToolsProtocol):
    """One connection, within `bounds`: of time, of clients, and of what all of them make the server hold.

    One timer per connection: it is never cancelled, and finds out when it rings what it should have waited for.
    """

    cycle: Any
    pipeline: Any

    def __init__(self, bounds: Bounds, config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._bounds, self._read_seconds = bounds, bounds.read_seconds
        self.surplus, self._untaken = False, 0
        self._period = min(bounds.read_seconds, self.timeout_keep_alive, LINGER_SECONDS)
        self._due = math.inf
        self._reading = self._in_head = self._begun = False
        #: of the request that is being read: bytes of its body, those of an earlier moment, and other bytes since then
        self._size = self._size_before = self._framing_bytes = 0
        self._not_upgraded: bytes | None = None
        self._watch: asyncio.TimerHandle | None = None
        self.front: Any = None

    # -- what the transport says ----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        self._due = self.loop.time() + self.timeout_keep_alive
        self._watch = self.loop.call_later(self._period, self._look)
        over = len(self.connections) - self._bounds.connections
        self.surplus = over > 0
        if self.surplus:
            self.app_state = {**self.app_state, SURPLUS: True}
        if over > SPARE:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone, and with it everybody's interest in its requests."""
        if self._watch is not None:
            self._watch.cancel()
        self.pipeline.clear()
        self._taken()
        front, self.front = self.front, None
        if front is not None and not front.response_complete:
            front.disconnected = True
            front.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes came in. A head, or a trailer, that does not end is refused."""
        self._begun = not self._reading
        rest = self._fed(data)
        while rest is not None:
            rest = self._fed(rest)
        if self._reading and not self._begun and not self.transport.is_closing():
            self._check_framing(len(data))

    def _fed(self, data: bytes | memoryview) -> memoryview | None:
        """What the parser left, because the request before it asked for another protocol."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as stop:
            return self._resume(memoryview(data)[stop.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response(NO_HTTP)
        return None

    def _resume(self, rest: memoryview) -> memoryview | None:
        framing, self._not_upgraded = self._not_upgraded, None
        assert framing is not None
        try:
            self.parser = resumed(self, framing)
        except httptools.HttpParserError:
            self.send_400_response(NO_HTTP)
            return None
        return rest if rest else None

    def _check_framing(self, size: int) -> None:
        """Bounds what comes in without a piece of the body: head, trailers, what stands beside the sizes of chunks."""
        body, self._size_before = self._size - self._size_before, self._size
        if body > 0:
            self._framing_bytes = 0
            if size - body > MOST_FRAMING:
                self._let_others()
            return
        self._framing_bytes += size
        if self._framing_bytes > LARGEST_HEAD:
            self.send_400_response(NO_HTTP)

    def _let_others(self) -> None:
        """A read of many small chunks took milliseconds, and the loop would go on with what has come in since."""
        self.transport.pause_reading()
        self.loop.call_soon(self._read_on)

    def _read_on(self) -> None:
        if not self.flow.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def pause_writing(self) -> None:
        """The client does not take its answer: what it leaves counts."""
        super().pause_writing()
        self._taken()
        self._untaken = self.transport.get_write_buffer_size()
        self._bounds.room.used += self._untaken
        if self._due == math.inf:
            self._due = self.loop.time() + self._read_seconds

    def resume_writing(self) -> None:
        """It has taken most of it."""
        self._taken()
        if not self._reading and not self._idle:
            self._due = math.inf
        super().resume_writing()

    def _taken(self) -> None:
        self._bounds.room.used -= self._untaken
        self._untaken = 0

    # -- what the parser says -------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins."""
        self._begin()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._end_head()
        super().on_headers_complete()
        self.headers = DROPPED

    def on_body(self, body: bytes) -> None:
        """A piece of its body."""
        self._size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._not_upgraded is None:
            self._reading, self._due = False, math.inf
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer was written: the next request in line begins, or the connection idles."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline:
            self.loop.call_soon(
                self._begin_next
            )  # not within this one: what is refused at once would go as deep as there are
            return
        self.flow.resume_reading()
        if not self._reading:
            self._due = self.loop.time() + self.timeout_keep_alive

    def _begin_next(self) -> None:
        if self.pipeline and not self.transport.is_closing():
            cycle, app = self.pipeline.pop()
            self.flow.resume_reading()
            self._start_asgi_task(cycle, app)

    # -- the end of the server ------------------------------------------------------------------------------------

    def shutdown(self) -> None:
        """The port has closed: who is idle is hung up on. A request that has begun to come in is answered yet."""
        if self.transport.is_closing():
            return
        if not self._idle:
            self.cycle.keep_alive = False
        elif not self._reading and self._unread:
            self.loop.call_later(AGAIN_SECONDS, self.shutdown)
        elif not self._reading:
            self.transport.close()

    def cut(self) -> None:
        """The drain bound has passed. Who still sends its request is told so; closing at once would cut the answer off."""
        if not self.transport.is_closing() and self._unanswered:
            self.transport.write(_refusal(503, "The server is shutting down."))
            self.transport.write_eof()
            self.parser, self._reading = _Deaf(), False  # type: ignore[assignment]  # all that it has to do now

    # -- what is no HTTP ------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, and closes; there is no request yet that the application could see."""
        self._refuse(400, NO_HTTP)

    # -- clients that are slow ------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._reading = self._in_head = self._begun = True
        self._size = self._size_before = self._framing_bytes = 0
        self._due = self.loop.time() + self._read_seconds

    def _end_head(self) -> None:
        self._in_head = False
        if self.parser.should_upgrade():
            self._not_upgraded = framing_of(self.headers)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        self.front = cycle
        super()._start_asgi_task(cycle, app)

    def _look(self) -> None:
        """Every due is set at least one period ahead, so that this never rings too late."""
        closing = self.transport.is_closing()
        if closing and self._due == math.inf:
            self._due = self.loop.time() + self._read_seconds
        left = self._due - self.loop.time()
        if left <= 0 and not closing and self._reading and self.flow.read_paused and not self.flow.write_paused:
            self._due, left = self.loop.time() + self._read_seconds, self._period  # it is us who do not read
        if left <= 0:
            self._late()
        else:
            self._watch = self.loop.call_later(min(left, self._period), self._look)

    def _late(self) -> None:
        """The client took too long: to ask the next question, to ask it to the end, or to take its answer."""
        closing = self.transport.is_closing()
        if not closing and self._unanswered:
            self._refuse(408, "The request did not arrive in time (server.read_seconds).")
        elif closing or not self._idle or self._reading:
            self.transport.abort()
            return
        elif self._unread:  # it is us who are late
            self._watch = self.loop.call_later(AGAIN_SECONDS, self._look)
            return
        else:
            self.transport.close()
        self._due = self.loop.time() + self._read_seconds  # for what was written before
        self._watch = self.loop.call_later(self._period, self._look)

    @property
    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    @property
    def _unanswered(self) -> bool:
        """Whether a request is coming in that has no answer yet, and whose turn it is."""
        if self._in_head:
            return bool(self._idle)
        return self._reading and self.cycle is self.front and not self.cycle.response_started

    @property
    def _unread(self) -> bool:
        """Whether bytes have arrived that the loop has not come to read."""
        door = select.poll()
        door.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(door.poll(0))

    def _refuse(self, status: int, text: str) -> None:
        self.transport.write(_refusal(status, text))
        self.transport.close()


class _Flow(FlowControl):
    """Uvicorn's, which would read on whenever one request is answered: a read may bring thousands, and they wait in line."""

    def __init__(self, transport: asyncio.Transport, line: Sized) -> None:
        super().__init__(transport)
        self._line = line

    def resume_reading(self) -> None:
        """Reads on, unless requests that were read wait for their turn. The last of them may be incomplete, and has it then."""
        if not self._line:
            super().resume_reading()


class _Deaf:
    """A parser that hears nothing any more."""

    def feed_data(self, data: bytes) -> None:
        """Drops it."""


def _refusal(status: int, text: str) -> bytes:
    body = dumps({"error": text})
    return render(status, (JSON, CLOSE, (b"content-length", b"%d" % len(body))), body)


def render(status: int, headers: Any, body: bytes) -> bytes:
    """An answer as it goes over the wire."""
    return b"".join([STATUS_LINE[status], *[LINE % header for header in headers], b"\r\n", body])
