"""When calls arrive over gRPC: for their deadlines, and for the moment at which the server tells its clients to go.

grpc's `stop` does three things at once: it tells every client to go elsewhere (GOAWAY), it refuses what arrives from then
on, and it refuses what had arrived and was not taken in. A client that has just sent a call, and whose next is not yet on
its way, loses nothing by that, nor by a GOAWAY alone. So both come just behind an arrival, when nothing else waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextvars import ContextVar
from typing import Any

import grpc

#: How long one waits for the next call: without any there is nobody to lose. And for a gap between calls.
SILENCE_SECONDS, CROWD_SECONDS = 0.1, 1.0
#: In this time grpc hands over what waits, one call at a turn of the loop; and on a machine that is busy.
GAP_SECONDS, LULL_SECONDS = 0.001, 0.03
#: Monotonic seconds of the turn of the loop in which the call was taken in, for its handler.
arrived: ContextVar[float] = ContextVar("arrived")


class Arrivals(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc ships no types
    """Sees each call when it is taken in, before its message is read, and handles none. Lives on the event loop."""

    def __init__(self) -> None:
        #: calls, up to now
        self.taken = 0
        self._next: asyncio.Event | None = None

    def service(self, details: Any) -> None:
        """A call is taken in; others handle it."""
        arrived.set(asyncio.get_running_loop().time())
        self.taken += 1
        if self._next is not None:
            self._next.set()

    async def gap(self, seconds: float = GAP_SECONDS) -> None:
        """Returns so long behind a call with no other behind it, or when there are none, or when they do not cease."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CROWD_SECONDS):
                await self._gap(seconds)

    async def _gap(self, seconds: float) -> None:
        self._next = asyncio.Event()
        waits = True
        while waits:
            self._next.clear()
            try:
                async with asyncio.timeout(SILENCE_SECONDS):
                    await self._next.wait()
            except TimeoutError:
                return
            count = self.taken
            await asyncio.sleep(seconds)
            waits = self.taken != count
