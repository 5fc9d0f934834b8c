"""Whom a queue still takes in: not more rows than it may hold, and nobody whose time would be over before the turn came."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

from serving.errors import QueueFull
from serving.waiting import HIGH, LOW, NORMAL, Priority

#: What does not fit in the next batch must be expected to be answered in this share of its time; once somebody was too late,
#: in that one, until the queue has been empty.
TRUST, CAUTION = 0.85, 0.6
#: What the newest batch weighs in the pace.
NEWEST = 0.2


@dataclass(frozen=True, slots=True)
class BatchingLimits:
    """Bounds of one batcher; rows, milliseconds and a share of `max_queue`. `target_latency_ms` is of one batch in the model,
    `concurrency` the batches at once. `client_priority` says whether clients may ask for high priority."""

    max_rows: int = 32
    max_wait_ms: float = 0.0
    max_queue: int = 2000
    high_watermark: float = 0.8
    inline_below_ms: float = 1.0
    target_latency_ms: float | None = None
    concurrency: int = 1
    client_priority: bool = False


class Queue(Protocol):
    """Who waits. `depth` are the rows in line, `beyond` those of long requests outside, `outside` as many of these as count."""

    depth: int
    beyond: int

    @property
    def outside(self) -> int:
        """Without the one that nobody was before."""
        ...


class Admission:
    """The door of one queue. It knows the pace of the runtime: how long a full batch takes, from start to last answer."""

    __slots__ = ("_bounds", "_chunk", "_concurrency", "_full_seconds", "_most", "_share", "free")

    def __init__(self, limits: BatchingLimits, most: int, full_seconds: float) -> None:
        """`full_seconds` is what a batch of `most` rows took at warm-up."""
        watermark = limits.max_queue * limits.high_watermark
        self._bounds = {HIGH: limits.max_queue, NORMAL: watermark, LOW: watermark / 2}
        self._concurrency, self._most, self._full_seconds = limits.concurrency, most, full_seconds
        self._share, self._chunk = TRUST, limits.max_rows
        #: so many rows may wait before `check` can refuse anybody
        self.free = min(most, self._bounds[LOW])

    def late(self) -> None:
        """Somebody who was taken in was not answered in time: others are taken in with caution from now on."""
        self._share = CAUTION

    def rested(self) -> None:
        """Nobody waits any more."""
        self._share = TRUST

    def ran(self, rows: int, seconds: float, most: int) -> None:
        """A batch took so long, and the next may have `most` rows. A full one takes at least as long as one that is not, and
        at most as many times that as it has rows: so small batches correct the pace too."""
        if most != self._most:
            self._most, self.free = most, min(most, self._bounds[LOW])
        full = self._full_seconds
        if seconds * most < full * rows:
            self._full_seconds += NEWEST * (seconds * most / rows - full)
        elif seconds > full:
            self._full_seconds += NEWEST * (seconds - full)

    def check(self, queue: Queue, rows: int, deadline: float | None, priority: Priority) -> None:
        """Raises QueueFull for rows that must not join those that wait; an empty queue takes any.

        High priority is taken in until the queue is full, normal until its watermark, low until half of that. High priority
        does not wait for the others, so what it has before it is not counted against its deadline. Nor is what the next batch
        has room for: small batches would cost more than the few that come too late.
        """
        depth = queue.depth
        if depth == 0:
            return
        if rows > self._chunk:
            depth = self._check_long(queue, rows, priority)
        elif depth + rows > self._bounds[priority]:
            raise self._shed("The model's queue is over its high watermark; try again later.", depth)
        if deadline is None or priority is HIGH or depth + rows <= self._most:
            return
        seconds = self._seconds(depth + rows) + self._full_seconds  # the batch that runs now has to end first
        if seconds > self._share * (deadline - time.monotonic()):
            raise self._shed("The model's queue is longer than the request has time for; try again later.", depth)

    def _check_long(self, queue: Queue, rows: int, priority: Priority) -> int:
        """A request that runs in chunks takes room in line for one of them, and outside for the others. Returns how many rows
        run before its last one: those in line, and of what waits outside as much as it has itself."""
        bound, beyond = self._bounds[priority], rows - self._chunk
        ahead = queue.depth + min(queue.beyond, beyond)
        if queue.depth + self._chunk > bound:
            raise self._shed("The model's queue is over its high watermark; try again later.", ahead)
        if rows > bound or queue.outside + beyond > bound:
            raise self._shed("The model's queue has no room for so long a request now; try again later.", ahead)
        return ahead

    def _seconds(self, rows: int) -> float:
        """How long so many rows keep the runtime busy."""
        return self._full_seconds * rows / (self._most * self._concurrency)

    def _shed(self, why: str, depth: int) -> QueueFull:
        return QueueFull(why, max(1, math.ceil(self._seconds(depth))))
