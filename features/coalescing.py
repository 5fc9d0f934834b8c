"""One read for all lookups that wait: while reads are in flight the next one forms, and asks for each entity once.

Everything here belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from features.blocks import Block, join
from features.breaker import Breaker
from features.errors import FeaturesUnavailable
from features.readers import Ask, Entity, Reader
from features.service import View

log = logging.getLogger("headway.features")
#: Views with the entities that a lookup wants, one per row.
Wanted = Mapping[View, Sequence[Entity]]
Found = dict[View, Block]


@dataclass(slots=True, eq=False)
class _Waiter:
    wanted: Wanted
    rows: int
    future: asyncio.Future[Found]


class Store:
    """One online store: its reader, its breaker, and how long a read may take. Shared by all versions.

    `observe(outcome, entities, seconds)` hears of every read: `ok`, `timeout` or `error`.
    """

    def __init__(
        self,
        reader: Reader,
        breaker: Breaker,
        timeout_seconds: float,
        observe: Callable[[str, int, float], None] = lambda outcome, entities, seconds: None,
    ) -> None:
        self.reader, self.breaker, self.timeout_seconds, self._observe = reader, breaker, timeout_seconds, observe
        self._down = False

    async def read(self, asks: Sequence[Ask]) -> Found:
        """All asks in chunks that leave the loop room. Raises FeaturesUnavailable."""
        began, outcome = time.perf_counter(), "error"
        try:
            async with asyncio.timeout(self.timeout_seconds):
                found = await self._chunks(asks)
            outcome = "ok"
            return found
        except TimeoutError as error:
            outcome = "timeout"
            self._note(error)
            raise FeaturesUnavailable("The feature store did not answer in time.") from error
        except Exception as error:
            self._note(error)
            raise FeaturesUnavailable("The feature store did not answer.") from error
        finally:
            self.breaker.record(ok=outcome == "ok")
            self._observe(outcome, sum(len(ask.entities) for ask in asks), time.perf_counter() - began)

    async def _chunks(self, asks: Sequence[Ask]) -> Found:
        size, most = self.reader.chunk, max(len(ask.entities) for ask in asks)
        parts: dict[View, list[Block]] = {ask.view: [] for ask in asks}
        for at in range(0, most, size):
            some = [Ask(ask.view, ask.entities[at : at + size]) for ask in asks if len(ask.entities) > at]
            for ask, block in zip(some, await self.reader.read(some), strict=True):
                parts[ask.view].append(block)
        self._note(None)
        return {view: join(blocks).examined() for view, blocks in parts.items()}

    def _note(self, error: Exception | None) -> None:
        """One line when the store goes and one when it comes back, not one per request."""
        if (error is not None) == self._down:
            return
        self._down = error is not None
        if error is None:
            log.info("feature store answers again")
        else:
            log.warning("feature store does not answer", exc_info=error)


class Coalescer:
    """The lookups of one version. At most `in_flight` reads run, and at most `waiting` rows wait; more is an outage."""

    def __init__(self, store: Store, in_flight: int = 2, waiting: int = 10_000, rows: int = 2_000) -> None:
        self._store, self._most, self._waiting_most, self._rows = store, in_flight, waiting, rows
        self._waiting: deque[_Waiter] = deque()
        self._reading: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._depth = 0

    async def read(self, wanted: Wanted, rows: int, seconds: float) -> Found:
        """The blocks of each view, a row for each entity given. Raises FeaturesUnavailable, at the latest after `seconds`."""
        if self._depth and self._depth + rows > self._waiting_most:
            raise FeaturesUnavailable("Too many lookups wait for the feature store.")
        loop = asyncio.get_running_loop()
        waiter = _Waiter(wanted, rows, loop.create_future())
        timer = loop.call_later(seconds, _expire, waiter.future)
        self._waiting.append(waiter)
        self._depth += rows
        if not self._scheduled and len(self._reading) < self._most:
            self._scheduled = True
            loop.call_soon(self._start)
        try:
            return await waiter.future
        finally:
            timer.cancel()

    def _start(self) -> None:
        self._scheduled = False
        while len(self._reading) < self._most and (batch := self._take()):
            try:
                self._store.breaker.admit()
            except FeaturesUnavailable as error:
                _fail(batch, error)
                continue
            task = asyncio.get_running_loop().create_task(self._read(batch))
            self._reading.add(task)
            task.add_done_callback(self._ended)

    def _take(self) -> list[_Waiter]:
        """Whoever waits, in order of arrival; who has left is skipped."""
        batch: list[_Waiter] = []
        rows = 0
        while self._waiting and (not batch or rows + self._waiting[0].rows <= self._rows):
            waiter = self._waiting.popleft()
            self._depth -= waiter.rows
            if not waiter.future.done():
                batch.append(waiter)
                rows += waiter.rows
        return batch

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._reading.discard(task)
        self._start()

    async def _read(self, batch: list[_Waiter]) -> None:
        places, asks = _merge(batch)
        try:
            found = await self._store.read(asks)
        except FeaturesUnavailable as error:
            _fail(batch, error)
            return
        for waiter, place in zip(batch, places, strict=True):
            if not waiter.future.done():
                waiter.future.set_result({view: found[view].take(index) for view, index in place.items()})


def _merge(batch: Sequence[_Waiter]) -> tuple[list[dict[View, slice | list[int]]], list[Ask]]:
    """Where each waiter's rows will be, and what is asked: each entity of a view once."""
    known: dict[View, dict[Entity, int]] = {}
    places = []
    for waiter in batch:
        place: dict[View, slice | list[int]] = {}
        for view, entities in waiter.wanted.items():
            index = known.setdefault(view, {})
            if len(entities) == 1:
                at = index.setdefault(entities[0], len(index))
                place[view] = slice(at, at + 1)  # no copy, for the most frequent case
            else:
                place[view] = [index.setdefault(entity, len(index)) for entity in entities]
        places.append(place)
    return places, [Ask(view, list(index)) for view, index in known.items()]


def _fail(batch: Sequence[_Waiter], error: FeaturesUnavailable) -> None:
    for waiter in batch:
        if not waiter.future.done():
            waiter.future.set_exception(error)


def _expire(future: asyncio.Future[Found]) -> None:
    if not future.done():
        future.set_exception(FeaturesUnavailable("The feature store did not answer in time."))
