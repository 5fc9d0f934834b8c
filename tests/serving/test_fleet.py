"""Models that come and go, with a registry and a loader in memory: what a clock or a gate must be held for."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from registry.policies import FollowAlias
from serving.errors import NotReady
from serving.fleet import Fleet, Seat
from serving.manager import ModelManager
from serving.poller import Poller
from tests.fakes import Loader, Registry, Watcher


class Hall:
    """A fleet of models on demand that follow `champion`, and what it lives on."""

    def __init__(self, *names: str, budget: int | None = None, wait: float = 10.0) -> None:
        self.registry, self.loader, self.watcher = Registry(), Loader(), Watcher()
        self.seats: dict[str, Seat] = {}
        self.fleet = Fleet(self.seats, budget, wait, lambda: self.loader.resident)
        for name in names:
            self.registry.add(name, "1", "2", "3", champion="1")
            self.seats[name] = self.seat(name)

    def seat(self, name: str, **how: Any) -> Seat:
        policy = FollowAlias(name, "champion")
        how = {"on_demand": True, "room": self.fleet.room, "drain_seconds": 5.0, **how}
        manager = ModelManager(name, policy.uri, self.loader, self.watcher, **how)
        return Seat(manager, Poller(self.registry, policy, manager, 0.05, lambda name, ok: None))

    def loaded(self) -> set[str]:
        return {name for name, seat in self.seats.items() if seat.manager.current is not None}


@contextlib.asynccontextmanager
async def running(hall: Hall) -> AsyncIterator[Hall]:
    hall.fleet.start()
    try:
        yield hall
    finally:
        hall.loader.open()
        await hall.fleet.stop()


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


async def test_a_caller_that_gives_up_does_not_leave_a_model_half_unloaded() -> None:
    """Cancelled in the middle of an unload, that goes on without it, and the model comes back when it is asked for."""
    async with running(Hall("m")) as hall:
        await hall.fleet.summon("m")
        hall.loader.end.clear()
        caller = asyncio.create_task(hall.fleet.dismiss("m"))
        await until(lambda: hall.seats["m"].manager.current is None)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        hall.loader.end.set()
        await hall.fleet.summon("m", 5)
        assert hall.loaded() == {"m"}


async def test_a_load_that_gives_up_making_room_leaves_nobody_half_unloaded() -> None:
    """`load_seconds` ends while another model is being unloaded for it: that one can be had again."""
    hall = Hall("a", "b", budget=1)
    hall.seats["b"] = hall.seat("b", load_seconds=0.05)
    async with running(hall):
        await hall.fleet.summon("a")
        hall.loader.end.clear()
        with pytest.raises(NotReady, match="took longer"):
            await hall.fleet.summon("b")
        hall.loader.end.set()
        await hall.fleet.dismiss("b")
        await hall.fleet.summon("a")
        assert hall.loaded() == {"a"}
