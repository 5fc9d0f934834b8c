"""The listening sockets of all workers, held by all of them: who does not accept is stood in for by another.

The kernel spreads new connections over the sockets that listen on a port (`SO_REUSEPORT`), whether their owners accept or
not. Each worker has one of its own; while it is stopped, hangs, or is being replaced, another accepts from it too. What
waits in a socket outlives the process that it was meant for, because the supervisor holds the socket as well.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable, Collection, Sequence

log = logging.getLogger("headway.workers")
#: Begins to accept from a socket, which it owns from then on.
Listen = Callable[[socket.socket], Awaitable[asyncio.Server]]


class Doors:
    """One worker's view: its own socket is that of its `number`, from 1. Lives on the event loop."""

    def __init__(self, sockets: Sequence[socket.socket], number: int) -> None:
        self._sockets, self._own = dict(enumerate(sockets, 1)), number
        self.ending = False
        self._listen: Listen | None = None
        self._wanted: frozenset[int] = frozenset()
        self._taken: dict[int, asyncio.Server] = {}
        self._settling: asyncio.Task[None] | None = None

    @property
    def own(self) -> socket.socket:
        """A socket to listen on, and to close."""
        return self._sockets[self._own].dup()

    def opened(self, listen: Listen) -> None:
        """The worker accepts from its own from now on, and can accept from others."""
        self._listen = listen
        self._settle()

    def stand_in(self, numbers: Collection[int]) -> None:
        """Accepts from the sockets of these workers too, and from no others' any more."""
        self._wanted = frozenset(numbers) - {self._own}
        self._settle()

    def shut(self) -> None:
        """Accepts from none any more; the listener of the worker's own is closed already. Others may go on with them, unless
        the whole server is `ending`: then nobody gets in."""
        mine = {self._own, *self._taken}
        self._listen, self._wanted = None, frozenset()
        self._leave()
        for number in mine if self.ending else ():
            with contextlib.suppress(OSError):  # somebody else was first
                self._sockets[number].shutdown(socket.SHUT_RDWR)  # closing would not do: others hold it

    def _settle(self) -> None:
        if self._listen is not None and (self._settling is None or self._settling.done()):
            self._settling = asyncio.get_running_loop().create_task(self._take())

    async def _take(self) -> None:
        while self._listen is not None and self._taken.keys() != self._wanted:
            self._leave()
            for number in self._wanted - self._taken.keys():
                try:
                    self._taken[number] = await self._listen(self._sockets[number].dup())
                except OSError as error:
                    log.warning("cannot stand in for a worker", extra={"place": number, "reason": str(error)})
                    return
        self._leave()  # it may have been shut meanwhile

    def _leave(self) -> None:
        for number in self._taken.keys() - self._wanted:
            self._taken.pop(number).close()
