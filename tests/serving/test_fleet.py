"""Models that come and go, with a registry and a loader in memory: what a clock or a gate must be held for."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from registry.policies import EveryCarrier, FollowAlias
from registry.versions import ModelVersion
from serving.errors import BadRequest, NoRoom, NotFound, NotLoadedYet, NotReady
from serving.fleet import Fleet, Seat
from serving.herd import Herd
from serving.lifecycle import State
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.named import BURST, Finder
from serving.poller import Poller
from serving.status import model_status
from tests.fakes import Loader, Registry, Watcher


class Clock:
    """Stands still until it is moved."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Hall:
    """A fleet of models on demand that follow `champion`, and what it lives on."""

    def __init__(
        self, *names: str, budget: int | None = None, clock: Callable[[], float] = time.monotonic, **bounds: Any
    ) -> None:
        self.registry, self.loader, self.watcher = Registry(), Loader(), Watcher()
        self.seats: dict[str, Seat] = {}
        self.forgotten: list[str] = []
        self.fleet = Fleet(
            self.seats,
            budget,
            10.0,
            lambda: self.loader.resident,
            Finder(self.registry, clock=clock),
            clock=clock,
            **bounds,
        )
        for name in names:
            self.registry.add(name, "1", "2", "3", champion="1")
            self.seats[name] = self.seat(name)

    def seat(self, name: str, **how: Any) -> Seat:
        policy = FollowAlias(name, "champion")
        how = {"on_demand": True, "required": False, "room": self.fleet.room, "drain_seconds": 5.0, **how}
        manager = ModelManager(name, policy.uri, self.loader, self.watcher, **how)
        return Seat(manager, Poller(self.registry, policy, manager, 0.05, lambda name, ok: None))

    def loaded(self) -> set[str]:
        return {name for name, seat in self.seats.items() if seat.manager.current is not None}

    def ready(self, name: str) -> set[str]:
        """The numbers that are READY."""
        return {s.version.version for s in self.seats[name].manager.servables if s.state is State.READY}

    async def ask(self, name: str, *, version: str | None = None, label: str | None = None) -> str:
        """What a request does, without its rows: who would answer."""
        number = await self.fleet.summon(name, version=version, label=label)
        with self.seats[name].manager.lease(number) as servable:
            return servable.version.version


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
        await hall.fleet.summon("m")
        assert hall.loaded() == {"m"}


async def test_a_load_that_gives_up_making_room_leaves_nobody_half_unloaded() -> None:
    """Another model that is unloaded for it does not leave in time: that one can be had again."""
    hall = Hall("a", "b", budget=1, leave_seconds=0.05)
    async with running(hall):
        await hall.fleet.summon("a")
        hall.loader.end.clear()
        with pytest.raises(NoRoom):
            await hall.fleet.summon("b")
        hall.loader.end.set()
        await hall.fleet.dismiss("b")
        await hall.fleet.summon("a")
        assert hall.loaded() == {"a"}


# -- versions that requests name --------------------------------------------------------------------------------------


async def test_a_version_that_is_named_loads_beside_and_wakes_nobody() -> None:
    """The model itself sleeps on; it is not READY, has no version, and nobody polls for it."""
    async with running(Hall("m")) as hall:
        assert await hall.ask("m", version="3") == "3"
        status = model_status(hall.seats["m"].manager)
        assert (status["ready"], status["version"], status["state"]) == (False, None, State.NEW)
        ready = {"version": "3", "state": State.READY, "reason": None, "engine": "constant"}
        assert status["versions"] == [ready]
        assert dict(hall.registry.asked) == {"models:/m/3": 1}
        assert await hall.ask("m") == "1"
        assert hall.ready("m") == {"1", "3"}


async def test_a_label_is_followed_and_what_does_not_exist_is_asked_for_once() -> None:
    """For a while, that is; a promotion of a label is seen when that is over."""
    clock = Clock()
    hall = Hall("m", clock=clock)
    hall.registry.add("m", challenger="2")
    async with running(hall):
        for _ in range(3):
            assert await hall.ask("m", label="challenger") == "2"
            for wrong in ({"label": "nobody"}, {"version": "9"}, {"version": "01"}, {"version": "x"}):
                with pytest.raises(NotFound):
                    await hall.ask("m", **wrong)
        assert max(hall.registry.asked.values()) == 1
        hall.registry.aliases["m", "challenger"] = "3"
        clock.now += 11
        assert await hall.ask("m", label="challenger") == "3"


async def test_the_followed_alias_is_the_model_itself() -> None:
    """Its label wakes the model, and loads nothing twice."""
    async with running(Hall("m")) as hall:
        assert await hall.ask("m", label="champion") == "1"
        assert hall.loaded() == {"m"}
        assert len(hall.seats["m"].manager.extras) == 0


async def test_random_numbers_cannot_hammer_the_registry() -> None:
    """Beyond a burst they are told to come again, and a version that is loaded answers as ever."""
    async with running(Hall("m", clock=Clock())) as hall:
        assert await hall.ask("m", version="2") == "2"
        outcomes = Counter[type]()
        for number in range(100, 300):
            with pytest.raises((NotFound, NotLoadedYet)) as caught:
                await hall.ask("m", version=str(number))
            outcomes[caught.type] += 1
        assert outcomes == {NotFound: BURST - 1, NotLoadedYet: 201 - BURST}
        assert await hall.ask("m", version="2") == "2"
        assert hall.registry.asked.total() == BURST


async def test_while_the_registry_is_down_labels_mean_what_they_meant() -> None:
    """What was never known is a 503, not a 404."""
    clock = Clock()
    hall = Hall("m", clock=clock)
    hall.registry.add("m", challenger="2")
    async with running(hall):
        await hall.ask("m", label="challenger")
        clock.now, hall.registry.down = 11, True
        assert await hall.ask("m", label="challenger") == "2"
        with pytest.raises(NotReady, match="down"):
            await hall.ask("m", version="3")


async def test_a_promotion_to_a_version_that_is_there_costs_nothing() -> None:
    """It is published as it is, and the one it replaces leaves."""
    async with running(Hall("m")) as hall:
        await hall.ask("m")
        await hall.ask("m", version="2")
        hall.registry.aliases["m", "champion"] = "2"
        await until(lambda: hall.ready("m") == {"2"})
        assert await hall.ask("m") == "2"
        assert hall.loader.loads == {("m", "1"): 1, ("m", "2"): 1}


async def test_a_named_version_that_fails_says_why_and_harms_nobody() -> None:
    """It is not loaded again a moment later, whoever asks."""
    async with running(Hall("m")) as hall:
        hall.loader.bad.add(("m", "2"))
        await hall.ask("m")
        for _ in range(3):
            with pytest.raises(NotReady, match="it is bad"):
                await hall.ask("m", version="2")
        assert hall.loader.loads["m", "2"] == 1
        status = model_status(hall.seats["m"].manager)
        assert (status["ready"], status["version"], status["problem"]) == (True, "1", None)


async def test_a_timeout_of_somebody_elses_is_not_taken_for_ours() -> None:
    """A store that does not answer the loader in time is told as that, not as a version that loads too long."""

    class Late(Loader):
        def load(self, version: ModelVersion) -> Loaded:
            raise TimeoutError("the artifact store did not answer")

    hall = Hall()
    hall.loader = Late()
    hall.registry.add("m", "1", champion="1")
    hall.seats["m"] = hall.seat("m")
    async with running(hall):
        with pytest.raises(NotReady, match="the artifact store did not answer"):
            await hall.ask("m")


async def test_a_model_has_so_many_named_versions_and_no_more() -> None:
    """The least recently used one makes place; while all are in use there is none."""
    hall = Hall("m", most_extras=1)
    async with running(hall):
        await hall.ask("m", version="2")
        await hall.ask("m", version="3")
        await until(lambda: hall.ready("m") == {"3"})
        with hall.seats["m"].manager.lease("3"), pytest.raises(NoRoom, match="in use"):
            await hall.ask("m", version="2")


async def test_a_required_model_stays_while_its_older_versions_come_and_go() -> None:
    """Room for two: readiness waits for the model, and the versions that requests name push only one another out."""
    hall = Hall(budget=2)
    hall.registry.add("m", "1", "2", "3", champion="1")
    hall.seats["m"] = hall.seat("m", required=True)
    async with running(hall):
        await until(lambda: hall.loaded() == {"m"})
        for number in ("2", "3", "2"):
            assert await hall.ask("m", version=number) == number
            assert hall.ready("m") == {"1", number}
        with pytest.raises(BadRequest):
            await hall.fleet.dismiss("m")


async def test_named_versions_and_models_push_one_another_out_by_last_use() -> None:
    """Room for one: they count alike, and a model leaves even for an older version of itself."""
    async with running(Hall("a", "b", budget=1)) as hall:
        assert await hall.ask("a", version="2") == "2"
        assert await hall.ask("b") == "1"
        assert (hall.ready("a"), hall.ready("b")) == (set(), {"1"})
        assert await hall.ask("b", version="3") == "3"
        assert (hall.loaded(), hall.ready("b")) == (set(), {"3"})


async def test_a_load_asks_again_when_it_was_unloaded_while_somebody_waited() -> None:
    """An unload by the operator between load and answer costs time, not the request."""
    async with running(Hall("m")) as hall:
        hall.loader.gate.clear()
        waiting = asyncio.create_task(hall.ask("m"))
        await until(lambda: hall.loader.loads["m", "1"] == 1)
        leaving = asyncio.create_task(hall.fleet.dismiss("m"))
        await asyncio.sleep(0)
        hall.loader.gate.set()
        assert await waiting == "1"
        await leaving


async def test_a_model_that_cannot_be_loaded_is_left_alone_when_nobody_asks() -> None:
    """Until then it is tried again with back-off; the next request begins anew."""
    async with running(Hall("m", give_up=0.05)) as hall:
        hall.loader.bad.add(("m", "1"))
        with pytest.raises(NotReady, match="it is bad"):
            await hall.ask("m")
        await until(lambda: hall.seats["m"].polling is None)
        hall.loader.bad.clear()
        assert await hall.ask("m") == "1"


# -- every model that carries an alias --------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def herd(registry: Registry, **how: Any) -> AsyncIterator[Hall]:
    """A fleet that follows `models:/*@champion`, and serves one name of its own."""
    hall = Hall(**how)
    hall.registry = registry
    hall.fleet = Fleet(hall.seats, None, 10.0, lambda: 0, Finder(registry))
    hall.seats["own"] = hall.seat("own")
    names = Herd(EveryCarrier("champion"), frozenset(hall.seats), hall.fleet.tidy)
    poller = Poller(registry, names.policy, names, 0.02, lambda name, ok: None)
    hall.fleet.follow(names, poller, hall.seat, hall.forgotten.append)
    async with running(hall):
        yield hall


async def test_a_thousand_names_cost_nothing_until_they_are_asked_for() -> None:
    """One question for all of them, no manager and no poller; the one that is asked for gets both."""
    registry = Registry()
    for i in range(1000):
        registry.add(f"m-{i}", "1", "2", champion="2")
    async with herd(registry) as hall:
        await until(lambda: len(hall.fleet.names) == 1001)
        assert (list(hall.seats), set(registry.asked)) == (["own"], {"models:/*@champion"})
        assert await hall.ask("m-7") == "2"
        assert set(hall.seats) == {"own", "m-7"}
        for _ in range(100):
            with pytest.raises(NotFound):
                await hall.ask("nobody")
        assert set(registry.asked) == {"models:/*@champion", "models:/m-7@champion"}
        await hall.fleet.dismiss("m-7")
        await until(lambda: hall.forgotten == ["m-7"])
        assert (list(hall.seats), len(hall.fleet.names)) == (["own"], 1001)


async def test_names_come_and_go_with_the_alias_and_what_is_loaded_stays() -> None:
    """A name that lost its alias is served while it is loaded, and unknown once it has left."""
    registry = Registry()
    registry.add("a", "1", champion="1")
    registry.add("b", "1")
    async with herd(registry) as hall:
        await until(lambda: "a" in hall.fleet.names)
        assert await hall.ask("a") == "1"
        registry.aliases = {("b", "champion"): "1"}
        await until(lambda: "b" in hall.fleet.names)
        assert (await hall.ask("a"), await hall.ask("b")) == ("1", "1")
        assert set(hall.fleet.names) == {"own", "a", "b"}
        await hall.fleet.dismiss("a")
        with pytest.raises(NotFound):
            await hall.ask("a")
        assert set(hall.fleet.names) == {"own", "b"}


async def test_a_name_that_was_asked_for_before_the_herd_knew_it_had_gone_goes() -> None:
    """Its own poller finds no alias, and tries again for those who ask; the herd's next list ends that."""
    registry = Registry()
    registry.add("a", "1", champion="1")
    async with herd(registry) as hall:
        await until(lambda: hall.fleet.knows("a"))
        registry.aliases = {}
        with pytest.raises(NotReady, match="does not exist"):
            await hall.ask("a")
        await until(lambda: hall.forgotten == ["a"])
        with pytest.raises(NotFound):
            await hall.ask("a")


async def test_until_the_registry_has_said_which_names_there_are_none_is_unknown() -> None:
    """A start without it is a 503 for every name but those with entries of their own; later outages change nothing."""
    registry = Registry()
    registry.add("a", "1", champion="1")
    registry.down = True
    async with herd(registry) as hall:
        with pytest.raises(NotReady, match="not known yet"):
            await hall.ask("a")
        registry.down = False
        hall.fleet.pollers[-1].wake()
        await until(lambda: hall.fleet.knows("a"))
        assert await hall.ask("a") == "1"
        registry.down = True
        asked = registry.asked["models:/*@champion"]
        await until(lambda: registry.asked["models:/*@champion"] > asked)
        assert await hall.ask("a") == "1"
        with pytest.raises(NotFound):
            await hall.ask("nobody")


async def test_an_entry_of_ones_own_wins_over_the_herd() -> None:
    """The name is served once, as its entry says."""
    registry = Registry()
    registry.add("own", "1", "2", champion="2")
    async with herd(registry) as hall:
        await until(lambda: registry.asked["models:/*@champion"] > 1)
        assert hall.fleet.names == ["own"]
        await hall.fleet.dismiss("own")
        assert hall.forgotten == []
