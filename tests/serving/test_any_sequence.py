"""Any sequence of loads, unloads, requests, promotions, rollbacks, failures, loads that hang and outages keeps the fleet
consistent."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serving.errors import NotFound, NotReady
from serving.fleet import Fleet
from serving.lifecycle import MOST_COMING, State
from serving.named import Finder
from serving.servable import Servable
from serving.status import index, model_status
from tests.serving.test_fleet import Hall

BUDGET, MOST_EXTRAS = 4, 2
SLEEPERS, STAYS = ("a", "b", "c"), "r"
NUMBERS, ALIASES = ("1", "2", "3"), ("champion", "challenger")
names = st.sampled_from((*SLEEPERS, STAYS))
numbers = st.sampled_from(NUMBERS)


class AnySequence(RuleBasedStateMachine):
    """Three models on demand and one that stays, three versions each, room for four, on a real event loop: real threads
    load and dispose, the registry and the models live in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.held: list[tuple[contextlib.ExitStack, Servable]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.was_ready = False

    @initialize()
    def begin(self) -> None:
        async def begin() -> Hall:
            hall = Hall(*SLEEPERS)
            finder = Finder(hall.registry, 0.01, rate=1000.0)
            hall.fleet = Fleet(hall.seats, BUDGET, 0.3, lambda: hall.loader.resident, finder, MOST_EXTRAS)
            for name in SLEEPERS:
                hall.seats[name] = hall.seat(name, drain_seconds=3600)
            hall.registry.add(STAYS, *NUMBERS, champion="1")
            hall.seats[STAYS] = hall.seat(STAYS, drain_seconds=3600, required=True)
            hall.fleet.start()
            return hall

        self.hall = self.run(begin())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def lease(self, name: str, version: str | None, label: str | None) -> None:
        """A request that begins, or is refused as documented."""

        async def begin() -> None:
            with contextlib.suppress(NotReady, NotFound):
                number = await self.hall.fleet.summon(name, version=version, label=label)
                stack = contextlib.ExitStack()
                servable = stack.enter_context(self.hall.seats[name].manager.lease(number))
                assert number is None or servable.version.version == number
                assert label is None or self.hall.registry.down or label in ALIASES
                self.held.append((stack, servable))

        self.run(begin())

    # -- what may happen ----------------------------------------------------------------------------------------------

    @rule(name=names)
    def request(self, name: str) -> None:
        self.lease(name, None, None)

    @rule(name=names, version=st.sampled_from((*NUMBERS, "9")))
    def request_version(self, name: str, version: str) -> None:
        self.lease(name, version, None)

    @rule(name=names, label=st.sampled_from((*ALIASES, "nobody")))
    def request_label(self, name: str, label: str) -> None:
        self.lease(name, None, label)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        stack, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1)))
        stack.close()

    @rule(name=st.sampled_from(SLEEPERS), impatient=st.booleans())
    def unload(self, name: str, impatient: bool) -> None:
        async def unload() -> None:
            task = asyncio.create_task(self.hall.fleet.dismiss(name))
            await asyncio.sleep(0)
            if impatient:
                task.cancel()
            self.tasks.append(task)

        self.run(unload())

    @rule(name=names, number=numbers, alias=st.sampled_from(ALIASES))
    def promote_or_roll_back(self, name: str, number: str, alias: str) -> None:
        self.hall.registry.aliases[name, alias] = number
        self.hall.seats[name].poller.wake()

    @rule(name=names)
    def lose_the_alias(self, name: str) -> None:
        self.hall.registry.aliases.pop((name, "champion"), None)

    @rule(name=names, number=numbers)
    def spoil_or_mend(self, name: str, number: str) -> None:
        self.hall.loader.bad.symmetric_difference_update({(name, number)})

    @rule(name=names, number=numbers)
    def hang_or_go_on(self, name: str, number: str) -> None:
        if (name, number) in self.hall.loader.hangs:
            self.hall.loader.let(name, number)
        else:
            self.hall.loader.hang(name, number)

    @rule(down=st.booleans())
    def outage(self, down: bool) -> None:
        self.hall.registry.down = down

    @rule(seconds=st.sampled_from((0.0, 0.01, 0.1)))
    def time_passes(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    # -- what holds at every moment -----------------------------------------------------------------------------------

    @property
    def servables(self) -> list[Servable]:
        return [s for manager in self.hall.fleet.holders for s in manager.servables]

    @invariant()
    def the_index_says_what_can_be_leased(self) -> None:
        managers = list(self.hall.fleet.holders)
        ready = index(managers, [], only_ready=True)
        said = [(row["name"], row["version"]) for row in ready]
        assert len(said) == len(set(said))
        for name, number in said:
            assert self.hall.seats[name].manager.find(number) is not None
        everything = index(managers, [], only_ready=False)
        assert [row for row in everything if row["state"] == "READY"] == ready
        assert {row["name"] for row in everything} == set(self.hall.seats)
        assert {(s.model, s.version.version) for s in self.servables} == set(self.hall.watcher.states)

    @invariant()
    def leases_hold_what_they_hold(self) -> None:
        assert sum(s.leases for s in self.servables) == len(self.held)
        for _, servable in self.held:
            assert servable.state in (State.READY, State.DRAINING)
            loaded, _ = servable.ready
            labels = loaded.runtime.predict((), 1, ...).labels  # type: ignore[arg-type]
            assert labels is not None
            assert labels.tolist() == [float(servable.version.version)]

    @invariant()
    def versions_are_what_they_are_said_to_be(self) -> None:
        for manager in self.hall.fleet.holders:
            status = model_status(manager)
            assert status["ready"] == (manager.current is not None)
            assert manager.current is None or manager.current.state is State.READY
            assert manager.current is None or manager.current in manager.servables
            assert len(manager.extras) <= MOST_EXTRAS
            coming = [s.version for s in manager.servables if s.state in (State.LOADING, State.WARMING)]
            assert len(coming) == len(set(coming)) <= MOST_COMING
        stays = self.hall.seats[STAYS].manager.current is not None
        assert stays or not self.was_ready
        self.was_ready = stays

    @invariant()
    def memory_is_what_is_held_and_within_the_budget(self) -> None:
        used, true = self.hall.fleet.used, self.hall.loader.resident
        if not any(s.state in (State.LOADING, State.WARMING) for s in self.servables):
            assert used >= true
        required = sum(s.memory for s in self.hall.seats[STAYS].manager.servables)
        loading = sum(s.state in (State.LOADING, State.WARMING) for s in self.servables)
        assert used <= BUDGET + required + loading

    def teardown(self) -> None:
        if not hasattr(self, "hall"):
            return
        for stack, _ in self.held:
            stack.close()
        self.hall.registry.down = False
        self.hall.loader.bad.clear()
        for name, number in list(self.hall.loader.hangs):
            if name != STAYS:
                self.hall.loader.let(name, number)
        self.run(asyncio.wait_for(self.until_promoted(), 20))
        self.hall.loader.open()
        for task in self.tasks:  # nobody who unloads waits for ever
            with contextlib.suppress(asyncio.CancelledError):
                self.run(asyncio.wait_for(task, 20))
        for name in SLEEPERS:
            self.run(asyncio.wait_for(self.until_gone(name), 20))
        self.run(self.hall.fleet.stop())
        self.loop.close()

    async def until_promoted(self) -> None:
        """Whatever hangs in loading: a version that does not is loaded as soon as it is promoted."""
        hall, manager = self.hall, self.hall.seats[STAYS].manager
        hall.loader.hang(STAYS, "4")
        hall.registry.add(STAYS, "4", "5", champion="4")
        while hall.loader.loads[STAYS, "4"] == 0 and [v.version for v in manager.aspired] != ["4"]:
            hall.seats[STAYS].poller.wake()
            await asyncio.sleep(0.001)
        hall.registry.aliases[STAYS, "champion"] = "5"
        while manager.current is None or manager.current.version.version != "5":
            hall.seats[STAYS].poller.wake()
            await asyncio.sleep(0.001)

    async def until_gone(self, name: str) -> None:
        """After its last request, a model that is unloaded leaves nothing."""
        manager = self.hall.seats[name].manager
        while manager.servables or manager.leaving:
            await self.hall.fleet.dismiss(name)
            await asyncio.sleep(0.001)


def test_any_sequence_of_events_keeps_the_fleet_consistent() -> None:
    """Index, memory, leases and versions agree after every step; at the end everything can be unloaded."""
    from hypothesis.stateful import run_state_machine_as_test

    gc.freeze()  # as the server does: a disposal collects, and what is imported is not its affair
    try:
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            AnySequence,
            settings=settings(
                max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )
    finally:
        gc.unfreeze()
