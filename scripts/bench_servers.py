"""What the benchmark measures against: a minimal model on KServe's own SDK, and a bare protocol around the same model.

python -m scripts.bench_servers kserve|kserve-proba|ceiling FOLDER PORT
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
from skops.io import load

NAME = "bench"


def main() -> None:
    """Serves the estimator of an MLflow folder until killed."""
    kind, folder, port = sys.argv[1:4]
    sys.argv = sys.argv[:1]  # the SDK parses them at import
    estimator = load(next(Path(folder).glob("model.*")), trusted=[])
    if kind == "ceiling":
        uvloop.run(_listen(estimator, int(port)))
    else:
        _kserve(estimator, int(port), probabilities=kind == "kserve-proba")


def _kserve(estimator: Any, port: int, *, probabilities: bool) -> None:
    from kserve import Model, ModelServer

    class Minimal(Model):  # type: ignore[misc]  # kserve ships no types
        """What KServe's own examples do: a list of rows in, the model's answer out."""

        def load(self) -> bool:
            self.ready = True
            return True

        def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> dict[str, Any]:
            x = np.array(payload["instances"])
            answer = {"predictions": estimator.predict(x).tolist()}
            return {**answer, "probabilities": estimator.predict_proba(x).tolist()} if probabilities else answer

    model = Minimal(NAME)
    model.load()
    ModelServer(http_port=port, enable_grpc=False, workers=1).start([model])


async def _listen(estimator: Any, port: int) -> None:
    loop = asyncio.get_running_loop()
    tick = _Tick(estimator)
    server = await loop.create_server(lambda: _Bare(tick), "127.0.0.1", port)
    await server.serve_forever()


class _Tick:
    """All requests of one loop tick go through the model in one call: no checks, no limits, no metrics."""

    def __init__(self, estimator: Any) -> None:
        self._estimator = estimator
        self.pending: list[tuple[_Bare, Any]] = []

    def add(self, connection: _Bare, rows: Any) -> None:
        if not self.pending:
            asyncio.get_running_loop().call_soon(self._flush)
        self.pending.append((connection, rows))

    def _flush(self) -> None:
        batch, self.pending = self.pending, []
        x = np.array([row for _, rows in batch for row in rows])
        labels, probabilities = self._estimator.predict(x), self._estimator.predict_proba(x)
        at = 0
        for connection, rows in batch:
            stop = at + len(rows)
            answer = {"predictions": labels[at:stop], "probabilities": probabilities[at:stop]}
            connection.answer(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY))
            at = stop


class _Bare(asyncio.Protocol):
    """As little HTTP as a benchmark's client accepts: every request is taken for a prediction."""

    def __init__(self, tick: _Tick) -> None:
        self._tick = tick

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        body, self._body = self._body, b""
        if self._parser.get_method() == b"GET":
            self.answer(b"{}")
        else:
            self._tick.add(self, orjson.loads(body)["instances"])

    def answer(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


if __name__ == "__main__":
    main()
