"""A bare protocol around the model's calls: no routes, checks, limits, metrics or errors. As fast as Python gets here.

python -m scripts.bench.servers.bare FOLDER PORT library|compiled|nothing
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httptools
import numpy as np
import orjson
import uvloop

from scripts.bench.servers.calls import Calls, calls_of


class Tick:
    """All requests of one loop tick go through the model in one call."""

    def __init__(self, predict: Calls) -> None:
        self._predict = predict
        self.pending: list[tuple[Bare, Any]] = []

    def add(self, connection: Bare, rows: Any) -> None:
        """Rows of one request."""
        if not self.pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self.pending.append((connection, rows))

    def _flush(self) -> None:
        batch, self.pending = self.pending, []
        labels, probabilities = self._predict(np.array([row for _, rows in batch for row in rows], dtype=np.float64))
        at = 0
        for connection, rows in batch:
            stop = at + len(rows)
            answer = {"predictions": labels[at:stop], "probabilities": probabilities[at:stop]}
            connection.answer(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))
            at = stop


class Bare(asyncio.Protocol):
    """As little HTTP as a benchmark's client accepts: every request is taken for a prediction."""

    def __init__(self, tick: Tick) -> None:
        self._tick = tick

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        """Bytes came in."""
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """A piece of a body."""
        self._body += body

    def on_message_complete(self) -> None:
        """A request is complete."""
        body, self._body = self._body, b""
        self._tick.add(self, orjson.loads(body)["instances"])

    def answer(self, body: bytes) -> None:
        """Writes an answer."""
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def listen(predict: Calls, port: int) -> None:
    """Serves until killed."""
    tick = Tick(predict)
    server = await asyncio.get_running_loop().create_server(lambda: Bare(tick), "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Serves the folder's model."""
    folder, port, how = sys.argv[1:4]
    uvloop.run(listen(calls_of(Path(folder), how), int(port)))


if __name__ == "__main__":
    main()
