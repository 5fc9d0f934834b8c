"""One connection's code, without a process around it: both lanes over a real data plane, listening on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import threading
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import numpy as np
import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from monitoring.metrics import Metrics
from registry.mlmodel import Column, Signature
from registry.versions import ModelVersion
from serving.admission import BatchingLimits
from serving.configuration import Configuration
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS
from serving.fleet import Fleet, Seat
from serving.lifecycle import State
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.recorder import Recorder
from serving.response_cache import CacheLimits
from serving.runtimes.base import Outputs, Want
from serving.schema import compile_schema
from serving.transport.http import Http
from serving.transport.lane import LaneProtocol
from serving.transport.protocol import Protocol
from serving.transport.room import Bounds, Room

LIMIT = 100_000
PREDICT, INFER = "/v1/models/echo:predict", "/v2/models/echo/infer"


class Echo:
    """A runtime that answers each row with itself, remembers its rows, takes `seconds` for a batch, and waits while `gate` is closed."""

    classes = None

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.seconds = 0.0
        self.gate = threading.Event()
        self.gate.set()

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """Rows `[n, 1]` as labels `[n]`."""
        self.gate.wait(30)
        if self.seconds:
            time.sleep(self.seconds)
        column = arrays[0][:, 0].copy()
        self.seen.extend(column.tolist())
        return Outputs(rows, column)

    def close(self) -> None:
        """Nothing is held."""


class _Loader:
    def __init__(self, runtime: Echo, limits: BatchingLimits, cache: CacheLimits, hang_seconds: float) -> None:
        self._runtime, self._limits, self._cache, self._hang_seconds = runtime, limits, cache, hang_seconds

    def load(self, version: ModelVersion) -> Loaded:
        signature = Signature(inputs=(Column("x", "double"),), outputs=())
        configuration = Configuration(self._limits, None, response_cache=self._cache, hang_seconds=self._hang_seconds)
        return Loaded(self._runtime, compile_schema(signature), signature, configuration)


class Listening:
    """A lane that listens on `port`, and what is behind it."""

    def __init__(self, runtime: Echo, manager: ModelManager, plane: DataPlane, metrics: Metrics) -> None:
        self.runtime, self.manager, self.plane, self.metrics = runtime, manager, plane, metrics
        self.state = ServerState()
        self.room = Room(0)
        self.port = 0

    async def say(self, *pieces: bytes) -> bytes:
        """Everything that is answered to these pieces, until the server closes the connection."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        heard = b""
        with contextlib.suppress(ConnectionError):  # it may close on bytes that it does not read
            async with asyncio.timeout(30):
                for piece in pieces:
                    writer.write(piece)
                    await asyncio.sleep(0)
                while piece := await reader.read(65536):
                    heard += piece
        writer.close()
        return heard

    async def until(self, condition: Any) -> None:
        """Waits until the condition holds."""
        async with asyncio.timeout(30):
            while not condition():
                await asyncio.sleep(0.002)

    def failed(self, reason: str) -> float:
        """How many requests of the model failed for this reason."""
        labels = {"model_name": "echo", "model_version": "1", "error_type": reason}
        return self.metrics.registry.get_sample_value("model_prediction_errors_total", labels) or 0.0


@contextlib.asynccontextmanager
async def listening(
    lane: str,
    *,
    read_seconds: float = 30.0,
    keep_alive: float = 30,
    inline: bool = True,
    cache_bytes: int = 0,
    connections: int = 1000,
    room: Room | None = None,
    runtime: Any = None,
    hang_seconds: float = 60.0,
    limit: int = LIMIT,
    **limits: Any,
) -> AsyncIterator[Listening]:
    """A server of one model, `echo`, with one column of doubles; `runtime` in place of an `Echo`, bodies of
    at most `limit` bytes."""
    metrics = Metrics(CollectorRegistry(), REASONS, [s.value for s in State])
    runtime = runtime or Echo()
    batching = BatchingLimits(**{"inline_below_ms": 1e9 if inline else 0.0, **limits})
    loader = _Loader(runtime, batching, CacheLimits(cache_bytes), hang_seconds)
    manager = ModelManager("echo", "models:/echo/1", loader, Recorder(metrics))
    seats = {"echo": Seat(manager, None)}  # type: ignore[arg-type]  # nobody polls
    fleet = Fleet(seats, None, 30.0, lambda: 0, None)  # type: ignore[arg-type]  # nor looks for others
    crew = Alone(fleet, metrics)
    plane = DataPlane(fleet, metrics, crew)
    made = Listening(runtime, manager, plane, metrics)
    made.room = room or Room(10**9)
    http = Http(plane, metrics, _nothing, limit, crew.exposition, None, made.room)
    config = uvicorn.Config(http, log_config=None, access_log=False, ws="none", timeout_keep_alive=keep_alive)  # type: ignore[arg-type]
    config.load()
    bounds = Bounds(read_seconds, connections, made.room)
    protocol = partial(Protocol, bounds) if lane == "asgi" else partial(LaneProtocol, plane, limit, bounds)
    loop = asyncio.get_running_loop()
    running = loop.create_task(manager.run())
    manager.aspire((ModelVersion("echo", "1"),))
    server = await loop.create_server(
        lambda: protocol(config=config, server_state=made.state, app_state={}), "127.0.0.1", 0
    )
    made.port = server.sockets[0].getsockname()[1]
    await made.until(lambda: manager.current is not None)
    if isinstance(runtime, Echo):
        runtime.seen.clear()  # of the warm-up
    try:
        yield made
    finally:
        if isinstance(runtime, Echo):
            runtime.gate.set()
        server.close()
        plane.close()
        running.cancel()
        await asyncio.gather(running, *made.state.tasks, return_exceptions=True)


async def _nothing(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("KServe's app answers CloudEvents only")


def request(body: bytes = b"", *headers: str, path: str = PREDICT, method: str = "POST", close: bool = False) -> bytes:
    """A request as it goes over the wire; the framing of the body is among the headers."""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", *headers, *(["connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sized(body: bytes, *headers: str, **more: Any) -> bytes:
    """A request framed by its length."""
    return request(body, f"content-length: {len(body)}", *headers, **more)


def chunked(body: bytes, size: int, *headers: str, **more: Any) -> bytes:
    """A request in chunks of at most `size` bytes."""
    pieces = [body[i : i + size] for i in range(0, len(body), size)]
    framed = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    return request(framed, "transfer-encoding: chunked", *headers, **more)


def zipped(body: bytes, *headers: str, **more: Any) -> bytes:
    """A request with a gzipped body."""
    return sized(gzip.compress(body), "content-encoding: gzip", *headers, **more)


def rows(*values: float) -> bytes:
    """A V1 body."""
    return json.dumps({"instances": [[v] for v in values]}).encode()


def answers(heard: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer in a stream."""
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append((int(first.split()[1]), headers, rest[:length]))
        heard = rest[length:]
    return found


def predictions(heard: bytes) -> list[Any]:
    """What each answer of a stream predicts; the status where it is an error."""
    return [json.loads(body)["predictions"] if status == 200 else status for status, _, body in answers(heard)]
