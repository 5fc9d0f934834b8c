"""What clients make this process hold, in sum over all connections.

A request's body counts from its coming in until its answer, an answer while its client does not take it. What is of
64 KiB or less is neither counted nor refused: of that, `server.max_connections` bounds how much there can be, and how
little is read while requests of a connection wait for their turn.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from serving.errors import Overloaded

log = logging.getLogger("headway.server")

FREE = 65_536
TOLD_SECONDS = 60.0


class Room:
    """Bytes that are held now, and how many may be. Lives on the event loop."""

    __slots__ = ("_told", "limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._told = -TOLD_SECONDS

    def grow(self, held: int, size: int) -> int:
        """What is held instead of `held` for something that has `size` bytes now. Raises Overloaded if there is no room."""
        if size <= FREE:
            return held
        wanted = -(-size // FREE) * FREE  # in steps: a body may come in pieces of two bytes
        if self.used + wanted - held > self.limit:
            raise self._full()
        self.used += wanted - held
        return wanted

    def check(self, size: int) -> None:
        """Raises Overloaded unless an answer of so many bytes may be written."""
        if size > FREE and self.used + size > self.limit:
            raise self._full()

    def _full(self) -> Overloaded:
        if time.monotonic() - self._told > TOLD_SECONDS:
            self._told = time.monotonic()
            log.warning("server.max_buffered_bytes are held; what is large is refused", extra={"bytes": self.used})
        return Overloaded("The server holds as much for its clients as it may (server.max_buffered_bytes).", 1)

    @contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Holds `size` bytes meanwhile. Raises Overloaded if there is no room."""
        held = self.grow(0, size)
        try:
            yield
        finally:
            self.used -= held


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all connections of a server share: how long a client may take for a request or an answer, how many clients
    there may be, and the room."""

    read_seconds: float
    connections: int
    room: Room
