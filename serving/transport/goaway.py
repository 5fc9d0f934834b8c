"""Tells the clients of a gRPC server to go elsewhere, while it goes on to answer what they still send.

grpc has no call for that: its `stop` refuses from the same moment on. So a GOAWAY is written into its connections, beside
it: a frame of seventeen bytes, only where nothing of grpc's own is half written, and only in plain text. Linux only;
elsewhere nobody is told before the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import stat
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from pathlib import Path

from serving.transport.arrivals import Arrivals

#: HTTP/2 (RFC 9113, 6.8): eight octets, type 7, no flags, stream 0; whatever stream is still opened is answered; no error.
GOAWAY = struct.pack("!BHBBLLL", 0, 8, 7, 0, 0, 2**31 - 1, 0)
#: A connection that was there so long ago has had grpc's own first frame.
LOOK_SECONDS = 0.1
#: The last answers, not yet acknowledged by the client's kernel; a buffer that is full has more.
LITTLE_BYTES = 4096
#: linux/sockios.h: SIOCOUTQNSD.
_UNSENT = 0x894B


class Goodbye:
    """The connections at a port of this process, of which each is told once."""

    def __init__(self, port: int, arrivals: Arrivals) -> None:
        self._port, self._arrivals = port, arrivals
        self._seen: set[object] = set()
        self._told: set[object] = set()

    async def say(self, seconds: float) -> None:
        """Tells those that are there, and waits until they send nothing any more, or so long."""
        taken = self._arrivals.taken
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._look(self._note) or self._arrivals.taken != taken:
                    taken = self._arrivals.taken
                    await asyncio.sleep(LOOK_SECONDS)
                    await self._arrivals.gap()
                    self._look(self._tell)

    def _look(self, found: Callable[[socket.socket, object], None]) -> int:
        """Shows `found` each that has not been told, and returns how many that were."""
        count = 0
        for connection in _accepted(self._port):
            with connection, contextlib.suppress(OSError):
                peer = connection.getpeername()
                if peer not in self._told:
                    count += 1
                    found(connection, peer)
        return count

    def _note(self, connection: socket.socket, peer: object) -> None:
        self._seen.add(peer)

    def _tell(self, connection: socket.socket, peer: object) -> None:
        if peer in self._seen and not _is_full(connection):
            connection.send(GOAWAY, socket.MSG_DONTWAIT)
            self._told.add(peer)


def _accepted(port: int) -> Iterator[socket.socket]:
    """Copies of the process's sockets that a client has connected to at the port. They are the caller's to close."""
    try:
        numbers = [int(each.name) for each in Path("/proc/self/fd").iterdir()]
    except FileNotFoundError:
        return
    for number in numbers:
        with contextlib.suppress(OSError):  # it has been closed meanwhile, or is none
            copy = _copy(number)
            if copy is not None and _is_accepted(copy, port):
                yield copy
            elif copy is not None:
                copy.close()


def _copy(number: int) -> socket.socket | None:
    return socket.socket(fileno=os.dup(number)) if stat.S_ISSOCK(os.fstat(number).st_mode) else None


def _is_accepted(copy: socket.socket, port: int) -> bool:
    if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getsockname()[1] != port:
        return False
    try:
        return bool(copy.getpeername())
    except OSError:  # it listens
        return False


def _is_full(connection: socket.socket) -> bool:
    """Whether grpc may have something half written: it writes what it has at once, unless the kernel takes no more."""
    unsent, unacknowledged = (_bytes(connection, question) for question in (_UNSENT, termios.TIOCOUTQ))
    return unsent > 0 or unacknowledged > LITTLE_BYTES


def _bytes(connection: socket.socket, question: int) -> int:
    return int.from_bytes(fcntl.ioctl(connection, question, bytes(4)), sys.byteorder)
