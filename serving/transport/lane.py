"""The lane: the inference routes below ASGI.

A subclass of uvicorn's own protocol takes the inference routes of V1 and V2 itself and hands every other request to the
application as if nothing had happened. Parsing, keep-alive, pipelining, flow control and shutdown stay uvicorn's:
an `Inference` stands where uvicorn keeps its own cycle, and has the attributes that uvicorn reads of one. Several
requests of one connection are answered one after the other, in order, whichever way each of them goes.
"""

from __future__ import annotations

import math
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.dataplane import DataPlane
from serving.transport.exchange import LINGER_SECONDS
from serving.transport.inference import Inference
from serving.transport.protocol import Protocol
from serving.transport.resuming import DROPPED
from serving.transport.room import FREE
from serving.transport.routes import target_of


class LaneProtocol(Protocol):
    """One connection; its inference requests go straight to the data plane. `limit` is of a body, in bytes."""

    def __init__(self, plane: DataPlane, limit: int, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.plane, self.limit, self.room = plane, limit, self._bounds.room
        self.free = min(FREE, limit)
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
        target = target_of(self.url) if parser.get_method() == b"POST" and not self.surplus else None
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
        for cycle in (front, *(cycle for cycle, _ in self.pipeline)):
            if isinstance(cycle, Inference):
                cycle.release()
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
