"""The memory budget: loads one version at a time, measures what it took, and has idle ones leave until there is room.

What a version takes is the growth of the process's resident memory while it loads, and what its own process holds if it
has one. What was unloaded counts until it has been disposed of.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
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


class Memory:
    """The budget of all versions together, in bytes; None is no budget. Lives on the event loop."""

    def __init__(self, residents: Residents, budget_bytes: int | None, resident: Callable[[], int]) -> None:
        """`resident` gives the bytes of memory that the process holds now."""
        self._residents, self._budget, self._resident = residents, budget_bytes, resident
        self._one_at_a_time = asyncio.Lock()
        self._took: LRUCache[tuple[str, str], int] = LRUCache(MOST_REMEMBERED)

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
        key = (servable.model, servable.version.version)
        async with self._one_at_a_time:
            known = self._took.get(key)
            wanted = self._typical() if known is None else known
            await self._make_room(wanted, servable, self._budget, sure=known is not None)
            before, modules = await self._settled(), len(sys.modules)
            yield
            grown = await self._settled() - before if len(sys.modules) == modules else 0
            files = (servable.loaded.size or 0) if servable.loaded is not None else 0
            # A library that was imported on the way stays, and is shared: then the size of the files must do.
            servable.memory = max(grown + elsewhere(servable), files, self._took.get(key, 0))
            self._took[key] = servable.memory
            await self._make_room(0, servable, self._budget, sure=True)

    async def _settled(self) -> int:
        await in_thread(give_back)  # what loading took in passing is not what the model takes
        return self._resident()

    def _typical(self) -> int:
        """What a version takes that was never loaded: a guess, so that memory is made free before it is used."""
        return sum(self._took.values()) // len(self._took) if self._took else 0

    async def _make_room(self, wanted: int, coming: Servable, budget: int, *, sure: bool) -> None:
        """Raises NoRoom if that is not to be had, and it is `sure` that so much is wanted."""
        own = wanted or coming.memory
        if sure and self._never_leaves() + own > budget and not self._stays(coming):
            raise no_room(coming, own)
        while self.used + wanted > budget:
            going = next(self._going(), None)
            if going is None and (going := self._residents.idle(coming)) is not None:
                self._tell(going, coming)
            if going is not None:
                await going.gone.wait()
                await in_thread(give_back)
            elif not sure or self._stays(coming):
                return  # what must be there is loaded, whatever it takes; and a guess refuses nobody
            else:
                raise no_room(coming, own)

    def _tell(self, going: Servable, coming: Servable) -> None:
        facts = {"model": going.model, "version": going.version.version, "for": coming.model, "used_bytes": self.used}
        log.info("makes room", extra=facts)
        self._residents.leave(going)

    def _going(self) -> Iterator[Servable]:
        """Who leaves already, those that failed after they had been loaded included."""
        for holder in self._residents.holders:
            yield from (s for s in holder.servables if s.state is State.DRAINING)
            yield from holder.leaving

    def _stays(self, servable: Servable) -> bool:
        return self._residents.holder(servable).stays(servable)

    def _never_leaves(self) -> int:
        holders = self._residents.holders
        return sum(weight(servable) for h in holders for servable in h.servables if h.stays(servable))


def no_room(servable: Servable, wanted: int) -> NoRoom:
    """The refusal of a version that needs `wanted` bytes."""
    name = f"Version {servable.version.version} of model {shown(servable.model)!r}"
    return NoRoom(f"{name} does not fit in server.memory_bytes now: it takes {wanted} bytes.", RETRY_SECONDS)


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
