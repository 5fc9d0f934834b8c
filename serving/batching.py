"""The greedy batcher of one version.

A batch starts the moment the runtime is free: requests of one loop tick coalesce without a timer, and while a batch
runs the next one forms. `max_wait` may hold a batch that is not full. It counts rows, not requests; a long request
runs in chunks of `max_rows`, between the batches of others, and is answered whole.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from functools import partial

from serving.admission import Admission, BatchingLimits
from serving.batch import TOO_LATE, Arrays, Done, Item, Slice, compute, rows_of
from serving.errors import DeadlineExceeded, NotReady
from serving.outbox import OUTBOX
from serving.placing import Place
from serving.predicting import Run, Threads
from serving.runtimes.base import Outputs, Runtime, Want
from serving.sizing import Cost
from serving.turns import Turns
from serving.waiting import NORMAL, Priority, Waiting

log = logging.getLogger("headway.batching")
LATE_SECONDS = 0.001  # the loop counts in milliseconds, and must not ring before the time has come


Observe = Callable[[int, int, float], None]


class Batcher:
    """Queues requests for one runtime and runs them in batches. All methods belong to the event loop's thread.

    `cost_ms` is the measured time of one full batch: below `inline_below_ms` the runtime is called on the loop, in `turns`
    with others, else in threads of the version's own, `concurrency` of them; so is one that becomes dear later, until it has
    long been cheap again. `inline=False` forbids the loop at any cost (a runtime that waits for another process).
    `observe(requests, rows, seconds)` is called once per batch that answered anybody. Of one that has run for `hang_seconds`
    without an end `overdue(seconds)` and `lost(run)` hear, and `given_up(reason)` when too many do: see `Threads`.
    """

    def __init__(
        self,
        runtime: Runtime,
        limits: BatchingLimits,
        cost_ms: float,
        observe: Observe,
        *,
        inline: bool = True,
        hang_seconds: float | None = 60.0,
        overdue: Callable[[float], None] = lambda seconds: None,
        lost: Callable[[Run], None] = lambda run: None,
        given_up: Callable[[str], None] = lambda reason: None,
        turns: Turns | None = None,
    ) -> None:
        self._runtime: Runtime | None = runtime
        self._limits = limits
        self._observe = observe
        self._on_loop = inline and limits.concurrency == 1 and cost_ms < limits.inline_below_ms
        self._place = Place(limits.inline_below_ms / 1000) if self._on_loop else None
        self._turns = turns or Turns()
        self.used = 0.0
        self._hang_seconds, self._overdue = hang_seconds, overdue
        self._threads = Threads(limits.concurrency, hang_seconds, overdue, lost, given_up)
        self._queue = Waiting(self._too_late, limits.max_rows)
        self._waiting: set[Item] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._expires = math.inf
        self._scheduled, self._asked = False, 0.0
        self._held: asyncio.TimerHandle | None = None
        self._cost = Cost() if limits.target_latency_ms is not None else None
        #: rows that a batch may have now
        self.most = limits.max_rows
        if self._cost is not None:
            self._learn(self._cost, limits.max_rows, cost_ms / 1000)
        self._admission = Admission(limits, self.most, cost_ms / 1000 / limits.max_rows * self.most)
        #: batches in the runtime now
        self.running = 0

    @property
    def depth(self) -> int:
        """Rows that wait."""
        return self._queue.depth + self._queue.beyond

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

    def submit(
        self, arrays: Arrays, rows: int, want: Want, deadline: float | None, done: Done, priority: Priority = NORMAL
    ) -> Item:
        """Queues rows; `done` hears the outputs for exactly these, in order, or ModelFailed, DeadlineExceeded, NotReady.

        `deadline` is monotonic time, None for none. Raises QueueFull, DeadlineExceeded or NotReady, and calls nobody then.
        """
        if self._runtime is None:
            raise NotReady("This version is no longer loaded; ask again.")
        if self._queue.depth >= self.most and self._on_loop and not self.running:
            self._turns.at_once(self)
        if self._queue.depth + rows > self._admission.free:
            self._admission.check(self._queue, rows, deadline, priority)
        item = Item(arrays, rows, want, deadline, time.monotonic(), done, priority)
        if deadline is not None:
            if deadline <= item.enqueued:
                raise DeadlineExceeded("The request's deadline had passed before the model could run.")
            if deadline < self._expires:
                self._expire_at(deadline)
        self._queue.add(item)
        self._waiting.add(item)
        if not self._scheduled:
            self._schedule(item.enqueued)
        return item

    @property
    def crowded(self) -> bool:
        """Whether one more row might not be taken in."""
        return self._queue.depth >= self._admission.free

    def knock(self, deadline: float | None) -> None:
        """Raises QueueFull if not one row of normal priority would be taken in: nothing need be decoded then."""
        self._admission.check(self._queue, 1, deadline, NORMAL)

    def extend(self, item: Item, deadline: float | None) -> None:
        """Somebody else waits for the item too, until `deadline`."""
        if item.deadline is not None:
            item.deadline = None if deadline is None else max(item.deadline, deadline)

    def cancel(self, item: Item) -> None:
        """Nobody waits for the item any more: it holds no place, and what is not computed yet never will be."""
        item.done = None
        self._waiting.discard(item)
        self._queue.drop(item)

    def close(self) -> None:
        """Fails every waiter and releases the runtime; batches that are running end unheard."""
        self._runtime = None
        self.fail_waiting(NotReady("The server is shutting this version down; ask again."))
        for handle in (self._held, self._expiry):
            if handle is not None:
                handle.cancel()
        self._threads.close()

    def fail_waiting(self, error: Exception) -> None:
        """Fails whoever waits or is being computed: the drain bound has passed."""
        for item in list(self._waiting):
            self._settle(item, error)

    def turn(self) -> None:
        """Runs a batch, if there are rows and the runtime is free."""
        self._scheduled = False
        if self._runtime is None or self.running >= self._limits.concurrency:
            return
        began = self._asked
        slices = self._queue.take(self.most, time.monotonic())
        if not slices:
            return
        self.running += 1
        if self._on_loop:
            self._run_inline(slices, began)
            return
        told = partial(self._finish, slices, began)
        self._threads.start(self._runtime, slices, told, self._freed)
        if self._queue.depth:
            self._schedule(self._queue.first())

    def _settle(self, item: Item, result: Outputs | Exception, seconds: float = 0.0) -> None:
        done = item.done
        item.done = None
        self._waiting.discard(item)
        if item.taken < item.rows:
            self._queue.drop(item)
        if done is None:
            return
        try:
            done(result, seconds)
        except Exception as error:
            log.error("an answer could not be given", exc_info=error)  # and its neighbours still get theirs

    def _too_late(self, item: Item) -> None:
        self._late(item, "The request's deadline passed before the model could run.")

    def _late(self, item: Item, why: str) -> None:
        if (
            item.rows <= self._limits.max_rows
        ):  # a longer one was taken in whatever is expected, and says nothing of others
            self._admission.late()
        self._settle(item, DeadlineExceeded(why))

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
            self._late(item, TOO_LATE)
        later = min((i.deadline for i in self._waiting if i.deadline is not None), default=None)
        if later is not None and later < self._expires:
            self._expire_at(later)

    def _schedule(self, since: float) -> None:
        """Asks for a turn in this tick, or waits until `max_wait` from `since` while a batch is not full."""
        if self.running >= self._limits.concurrency or self._scheduled:
            return
        if self._limits.max_wait_ms > 0 and self._queue.depth < self.most:
            wait = self._limits.max_wait_ms / 1000 - (time.monotonic() - since)
            if wait > 0:
                if self._held is None:
                    self._held = asyncio.get_running_loop().call_later(wait, self._go)
                return
        self._go()

    def _go(self) -> None:
        if self._held is not None:
            self._held.cancel()  # it held a batch that has filled up meanwhile
            self._held = None
        if self._scheduled:
            return
        self._scheduled, self._asked = True, time.monotonic()
        if self._on_loop:
            self._turns.ask(self, full=self._queue.depth >= self.most)
        else:
            asyncio.get_running_loop().call_soon(self.turn)

    def _run_inline(self, slices: list[Slice], began: float) -> None:
        assert self._runtime is not None
        meter = None if self._place is None else self._place.meter
        results, seconds, own = compute(self._runtime, slices, meter)
        if self._hang_seconds is not None and seconds > self._hang_seconds:
            self._overdue(seconds)
        self.used += seconds
        self._finish(slices, began, results, seconds, own)
        self._freed()

    def _freed(self) -> None:
        """The runtime has room for a batch again: one has ended, or hangs and was left alone."""
        self.running -= 1
        if self._queue.depth:
            self._schedule(self._queue.first())
        else:
            self._admission.rested()

    def _finish(
        self, slices: list[Slice], began: float, results: list[Outputs | Exception], seconds: float, own: float
    ) -> None:
        rows, ended = rows_of(slices), time.monotonic()
        answered = not isinstance(results[0], Exception) or any(not isinstance(r, Exception) for r in results)
        if answered:
            self._observe(len(slices), rows, seconds)
        with OUTBOX:
            for piece, result in zip(slices, results, strict=True):
                self._deliver(piece, result, seconds, ended)
        if answered:
            if self._cost is not None:
                self._learn(self._cost, rows, seconds)
            self._admission.ran(rows, time.monotonic() - began, self.most)
        if self._place is not None:
            self._on_loop = self._place.ran(seconds, own, ended, answered)

    def _deliver(self, piece: Slice, result: Outputs | Exception, seconds: float, now: float) -> None:
        item = piece.item
        if item.done is None:
            return
        if item.deadline is not None and item.deadline <= now:  # no timer rings while the loop itself computes
            self._late(item, TOO_LATE)
            return
        whole: Outputs | Exception | None = result
        if not isinstance(result, Exception) and result.rows != item.rows:
            whole = item.join(piece.start, result)
        if whole is not None:
            self._settle(item, whole, seconds)

    def _learn(self, cost: Cost, rows: int, seconds: float) -> None:
        """Chooses the rows that keep a batch within its target."""
        assert self._limits.target_latency_ms is not None
        cost.add(rows, seconds)
        self.most = cost.rows_within(self._limits.target_latency_ms / 1000, self._limits.max_rows)
