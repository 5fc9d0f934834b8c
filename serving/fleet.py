"""Models that are loaded when they are asked for, and leave again when others need their memory.

A model on demand costs nothing until its first request: nobody polls for it and nothing is loaded. The first request
starts its poller and manager, and waits for a READY version, within a bound. With a memory budget one version loads at a
time, so that what it takes can be told from the process's resident memory; the least recently used idle models leave
until there is room.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import math
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field

import psutil

from serving.errors import BadRequest, DeadlineExceeded, NoRoom, NotLoadedYet, NotReady
from serving.lifecycle import State
from serving.manager import ModelManager, Servable
from serving.poller import Poller
from serving.schema import shown

log = logging.getLogger("headway.lifecycle")


@dataclass(eq=False)
class Seat:
    """One served name: its manager, who polls for it, and the task that runs both, None while it sleeps."""

    manager: ModelManager
    poller: Poller
    task: asyncio.Task[None] | None = None
    leaving: asyncio.Task[None] | None = None
    moving: asyncio.Lock = field(default_factory=asyncio.Lock)


class Fleet:
    """All served names. Required ones run from the start; those on demand come and go. Lives on the event loop."""

    def __init__(
        self, seats: Mapping[str, Seat], budget_bytes: int | None, wait_seconds: float, resident: Callable[[], int]
    ) -> None:
        """`resident` gives the bytes of memory that the process holds now."""
        self.seats, self._budget, self._wait, self._resident = seats, budget_bytes, wait_seconds, resident
        self._one_at_a_time = asyncio.Lock()
        self._took: dict[tuple[str, str], int] = {}

    # -- coming and going -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts every name that is not on demand."""
        for seat in self.seats.values():
            if not seat.manager.on_demand:
                seat.task = asyncio.create_task(_run(seat))

    async def stop(self) -> None:
        """Ends all work in the background."""
        tasks = [task for seat in self.seats.values() for task in (seat.task, seat.leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def summon(self, name: str, seconds: float | None = None) -> None:
        """Returns when the name has a READY version.

        Raises NotLoadedYet if that takes longer than the bound, DeadlineExceeded if the caller's own `seconds`
        end first, NotReady if no version can be loaded, NoRoom if it does not fit.
        """
        seat = self.seats[name]
        bound = self._wait if seconds is None else min(seconds, self._wait)
        try:
            async with asyncio.timeout(bound):
                while seat.manager.current is None:
                    await self._bring(seat)
        except TimeoutError as error:
            if bound < self._wait:
                raise DeadlineExceeded("The request's deadline passed while its model was loaded.") from error
            raise NotLoadedYet(f"Model {shown(name)!r} is being loaded; try again.", math.ceil(self._wait)) from error

    async def _bring(self, seat: Seat) -> None:
        async with seat.moving:  # a model that is just leaving has left before it comes back
            if seat.task is None:
                seat.manager.come()
                seat.task = asyncio.create_task(_run(seat))
        await seat.manager.turn.wait()
        if seat.manager.current is not None or seat.moving.locked():
            return  # it is there, or was and leaves again
        if seat.manager.refused:  # it sleeps on, rather than try again and again and push others out
            await self.dismiss(seat.manager.name)
            raise NoRoom(f"Model {shown(seat.manager.name)!r} does not fit in server.memory_bytes now.", 10)
        raise NotReady(f"Model {shown(seat.manager.name)!r} has no READY version: {seat.manager.why()}.")

    async def dismiss(self, name: str) -> None:
        """Unloads a model on demand; requests that hold it finish, within the drain bound. BadRequest for others.
        A caller that gives up does not stop it: half unloaded, the model could never come back."""
        seat = self.seats[name]
        if not seat.manager.on_demand:
            raise BadRequest(f"Model {shown(name)!r} is not loaded on demand: it stays.")
        if seat.leaving is None or seat.leaving.done():
            seat.leaving = asyncio.create_task(self._leave(seat))
        await asyncio.shield(seat.leaving)

    async def _leave(self, seat: Seat) -> None:
        async with seat.moving:
            if seat.task is None:
                return
            await seat.manager.retire()
            seat.task.cancel()
            await asyncio.gather(seat.task, return_exceptions=True)
            seat.task = None
        _give_back()

    # -- memory ---------------------------------------------------------------------------------------------------

    @property
    def used(self) -> int:
        """Bytes that all loaded versions took when they were loaded."""
        return sum(servable.memory for seat in self.seats.values() for servable in seat.manager.servables)

    @contextlib.asynccontextmanager
    async def room(self, servable: Servable) -> AsyncIterator[None]:
        """Loads one version within the budget. Raises NoRoom if it cannot be made to fit."""
        if self._budget is None:
            yield
            return
        key = (servable.model, servable.version.version)
        async with self._one_at_a_time:
            await self._make_room(self._took.get(key, 0), servable)
            before, modules = self._settled(), len(sys.modules)
            yield
            grown = self._settled() - before if len(sys.modules) == modules else 0
            files = servable.loaded.size if servable.loaded is not None else 0
            # A library that was imported on the way stays, and is shared: then the size of the files must do.
            self._took[key] = servable.memory = max(grown, files or 0, self._took.get(key, 0))
            await self._make_room(0, servable)

    def _settled(self) -> int:
        _give_back()  # what loading took in passing is not what the model takes
        return self._resident()

    async def _make_room(self, wanted: int, coming: Servable) -> None:
        assert self._budget is not None
        if self._of_required() + max(wanted, coming.memory) > self._budget and self._may_leave(coming):
            raise NoRoom("more than server.memory_bytes, whoever else leaves", 10)
        while self.used + wanted > self._budget:
            idle = self._idle(coming)
            if idle is not None:
                log.info("makes room", extra={"model": idle, "for": coming.model, "used_bytes": self.used})
                await self.dismiss(idle)
            elif self._may_leave(coming):
                raise NoRoom(f"{wanted or coming.memory} bytes do not fit in server.memory_bytes", 10)
            else:
                return  # what is required is loaded, whatever it takes

    def _may_leave(self, servable: Servable) -> bool:
        return self.seats[servable.model].manager.on_demand

    def _of_required(self) -> int:
        required = (seat.manager for seat in self.seats.values() if not seat.manager.on_demand)
        return sum(servable.memory for manager in required for servable in manager.servables)

    def _idle(self, coming: Servable) -> str | None:
        """The least recently used model on demand that answers nobody now and is not on the move."""
        free = [
            seat.manager
            for seat in self.seats.values()
            if seat.manager.on_demand
            and seat.manager.name != coming.model
            and seat.manager.current is not None
            and not seat.moving.locked()
            and all(s.state is State.READY and s.leases == 0 for s in seat.manager.servables)
        ]
        return min(free, key=lambda manager: manager.used).name if free else None


async def _run(seat: Seat) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(seat.poller.run())
        group.create_task(seat.manager.run())


def resident_bytes() -> int:
    """What the process holds in memory now."""
    return int(psutil.Process().memory_info().rss)


def _give_back() -> None:
    """Freed memory stays with the C library unless it is told; glibc alone can be."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
