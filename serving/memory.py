"""The memory budget: loads one version at a time, measures what it took, and has idle ones leave until there is room.

What a version takes is the growth of the process's resident memory while it loads, and what its own process holds if it
has one; the last measure counts, and refuses for less as it ages. What was unloaded counts until it has been disposed of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import psutil
from cachetools import LRUCache

from serving.errors import NoRoom
from serving.lifecycle import State
from serving.malloc import give_back
from serving.runtimes.spawn import anonymous_bytes
from serving.schema import shown
from serving.servable import Servable
from serving.threads import in_thread

log = logging.getLogger("headway.lifecycle")
RETRY_SECONDS = 10
#: A load that takes longer lets the next one begin beside it; neither can be measured then.
STALLED_SECONDS = 60.0
#: After so long a measure refuses for half of what it is over the version's files.
HALF_LIFE_SECONDS = 60.0
SETTLE_SECONDS = 0.2
GOING = (State.DRAINING, State.FAILED)
#: Versions whose size is remembered after they left.
MOST_REMEMBERED = 10_000


class Holder(Protocol):
    """One who holds servables: the manager of a model."""

    servables: list[Servable]
    leaving: list[Servable]

    def stays(self, servable: Servable) -> bool:
        """Whether it must not leave for others."""
        ...


class Residents(Protocol):
    """All holders, and who may be told to leave. The fleet is it."""

    @property
    def holders(self) -> Iterable[Holder]:
        """Everybody."""
        ...

    def holder(self, servable: Servable) -> Holder:
        """Whose it is."""
        ...

    def idle(self, coming: Servable) -> Servable | None:
        """Who is to leave next, for `coming`; None if nobody can."""
        ...

    def leave(self, servable: Servable) -> None:
        """Has it unloaded; its `gone` tells when."""
        ...


@dataclass(frozen=True, slots=True)
class Measure:
    """What a version took when it was loaded last: bytes, those of its files among them; `at` is monotonic seconds."""

    size: int
    files: int
    at: float

    def least(self, now: float) -> int:
        """What it takes at least, for all that is known by `now`. Others may have had a part in the growth that was
        measured, so it refuses for less and less, down to the files."""
        return self.files + int((self.size - self.files) * 0.5 ** ((now - self.at) / HALF_LIFE_SECONDS))


@dataclass(slots=True, eq=False)
class Turn:
    """The right to load while nobody else does."""

    held: bool = True


class Memory:
    """The budget of all versions together, in bytes; None is no budget. Lives on the event loop."""

    def __init__(
        self,
        residents: Residents,
        budget_bytes: int | None,
        resident: Callable[[], int],
        *,
        leave_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`resident` gives the bytes of memory that the process holds now; whoever makes room has `leave_seconds`."""
        self._residents, self._budget, self._resident = residents, budget_bytes, resident
        self._leave_seconds, self._clock = leave_seconds, clock
        self._one_at_a_time = asyncio.Lock()
        self._took: LRUCache[tuple[str, str], Measure] = LRUCache(MOST_REMEMBERED)
        #: loads that have stepped aside and go on, and how often one began or ended to do so
        self._aside = self._disturbed = 0

    @property
    def used(self) -> int:
        """Bytes that all versions hold, those that are being disposed of included."""
        return sum(map(weight, self._servables()))

    def _servables(self) -> Iterator[Servable]:
        for holder in self._residents.holders:
            yield from dict.fromkeys((*holder.servables, *holder.leaving))

    @contextlib.asynccontextmanager
    async def room(self, servable: Servable) -> AsyncIterator[None]:
        """Loads one version within the budget. Raises NoRoom if it cannot be made to fit."""
        if self._budget is None:
            yield
            return
        async with self._turn(servable) as turn:
            await self._admit(servable, self._budget)
            servable.waits = None
            before, modules, disturbed = await self._settled(), len(sys.modules), self._disturbed
            yield

            async def grown() -> int | None:
                """None if the growth says nothing: a library that was imported on the way stays, and is shared."""
                alone = turn.held and disturbed == self._disturbed and not self._aside
                return await self._settled() - before if alone and len(sys.modules) == modules else None

            await self._keep(servable, self._budget, grown)

    # -- turns ------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _turn(self, servable: Servable) -> AsyncIterator[Turn]:
        """One load at a time, lest they be measured together. One that nobody waits for any more, or that takes long,
        steps aside: it may hang."""
        servable.waits = "waits until another version has loaded"
        try:
            await self._one_at_a_time.acquire()
            turn = Turn()
            servable.step_aside = partial(self._step_aside, turn)
            timer = asyncio.get_running_loop().call_later(STALLED_SECONDS, servable.step_aside)
            try:
                yield turn
            finally:
                timer.cancel()
                self._end(turn)
        finally:
            servable.waits, servable.step_aside = None, lambda: None

    def _step_aside(self, turn: Turn) -> None:
        if turn.held:
            turn.held = False
            self._aside += 1
            self._disturbed += 1
            self._one_at_a_time.release()

    def _end(self, turn: Turn) -> None:
        if turn.held:
            self._one_at_a_time.release()
        else:
            self._aside -= 1
            self._disturbed += 1

    # -- room -------------------------------------------------------------------------------------------------------

    async def _admit(self, coming: Servable, budget: int) -> None:
        """Makes room for what a version took when it was loaded last, or for what others took on average; refuses it
        only for what it takes at least."""
        known = self._took.get(_key(coming))
        wanted, least = (self._typical(), 0) if known is None else (known.size, self._least(known, coming))
        if known is not None and self._never_leaves(coming) + wanted > budget:
            wanted = least  # who leaves for it would leave in vain
        await self._make_room(coming, wanted, least, budget)
        coming.memory = min(wanted, max(0, budget - self._others(coming)))  # nobody else may have it meanwhile

    async def _keep(self, coming: Servable, budget: int, grown: Callable[[], Awaitable[int | None]]) -> None:
        """Measures what was loaded, and makes room for that."""
        self._note(coming, await grown())
        try:
            await self._make_room(coming, coming.memory, coming.memory, budget)
        except NoRoom:  # requests may have held for a moment what was measured
            await asyncio.sleep(SETTLE_SECONDS)
            if (again := await grown()) is None or again >= coming.memory:
                raise
            self._note(coming, again)
            await self._make_room(coming, coming.memory, coming.memory, budget)

    def _note(self, servable: Servable, grown: int | None) -> None:
        now, known = self._clock(), self._took.get(_key(servable))
        files = (servable.loaded.size or 0) if servable.loaded is not None else 0
        if grown is None:
            grown = 0 if known is None else known.least(now)
        servable.memory = max(grown + elsewhere(servable), files)
        self._took[_key(servable)] = Measure(servable.memory, files, now)

    def _least(self, known: Measure, coming: Servable) -> int:
        """In an empty budget a version is tried, whatever it was measured at: that harms nobody."""
        now, holders = self._clock(), self._residents.holders
        alone = all(s is coming or s.state in GOING for h in holders for s in h.servables)
        return known.files if alone and now - known.at >= RETRY_SECONDS else known.least(now)

    async def _settled(self) -> int:
        await in_thread(give_back)  # what loading took in passing is not what the model takes
        return self._resident()

    def _typical(self) -> int:
        """What a version takes that was never loaded: a guess, so that memory is made free before it is used."""
        return sum(known.size for known in self._took.values()) // len(self._took) if self._took else 0

    async def _make_room(self, coming: Servable, wanted: int, least: int, budget: int) -> None:
        """Has others leave until there is room for `wanted` bytes. Raises NoRoom if not even `least` are to be had."""
        if self._never_leaves(coming) + least > budget and not self._stays(coming):
            raise no_room(coming, least)
        try:
            async with asyncio.timeout(self._leave_seconds):
                await self._free(coming, wanted, least, budget)
        except TimeoutError:
            if not self._stays(coming):
                raise no_room(coming, least) from None

    async def _free(self, coming: Servable, wanted: int, least: int, budget: int) -> None:
        while self._others(coming) + wanted > budget:
            going = next(self._going(), None)
            if going is None and (going := self._residents.idle(coming)) is not None:
                self._tell(going, coming)
            if going is not None:
                coming.waits = f"waits for memory: version {going.version.version} of {shown(going.model)!r} is leaving"
                await going.gone.wait()
                await in_thread(give_back)
            elif self._stays(coming) or self._others(coming) + least <= budget:
                return  # what must be there is loaded, whatever it takes
            else:
                raise no_room(coming, least)

    def _tell(self, going: Servable, coming: Servable) -> None:
        facts = {"model": going.model, "version": going.version.version, "for": coming.model, "used_bytes": self.used}
        log.info("makes room", extra=facts)
        self._residents.leave(going)

    def _going(self) -> Iterator[Servable]:
        """Who leaves already, those that failed after they had been loaded included; without those that hang in it."""
        late = time.monotonic() - STALLED_SECONDS
        for holder in self._residents.holders:
            yield from (s for s in holder.servables if s.state is State.DRAINING)
            yield from (s for s in holder.leaving if s.entered > late)

    def _stays(self, servable: Servable) -> bool:
        return self._residents.holder(servable).stays(servable)

    def _others(self, servable: Servable) -> int:
        return sum(weight(s) for s in self._servables() if s is not servable)

    def _never_leaves(self, coming: Servable) -> int:
        """What the others take that stay."""
        holders = self._residents.holders
        return sum(weight(s) for h in holders for s in h.servables if s is not coming and h.stays(s))


def _key(servable: Servable) -> tuple[str, str]:
    return servable.model, servable.version.version


def no_room(servable: Servable, wanted: int) -> NoRoom:
    """The refusal of a version that needs `wanted` bytes."""
    name = f"Version {servable.version.version} of model {shown(servable.model)!r}"
    takes = f": it takes {wanted} bytes" if wanted else ""
    return NoRoom(f"{name} does not fit in server.memory_bytes now{takes}.", RETRY_SECONDS)


def weight(servable: Servable) -> int:
    """What a version counts: what it took, or what its process holds by now if that is more."""
    return max(servable.memory, elsewhere(servable))


def elsewhere(servable: Servable) -> int:
    """Bytes in the version's own process; 0 without one."""
    process = servable.loaded.process if servable.loaded is not None else None
    return anonymous_bytes(process.pid) if process is not None and process.pid is not None else 0


def resident_bytes() -> int:
    """What the process holds in memory now."""
    return int(psutil.Process().memory_info().rss)
