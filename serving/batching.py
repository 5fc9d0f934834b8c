"""The greedy batcher of one version.

A batch starts the moment the runtime is free: requests of one loop tick coalesce without a timer, and while a batch
runs the next one forms. `max_wait` may hold a batch that is not full. It counts rows, not requests; a long request
runs in chunks of `max_rows` and is answered whole.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from serving.errors import DeadlineExceeded, ModelFailed, NotReady, QueueFull, ServingError
from serving.runtimes.base import Outputs, Runtime, Want

log = logging.getLogger("headway.batching")

Arrays = tuple[np.ndarray, ...]


@dataclass(frozen=True, slots=True)
class BatchingLimits:
    """Bounds of one batcher; rows, milliseconds and a share of `max_queue`."""

    max_rows: int = 32
    max_wait_ms: float = 0.0
    max_queue: int = 2000
    high_watermark: float = 0.8
    inline_below_ms: float = 1.0


@dataclass(slots=True, eq=False)
class _Item:
    """One request in the queue: its rows, what it wants to know, and the future that its caller awaits."""

    arrays: Arrays
    rows: int
    want: Want
    future: asyncio.Future[tuple[Outputs, float]]
    enqueued: float
    taken: int = 0
    timer: asyncio.TimerHandle | None = None
    parts: list[Outputs] = field(default_factory=list)

    def cut(self, start: int, stop: int) -> Arrays:
        if start == 0 and stop == self.rows:
            return self.arrays
        return tuple(a[start:stop] for a in self.arrays)


@dataclass(slots=True)
class _Slice:
    """The rows of one item that go into one batch."""

    item: _Item
    start: int
    stop: int


Observe = Callable[[int, int, float], None]


class Batcher:
    """Queues requests for one runtime and runs them in batches. All methods belong to the event loop's thread.

    `cost_ms` is the measured time of one full batch: below `inline_below_ms` the runtime is called on the loop,
    else in a thread of the version's own; `inline=False` forbids the loop at any cost (a runtime that waits for another
    process). `observe(requests, rows, seconds)` is called once per batch, `overdue(seconds)` for one that has run for
    `hang_seconds` without an end: a thread cannot be stopped, but it can be told of.
    """

    def __init__(
        self,
        runtime: Runtime,
        limits: BatchingLimits,
        cost_ms: float,
        observe: Observe,
        *,
        inline: bool = True,
        hang_seconds: float = 60.0,
        overdue: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self._runtime: Runtime | None = runtime
        self._limits = limits
        self._observe = observe
        inline = inline and cost_ms < limits.inline_below_ms
        self._thread = None if inline else ThreadPoolExecutor(1, "headway-predict")
        self._hang_seconds, self._overdue = hang_seconds, overdue
        self._queue: deque[_Item] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._scheduled: asyncio.Handle | None = None
        self._seconds_per_row = cost_ms / 1000 / limits.max_rows
        self._busy = False
        self.depth = 0

    async def predict(self, arrays: Arrays, rows: int, want: Want, deadline: float | None) -> tuple[Outputs, float]:
        """The outputs for exactly these rows, in order, and the seconds that their batch took in the runtime.

        `deadline` is monotonic time, None for none. Raises QueueFull, DeadlineExceeded, ModelFailed or NotReady.
        """
        if self._runtime is None:
            raise NotReady("This version is no longer loaded; ask again.")
        self._admit(rows)
        loop = asyncio.get_running_loop()
        item = _Item(arrays, rows, want, loop.create_future(), time.monotonic())
        if deadline is not None:
            delay = deadline - item.enqueued
            if delay <= 0:
                raise DeadlineExceeded("The request's deadline had passed before the model could run.")
            item.timer = loop.call_later(delay, _expire, item.future)
        self._queue.append(item)
        self.depth += rows
        self._schedule(item.enqueued)
        try:
            return await item.future
        finally:
            self._leave(item)

    def close(self) -> None:
        """Fails every waiter and releases the runtime; a batch that is running ends unheard."""
        for item in list(self._queue):
            _fail(item, NotReady("The server is shutting this version down; ask again."))
        for task in self._running:
            task.cancel()
        self._queue.clear()
        self._runtime = None
        if self._scheduled:
            self._scheduled.cancel()
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def fail_waiting(self, error: Exception) -> None:
        """Fails whoever waits or is being computed: the drain bound has passed."""
        for item in [*self._queue, *(s.item for s in self._slices)]:
            _fail(item, error)

    _slices: Sequence[_Slice] = ()

    def _admit(self, rows: int) -> None:
        limits = self._limits
        over = self.depth + rows > limits.max_queue * limits.high_watermark
        if over and self.depth > 0:
            seconds = max(1, math.ceil(self.depth * self._seconds_per_row))
            raise QueueFull("The model's queue is over its high watermark; try again later.", seconds)

    def _leave(self, item: _Item) -> None:
        if item.timer:
            item.timer.cancel()
        self.depth -= item.rows - item.taken
        item.taken = item.rows  # a cancelled or expired item holds no place, and is never computed

    def _schedule(self, since: float) -> None:
        full = self.depth >= self._limits.max_rows
        if self._busy or not self._queue or (self._scheduled is not None and not full):
            return
        if self._scheduled is not None:
            self._scheduled.cancel()  # a timer that holds a batch which has filled up meanwhile
        loop = asyncio.get_running_loop()
        wait = self._limits.max_wait_ms / 1000 - (time.monotonic() - since)
        if wait <= 0 or full:
            self._scheduled = loop.call_soon(self._start)
        else:
            self._scheduled = loop.call_later(wait, self._start)

    def _start(self) -> None:
        self._scheduled = None
        slices = self._take()
        if not slices or self._runtime is None:
            return
        self._busy = True
        self._slices = slices
        if self._thread is None:
            self._run_inline(slices)
        else:
            task = asyncio.get_running_loop().create_task(self._run_threaded(slices))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[_Slice]:
        """Rows for one batch, in order of arrival; whoever has left the queue is skipped."""
        slices: list[_Slice] = []
        room = self._limits.max_rows
        while self._queue and room > 0:
            item = self._queue[0]
            count = min(room, item.rows - item.taken)
            if item.future.done() or count == 0:
                self._queue.popleft()
                continue
            slices.append(_Slice(item, item.taken, item.taken + count))
            item.taken += count
            room -= count
            self.depth -= count
            if item.taken == item.rows:
                self._queue.popleft()
        return slices

    def _run_inline(self, slices: list[_Slice]) -> None:
        assert self._runtime is not None
        results, seconds = _compute(self._runtime, slices)
        if seconds > self._hang_seconds:
            self._overdue(seconds)
        self._finish(slices, results, seconds)

    async def _run_threaded(self, slices: list[_Slice]) -> None:
        assert self._thread is not None
        assert self._runtime is not None
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._hang_seconds, self._overdue, self._hang_seconds)
        try:
            results, seconds = await loop.run_in_executor(self._thread, _compute, self._runtime, slices)
        except (asyncio.CancelledError, RuntimeError):
            for piece in slices:
                _fail(piece.item, NotReady("The server is shutting this version down; ask again."))
            raise
        finally:
            alarm.cancel()
        self._finish(slices, results, seconds)

    def _finish(self, slices: list[_Slice], results: list[Outputs | Exception], seconds: float) -> None:
        self._busy = False
        self._slices = ()
        rows = sum(s.stop - s.start for s in slices)
        self._seconds_per_row += 0.1 * (seconds / rows - self._seconds_per_row)
        self._observe(len(slices), rows, seconds)
        for piece, result in zip(slices, results, strict=True):
            _deliver(piece, result, seconds)
        if self._queue:
            self._schedule(self._queue[0].enqueued)


def _compute(runtime: Runtime, slices: Sequence[_Slice]) -> tuple[list[Outputs | Exception], float]:
    """Runs one batch; returns one result per slice and the seconds that it took."""
    began = time.perf_counter()
    results = _attempt(runtime, slices)
    return results, time.perf_counter() - began


def _attempt(runtime: Runtime, slices: Sequence[_Slice]) -> list[Outputs | Exception]:
    """One call for all; if it raises, each half on its own, so that a poison row fails alone (about 2·log2 calls)."""
    rows = sum(s.stop - s.start for s in slices)
    want = Want.NONE
    for piece in slices:
        want |= piece.item.want
    try:
        outputs = runtime.predict(_merge(slices), rows, want)
        if outputs.rows != rows or not outputs.consistent():
            raise ModelFailed(f"the model did not answer one row for each of {rows}")
    except ServingError as error:  # no row is to blame: a wrong number of outputs, or the version's process is gone
        log.error("batch failed: %s", error)
        return [error] * len(slices)
    except Exception as error:  # noqa: BLE001  the batch: a model may raise anything
        if len(slices) == 1:
            failed = ModelFailed(f"the model raised {type(error).__name__}")
            failed.__cause__ = error  # whoever answers the request logs both, under the request's id
            return [failed]
        half = len(slices) // 2
        return _attempt(runtime, slices[:half]) + _attempt(runtime, slices[half:])
    return _split(outputs, slices)


def _merge(slices: Sequence[_Slice]) -> Arrays:
    if len(slices) == 1:
        return slices[0].item.cut(slices[0].start, slices[0].stop)
    parts = [piece.item.cut(piece.start, piece.stop) for piece in slices]
    return tuple(np.concatenate(blocks) for blocks in zip(*parts, strict=True))


def _split(outputs: Outputs, slices: Sequence[_Slice]) -> list[Outputs | Exception]:
    if len(slices) == 1:
        return [outputs]
    results: list[Outputs | Exception] = []
    at = 0
    for piece in slices:
        stop = at + piece.stop - piece.start
        results.append(outputs.cut(at, stop))
        at = stop
    return results


def _deliver(piece: _Slice, result: Outputs | Exception, seconds: float) -> None:
    item = piece.item
    if isinstance(result, Exception):
        _fail(item, result)
        return
    if item.future.done():
        return
    item.parts.append(result)
    if piece.stop == item.rows:
        whole = item.parts[0] if len(item.parts) == 1 else Outputs.join(item.parts)
        item.future.set_result((whole, seconds))


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)


def _expire(future: asyncio.Future[tuple[Outputs, float]]) -> None:
    if not future.done():
        future.set_exception(DeadlineExceeded("The request's deadline passed before the model answered."))
