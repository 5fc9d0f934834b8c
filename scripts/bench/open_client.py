"""An open loop of HTTP requests: python -m scripts.bench.open_client PORT REQUEST_FILE RATE SECONDS

The file's requests, parted by NULs, are sent in turn. They are due at a steady rate whatever the answers take. One that
finds no free connection waits, and its latency counts from when it was due, so that a server that stalls is not spared.
Prints JSON.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httptools
import uvloop

from scripts.bench.figures import quantile

CONNECTIONS, DRAIN_SECONDS = 128, 10.0
#: Requests of so many seconds are sent together: to sleep for less costs more than it is worth.
TICK = 0.001


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport: Any = transport
        self._parser = httptools.HttpResponseParser(self)

    def data_received(self, data: bytes) -> None:
        """Bytes of an answer."""
        self._parser.feed_data(data)

    def send(self, due: float) -> None:
        """Sends the request that was due then."""
        self._due = due
        self._transport.write(next(self._pool.requests))

    def on_message_complete(self) -> None:
        """The answer is complete."""
        self._pool.answered(self, self._due, self._parser.get_status_code())


class Pool:
    """Connections that are free, requests that wait for one, and what became of the others."""

    def __init__(self, requests: Sequence[bytes]) -> None:
        self.requests = itertools.cycle(requests)
        self.taken: list[float] = []
        self.failed = 0
        self._free: deque[Connection] = deque()
        self._waiting: deque[float] = deque()

    @property
    def settled(self) -> int:
        """How many requests were answered, well or not."""
        return len(self.taken) + self.failed

    async def connect(self, port: int) -> None:
        """Opens all connections."""
        for _ in range(CONNECTIONS):
            _, made = await asyncio.get_running_loop().create_connection(lambda: Connection(self), "127.0.0.1", port)
            self._free.append(made)

    def due(self, at: float) -> None:
        """A request is due."""
        if self._free:
            self._free.popleft().send(at)
        else:
            self._waiting.append(at)

    def answered(self, connection: Connection, due: float, status: int) -> None:
        """A connection is free again."""
        if status == 200:
            self.taken.append(time.perf_counter() - due)
        else:
            self.failed += 1
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._free.append(connection)


async def run(port: int, requests: Sequence[bytes], rate: float, seconds: float) -> dict[str, float]:
    """The measurement; what is not answered ten seconds after the last was due counts as an error."""
    pool = Pool(requests)
    await pool.connect(port)
    count, sent, began, cpu = int(rate * seconds), 0, time.perf_counter(), time.process_time()
    while sent < count:
        while sent < count and began + sent / rate <= time.perf_counter():
            pool.due(began + sent / rate)
            sent += 1
        await asyncio.sleep(max(TICK, began + sent / rate - time.perf_counter()))
    load = (time.process_time() - cpu) / seconds
    end = time.perf_counter() + DRAIN_SECONDS
    while pool.settled < count and time.perf_counter() < end:  # noqa: ASYNC110  nobody is measured any more
        await asyncio.sleep(0.01)
    ordered = sorted(pool.taken) or [0.0]
    latencies = {f"p{share}": 1000 * quantile(ordered, share / 100) for share in (50, 95, 99)}
    lost = count - len(pool.taken)
    return {"answers": len(pool.taken), "seconds": seconds, "errors": lost, "load": load, **latencies}


def main() -> None:
    """Prints one measurement."""
    port, file, rate, seconds = sys.argv[1:6]
    print(json.dumps(uvloop.run(run(int(port), Path(file).read_bytes().split(b"\0"), float(rate), float(seconds)))))


if __name__ == "__main__":
    main()
