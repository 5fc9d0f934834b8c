"""An open loop over HTTP: requests leave at their time whether or not earlier ones have been answered."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import cast

_STATUS = re.compile(rb"HTTP/1\.1 (\d+)")
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)
_RETRY = re.compile(rb"retry-after: (\d+)", re.IGNORECASE)


@dataclass
class Heard:
    """What came back: milliseconds from when a request was due, by status; what `Retry-After` said; what found no place."""

    latencies: dict[int, list[float]] = field(default_factory=dict)
    retry_after: Counter[int] = field(default_factory=Counter)
    unsent: int = 0

    def count(self, status: int) -> int:
        """How many were answered so."""
        return len(self.latencies.get(status, ()))

    def percentile(self, part: float, status: int = 200) -> float:
        """Milliseconds; NaN if nobody was answered so."""
        sorted_ = sorted(self.latencies.get(status, ()))
        return sorted_[min(len(sorted_) - 1, int(part * len(sorted_)))] if sorted_ else float("nan")


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, loop: OpenLoop) -> None:
        self._loop = loop
        self._due = 0.0
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its class

    def ask(self, due: float) -> None:
        """Sends the request that was due then."""
        self._due, self._buffer = due, b""
        self.transport.write(self._loop.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, body = self._buffer.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not mark or length is None or len(body) < int(length[1]):
            return
        status = _STATUS.match(head)
        assert status is not None
        self._loop.answered(self, int(status[1]), _RETRY.search(head), self._due)


class OpenLoop:
    """Sends `request`, whole HTTP, to a port of this machine at a steady rate over at most `most` connections."""

    def __init__(self, port: int, request: bytes, most: int = 2000) -> None:
        self.request, self.heard = request, Heard()
        self._port, self._most = port, most
        self._free: list[_Connection] = []
        self._made = self._busy = 0
        self._idle = asyncio.Event()

    async def run(self, rate: float, seconds: float) -> Heard:
        """Requests per second for so long; returns what was heard of them, the last ones included."""
        self.heard = Heard()
        began = time.perf_counter()
        sent = 0
        while (now := time.perf_counter() - began) < seconds:
            for number in range(sent, int(now * rate) + 1):
                await self._send(began + number / rate)
            sent = int(now * rate) + 1
            await asyncio.sleep(0.001)
        async with asyncio.timeout(30):
            await self._idle.wait()
        return self.heard

    def answered(self, connection: _Connection, status: int, retry: re.Match[bytes] | None, due: float) -> None:
        """A connection is free again."""
        self._busy -= 1
        if self._busy == 0:
            self._idle.set()
        self._free.append(connection)
        self.heard.latencies.setdefault(status, []).append(1000 * (time.perf_counter() - due))
        if retry is not None:
            self.heard.retry_after[int(retry[1])] += 1

    async def _send(self, due: float) -> None:
        if not self._free:
            if self._made == self._most:
                self.heard.unsent += 1
                return
            self._made += 1
            loop = asyncio.get_running_loop()
            self._free.append((await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port))[1])
        self._busy += 1
        self._idle.clear()
        self._free.pop().ask(due)

    def close(self) -> None:
        """Closes its connections."""
        for connection in self._free:
            connection.transport.close()
