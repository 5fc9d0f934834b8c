"""The greedy batcher of one version.

A batch starts the moment the runtime is free: requests of one loop tick coalesce without a timer, and while a batch
runs the next one forms. `max_wait` may hold a batch that is not full. It counts rows, not requests; a long request
runs in chunks of `max_rows` and is answered whole.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serving.batch import Arrays, Done, Item, Slice, compute
from serving.errors import DeadlineExceeded, NotReady, QueueFull
from serving.outbox import OUTBOX
from serving.runtimes.base import Outputs, Runtime, Want

LATE_SECONDS = 0.001  # the loop counts in milliseconds, and must not ring before the time has come


@dataclass(frozen=True, slots=True)
class BatchingLimits:
    """Bounds of one batcher; rows, milliseconds and a share of `max_queue`."""

    max_rows: int = 32
    max_wait_ms: float = 0.0
    max_queue: int = 2000
    high_watermark: float = 0.8
    inline_below_ms: float = 1.0


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
        self._queue: deque[Item] = deque()
        self._waiting: set[Item] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires = math.inf
        self._running: set[asyncio.Task[None]] = set()
        self._soon: asyncio.Handle | None = None
        self._held: asyncio.TimerHandle | None = None
        self._seconds_per_row = cost_ms / 1000 / limits.max_rows
        self._busy = False
        self.depth = 0

    async def predict(self, arrays: Arrays, rows: int, want: Want, deadline: float | None) -> tuple[Outputs, float]:
        """What `submit` promises, awaited: the outputs, and the seconds that their batch took in the runtime."""
        future: asyncio.Future[tuple[Outputs, float]] = asyncio.get_running_loop().create_future()

        def done(result: Outputs | Exception, seconds: float) -> None:
            if future.done():
                return  # its caller has just been cancelled
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result((result, seconds))

        item = self.submit(arrays, rows, want, deadline, done)
        try:
            return await future
        finally:
            self.cancel(item)

    def submit(self, arrays: Arrays, rows: int, want: Want, deadline: float | None, done: Done) -> Item:
        """Queues rows; `done` hears the outputs for exactly these, in order, or ModelFailed, DeadlineExceeded, NotReady.

        `deadline` is monotonic time, None for none. Raises QueueFull, DeadlineExceeded or NotReady, and calls nobody then.
        """
        if self._runtime is None:
            raise NotReady("This version is no longer loaded; ask again.")
        self._admit(rows)
        item = Item(arrays, rows, want, deadline, time.monotonic(), done)
        if deadline is not None:
            if deadline <= item.enqueued:
                raise DeadlineExceeded("The request's deadline had passed before the model could run.")
            if deadline < self._expires:
                self._expire_at(deadline)
        self._queue.append(item)
        self._waiting.add(item)
        self.depth += rows
        self._schedule(item.enqueued)
        return item

    def extend(self, item: Item, deadline: float | None) -> None:
        """Somebody else waits for the item too, until `deadline`."""
        if item.deadline is not None:
            item.deadline = None if deadline is None else max(item.deadline, deadline)

    def cancel(self, item: Item) -> None:
        """Nobody waits for the item any more: it holds no place, and what is not computed yet never will be."""
        item.done = None
        self._waiting.discard(item)
        self.depth -= item.rows - item.taken
        item.taken = item.rows

    def close(self) -> None:
        """Fails every waiter and releases the runtime; a batch that is running ends unheard."""
        for item in list(self._queue):
            self._settle(item, NotReady("The server is shutting this version down; ask again."))
        for task in self._running:
            task.cancel()
        self._queue.clear()
        self._runtime = None
        for handle in (self._soon, self._held, self._expiry):
            if handle is not None:
                handle.cancel()
        if self._thread:
            self._thread.shutdown(wait=False, cancel_futures=True)

    def fail_waiting(self, error: Exception) -> None:
        """Fails whoever waits or is being computed: the drain bound has passed."""
        for item in list(self._waiting):
            self._settle(item, error)

    def _admit(self, rows: int) -> None:
        limits = self._limits
        over = self.depth + rows > limits.max_queue * limits.high_watermark
        if over and self.depth > 0:
            seconds = max(1, math.ceil(self.depth * self._seconds_per_row))
            raise QueueFull("The model's queue is over its high watermark; try again later.", seconds)

    def _settle(self, item: Item, result: Outputs | Exception, seconds: float = 0.0) -> None:
        done = item.done
        self.cancel(item)
        if done is not None:
            done(result, seconds)

    def _expire_at(self, deadline: float) -> None:
        """One timer for all: it is set to the earliest deadline, and looks for the next one when it has rung."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._expires = deadline
        delay = max(0.0, deadline - time.monotonic()) + LATE_SECONDS
        self._expiry = asyncio.get_running_loop().call_later(delay, self._expire)

    def _expire(self) -> None:
        self._expiry, self._expires = None, math.inf
        now = time.monotonic()
        for item in [i for i in self._waiting if i.deadline is not None and i.deadline <= now]:
            self._settle(item, DeadlineExceeded("The request's deadline passed before the model answered."))
        later = min((i.deadline for i in self._waiting if i.deadline is not None), default=None)
        if later is not None and later < self._expires:
            self._expire_at(later)

    def _schedule(self, since: float) -> None:
        """Starts a batch in this tick, or holds it for `max_wait` from `since` while it is not full."""
        if self._busy or self._soon is not None or not self._queue:
            return
        if self._limits.max_wait_ms > 0 and self.depth < self._limits.max_rows:
            wait = self._limits.max_wait_ms / 1000 - (time.monotonic() - since)
            if wait > 0:
                if self._held is None:
                    self._held = asyncio.get_running_loop().call_later(wait, self._start)
                return
        if self._held is not None:
            self._held.cancel()  # it held a batch that has filled up meanwhile
            self._held = None
        self._soon = asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        self._soon = self._held = None
        if self._busy or self._runtime is None:
            return
        slices = self._take()
        if not slices:
            return
        self._busy = True
        if self._thread is None:
            self._run_inline(slices)
        else:
            task = asyncio.get_running_loop().create_task(self._run_threaded(slices))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _take(self) -> list[Slice]:
        """Rows for one batch, in order of arrival; whoever has left the queue, or is too late, is skipped."""
        slices: list[Slice] = []
        now = time.monotonic()
        room = self._limits.max_rows
        while self._queue and room > 0:
            item = self._queue[0]
            if item.deadline is not None and item.deadline <= now:
                self._settle(item, DeadlineExceeded("The request's deadline passed before the model could run."))
            count = min(room, item.rows - item.taken)
            if count == 0:
                self._queue.popleft()
                continue
            slices.append(Slice(item, item.taken, item.taken + count))
            item.taken += count
            room -= count
            self.depth -= count
            if item.taken == item.rows:
                self._queue.popleft()
        return slices

    def _run_inline(self, slices: list[Slice]) -> None:
        assert self._runtime is not None
        results, seconds = compute(self._runtime, slices)
        if seconds > self._hang_seconds:
            self._overdue(seconds)
        self._finish(slices, results, seconds)

    async def _run_threaded(self, slices: list[Slice]) -> None:
        assert self._thread is not None
        assert self._runtime is not None
        loop = asyncio.get_running_loop()
        alarm = loop.call_later(self._hang_seconds, self._overdue, self._hang_seconds)
        try:
            results, seconds = await loop.run_in_executor(self._thread, compute, self._runtime, slices)
        except (asyncio.CancelledError, RuntimeError):
            for piece in slices:
                self._settle(piece.item, NotReady("The server is shutting this version down; ask again."))
            raise
        finally:
            alarm.cancel()
        self._finish(slices, results, seconds)

    def _finish(self, slices: list[Slice], results: list[Outputs | Exception], seconds: float) -> None:
        self._busy = False
        rows = sum(s.stop - s.start for s in slices)
        self._seconds_per_row += 0.1 * (seconds / rows - self._seconds_per_row)
        self._observe(len(slices), rows, seconds)
        with OUTBOX:
            for piece, result in zip(slices, results, strict=True):
                self._deliver(piece, result, seconds)
        if self._queue:
            self._schedule(self._queue[0].enqueued)

    def _deliver(self, piece: Slice, result: Outputs | Exception, seconds: float) -> None:
        item = piece.item
        if item.done is None:
            return
        if isinstance(result, Exception) or (piece.start == 0 and piece.stop == item.rows):
            self._settle(item, result, seconds)
            return
        item.parts.append(result)
        if piece.stop == item.rows:
            self._settle(item, Outputs.join(item.parts), seconds)
