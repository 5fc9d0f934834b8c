"""Where our own microseconds go: each stage of a request in a tight loop, in one process, beside the whole way.

The whole is our own protocol class, from a request's bytes to the answer's, with everything behind it real but the
socket: what the kernel and the event loop's own input and output cost is not in it. The stages are measured alone, so
they have warm caches and add up to less than the whole; what is left is named as such. Nothing is sampled; all is
CPU time, which other work on the machine disturbs least.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httptools
import numpy as np
import uvicorn
import uvloop
from prometheus_client import CollectorRegistry
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from uvicorn.server import ServerState

from monitoring.metrics import Metrics
from registry.mlmodel import Column, Signature
from registry.versions import ModelVersion
from scripts.bench.experiments import MAX_QUEUE, MAX_ROWS, NAME
from scripts.bench.loads import raw
from scripts.bench.wires import ask
from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.calls import Answer, Call, Reply
from serving.configuration import Configuration
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS
from serving.fleet import Fleet, Seat
from serving.lifecycle import State
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.recorder import Recorder
from serving.runtimes.accelerated.runtime import compiled
from serving.runtimes.base import Outputs, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema
from serving.transport.answers import written
from serving.transport.head import Head
from serving.transport.lane import LaneProtocol
from serving.transport.room import Bounds, Room
from serving.transport.routes import target_of
from serving.transport.v1 import V1Request

WIDTH, REPEATS, SECONDS = 10, 2000, 1.0
WANT = Want.LABELS | Want.PROBABILITIES
LIMITS = BatchingLimits(max_rows=MAX_ROWS, max_queue=MAX_QUEUE)


@dataclass
class Parts:
    """A data plane that serves one compiled model, and what it was made of."""

    loaded: Loaded
    metrics: Metrics
    plane: DataPlane
    body: bytes
    request: bytes
    version: ModelVersion = field(default_factory=lambda: ModelVersion(NAME, "1"))

    def load(self, version: ModelVersion) -> Loaded:
        """As the manager asks its loader."""
        return self.loaded


class _Sink(asyncio.Transport):
    """A transport that takes every answer and sends nothing."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Drops an answer."""

    def close(self) -> None:
        """There is nothing to close."""

    def is_closing(self) -> bool:
        """Never."""
        return False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known of the peer."""
        return default


class _Quiet:
    """Callbacks of the parser that do what ours must at least: keep the pieces."""

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header."""
        self.headers.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self.body = body


@contextlib.asynccontextmanager
async def _parts() -> AsyncIterator[Parts]:
    x, y = make_classification(500, WIDTH, random_state=0)
    schema = compile_schema(Signature(tuple(Column(f"c{i}", "double") for i in range(WIDTH)), ()))
    runtime = compiled(SklearnRuntime(make_pipeline(StandardScaler(), LogisticRegression()).fit(x, y), schema), schema)
    metrics = Metrics(CollectorRegistry(), REASONS, [state.value for state in State])
    seats: dict[str, Seat] = {}
    fleet = Fleet(seats, None, 30.0, lambda: 0, None)  # type: ignore[arg-type]  # it looks for no other
    plane = DataPlane(fleet, metrics, Alone(fleet, metrics))
    message = ask("v1", (), x[:1])
    loaded = Loaded(runtime, schema, Signature((), ()), Configuration(LIMITS, 1.0))
    parts = Parts(loaded, metrics, plane, message.body, raw(message))
    manager = ModelManager(NAME, f"models:/{NAME}/1", parts, Recorder(metrics))
    seats[NAME] = Seat(manager, None)  # type: ignore[arg-type]  # nobody polls
    running = asyncio.create_task(manager.run())
    manager.aspire((parts.version,))
    await _until(lambda: manager.current is not None)
    try:
        yield parts
    finally:
        plane.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def _loop(step: Callable[[], object]) -> float:
    """Microseconds of one step, on average."""
    began = time.process_time()
    for _ in range(REPEATS):
        step()
    return (time.process_time() - began) / REPEATS * 1e6


async def _until(done: Callable[[], bool]) -> None:
    while not done():  # noqa: ASYNC110  the turns of the loop are what is measured
        await asyncio.sleep(0)


async def _whole(parts: Parts, together: int) -> float:
    """Microseconds per request from bytes to bytes, where `together` connections each ask once per turn of the loop."""
    config = uvicorn.Config(_no_app, log_config=None, access_log=False, ws="none")
    config.load()
    lanes = [
        LaneProtocol(
            parts.plane,
            1 << 20,
            Bounds(60.0, 1000, Room(1 << 30)),
            config=config,
            server_state=ServerState(),
            app_state={},
        )
        for _ in range(together)
    ]
    for lane in lanes:
        lane.connection_made(_Sink())
    turns, began = 0, time.process_time()
    while time.process_time() < began + SECONDS:
        for lane in lanes:
            lane.data_received(parts.request)
        turns += 1
        await _until(lambda: lanes[-1].front.response_complete)
    taken = time.process_time() - began
    for lane in lanes:
        lane.connection_lost(None)
    return taken / (turns * together) * 1e6


async def _no_app(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("every request is an inference")


async def _flights(parts: Parts, together: int) -> float:
    """Microseconds per request from a question to its encoded answer, without the connection's part."""
    heard: list[object] = []
    turns, began = 0, time.process_time()
    while time.process_time() < began + SECONDS:
        for _ in range(together):
            parts.plane.start(Call(NAME, received=time.monotonic()), V1Request(parts.body), heard.append)
        await _until(lambda: len(heard) >= together)
        heard.clear()
        turns += 1
    return (time.process_time() - began) / (turns * together) * 1e6


async def _batcher(together: int) -> float:
    """Microseconds per request of the queue alone: a runtime that answers at once, and nobody who counts."""
    outputs = Outputs(together, np.zeros(together), np.zeros((together, 2)))
    heard: list[object] = []

    class Constant:
        engine = classes = None

        def predict(self, arrays: Any, rows: int, want: Want) -> Outputs:
            return outputs.cut(0, rows)

        def close(self) -> None:
            """Nothing is held."""

    batcher = Batcher(Constant(), LIMITS, 0.0, lambda requests, rows, seconds: None)  # type: ignore[arg-type]
    row, turns = (np.zeros((1, WIDTH)),), REPEATS // together
    began = time.process_time()
    for _ in range(turns):
        for _ in range(together):
            batcher.submit(row, 1, WANT, time.monotonic() + 1.0, lambda result, seconds: heard.append(None))
        await _until(lambda: len(heard) >= together)
        heard.clear()
    taken = time.process_time() - began
    batcher.close()
    return taken / (turns * together) * 1e6


def _single(parts: Parts) -> dict[str, float]:
    """The stages that happen once per request, whatever else is in the batch."""
    loaded = parts.loaded
    arrays = V1Request(parts.body).decode(loaded).partial.arrays
    assert arrays is not None
    answer = Answer(NAME, parts.version, loaded, loaded.runtime.predict(arrays, 1, WANT), "auto", False)
    quiet = _Quiet()
    parser = httptools.HttpRequestParser(quiet)
    parser.feed_data(parts.request)
    headers, request = dict(quiet.headers), V1Request(parts.body)
    head = Head(headers, 1 << 20)
    reply = Reply(request.encode(answer), "1", (0.0, 0.0, 0.0, 0.0))
    bound = parts.metrics.bound(NAME, "1")

    def heads() -> None:
        target_of(b"/v1/models/bench:predict")
        checked = Head(headers, 1 << 20)
        checked.check_content()
        checked.check_length()

    def metrics() -> None:
        bound.predictions.inc()
        bound.latency.observe(0.001)
        bound.rows.inc(1)
        bound.request_latency.observe(0.001)

    return {
        "parse": _loop(lambda: parser.feed_data(parts.request)),
        "head": _loop(heads),
        "decode": _loop(lambda: V1Request(parts.body).decode(loaded)),
        "metrics": _loop(metrics),
        "encode": _loop(lambda: request.encode(answer)),
        "write": _loop(lambda: written(reply, request, head, close=False)),
    }


def _predict(parts: Parts, together: int) -> float:
    x = np.zeros((together, WIDTH))
    return _loop(lambda: parts.loaded.runtime.predict((x,), together, WANT)) / together


async def _once(parts: Parts) -> dict[str, float]:
    found = {}
    for together in (1, MAX_ROWS):
        each = {
            **_single(parts),
            "batch": await _batcher(together),
            "predict": _predict(parts, together),
            "plane": await _flights(parts, together),
            "whole": await _whole(parts, together),
        }
        found.update({f"{name} {together}": cost for name, cost in each.items()})
    return found


def stages(rounds: int) -> dict[str, float]:
    """Microseconds per request, by stage and by how many requests share a turn of the loop; medians over the rounds."""

    async def all_rounds() -> list[dict[str, float]]:
        async with _parts() as parts:
            return [await _once(parts) for _ in range(rounds)]

    gc.freeze()  # both as the server does
    gc.set_threshold(*gc.get_threshold()[:2], 1000)
    found = uvloop.run(all_rounds())
    return {name: round(statistics.median(each[name] for each in found), 2) for name in found[0]}
