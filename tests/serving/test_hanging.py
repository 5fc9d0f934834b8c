"""Versions that hang, or raise what ends a process, while they come and go: they fail or wait alone."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from registry.versions import ModelVersion
from serving.attempts import MOST_HUNG
from serving.errors import NotReady
from serving.lifecycle import State
from serving.loading import Loaded
from serving.threads import in_thread
from tests.fakes import Loader
from tests.serving.test_fleet import Hall, running, until

ENDS = [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(), asyncio.CancelledError()]


def required(*names: str, **how: object) -> Hall:
    """A hall of models that stay."""
    hall = Hall(**how)  # type: ignore[arg-type]
    for name in names:
        hall.registry.add(name, "1", "2", "3", champion="1")
        hall.seats[name] = hall.seat(name, required=True, on_demand=False)
    return hall


def promote(hall: Hall, name: str, number: str) -> None:
    hall.registry.aliases[name, "champion"] = number
    hall.seats[name].poller.wake()


def raising(error: BaseException) -> Callable[..., None]:
    def work(*_: object) -> None:
        raise error

    return work


@pytest.mark.audit("28")
@pytest.mark.parametrize("error", ENDS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["load", "warm"])
async def test_what_would_end_the_process_is_a_failure_of_the_version(error: BaseException, where: str) -> None:
    """Raised by the version's code while it loads or warms; the status says so, and its neighbour serves."""

    class Fiend(Loader):
        def load(self, version: ModelVersion) -> Loaded:
            loaded = super().load(version)
            if version.name == "bad" and where == "warm":
                loaded.runtime.predict = raising(error)  # type: ignore[method-assign]
            return loaded

    hall = Hall()
    hall.loader = Fiend(bad={("bad", "1")} if where == "load" else set(), raises=error)
    for name in ("bad", "good"):
        hall.registry.add(name, "1", champion="1")
        hall.seats[name] = hall.seat(name, required=True, on_demand=False)
    async with running(hall):
        manager = hall.seats["bad"].manager
        await until(lambda: [s.state for s in manager.servables] == [State.FAILED])
        assert manager.why() == f"version 1 FAILED: its code raised {type(error).__name__}"
        await until(lambda: hall.loaded() == {"good"})


@pytest.mark.audit("28")
async def test_a_version_that_raises_such_things_in_its_end_is_gone_all_the_same() -> None:
    """Whoever waits for its memory goes on."""
    async with running(Hall("m")) as hall:
        await hall.fleet.summon("m")
        current = hall.seats["m"].manager.current
        assert current is not None
        current.ready[0].runtime.close = raising(SystemExit(0))  # type: ignore[method-assign]
        async with asyncio.timeout(10):
            await hall.fleet.dismiss("m")
        assert hall.seats["m"].manager.leaving == []


@pytest.mark.audit("29")
@pytest.mark.parametrize("budget", [None, 10])
async def test_a_version_that_hangs_in_loading_keeps_no_successor_waiting(budget: int | None) -> None:
    """The alias moves on: the new version loads beside it, with a memory budget too, and the old load ends unheard."""
    hall = required("m", budget=budget)
    hall.loader.hang("m", "2")
    async with running(hall):
        await until(lambda: hall.loaded() == {"m"})
        promote(hall, "m", "2")
        await until(lambda: hall.loader.loads["m", "2"])
        promote(hall, "m", "3")
        await until(lambda: hall.ready("m") == {"3"})
        hall.loader.let("m", "2")
        await until(lambda: [s.version.version for s in hall.seats["m"].manager.servables] == ["3"])
        assert await hall.ask("m") == "3"


@pytest.mark.audit("29")
async def test_a_version_that_hangs_in_warm_up_keeps_no_successor_waiting() -> None:
    """The same, one step later."""
    hall = required("m")
    hall.loader.answer.clear()
    async with running(hall):
        manager = hall.seats["m"].manager
        await until(lambda: [s.state for s in manager.servables] == [State.WARMING])
        hall.loader.answer = threading.Event()
        hall.loader.answer.set()
        held = manager.servables[0]
        assert held.loaded is not None
        promote(hall, "m", "2")
        await until(lambda: hall.loader.loads["m", "2"] == 1)


@pytest.mark.audit("29")
async def test_a_version_that_hangs_in_its_end_keeps_no_successor_waiting() -> None:
    """Its memory counts on, and the next promotion goes through."""
    hall = required("m")
    async with running(hall):
        await until(lambda: hall.loaded() == {"m"})
        hall.loader.end.clear()
        promote(hall, "m", "2")
        await until(lambda: hall.ready("m") == {"2"})
        promote(hall, "m", "3")
        await until(lambda: hall.ready("m") == {"3"})
        assert len(hall.seats["m"].manager.leaving) == 2
        hall.loader.end.set()
        await until(lambda: hall.seats["m"].manager.leaving == [])


@pytest.mark.audit("29")
async def test_loads_that_hang_are_counted() -> None:
    """A version of which some hang is not tried again before one of them ends: each keeps a thread and what it read."""
    hall = required()
    hall.registry.add("m", "1", champion="1")
    hall.seats["m"] = hall.seat("m", required=True, on_demand=False, load_seconds=0.01)
    hall.loader.hang("m", "1")
    async with running(hall):
        manager = hall.seats["m"].manager
        async with asyncio.timeout(30):
            while "hang" not in manager.why():
                for servable in manager.servables:
                    servable.due = 0.0  # the back-off is over
                hall.seats["m"].poller.wake()
                manager.aspire(manager.aspired)
                await asyncio.sleep(0.005)
        assert hall.loader.loads["m", "1"] == MOST_HUNG


@pytest.mark.audit("10")
async def test_waiting_for_the_memory_lock_is_not_loading() -> None:
    """With a budget versions load one by one; who waits for longer than its own load may take comes all the same."""
    hall = required(budget=100)
    for name, seconds in (("slow", 3600.0), ("quick", 1.0)):
        hall.registry.add(name, "1", champion="1")
        hall.seats[name] = hall.seat(name, required=True, on_demand=False, load_seconds=seconds)
    hall.loader.hang("slow", "1")
    async with running(hall):
        slow, quick = (hall.seats[name].manager for name in ("slow", "quick"))
        await until(lambda: hall.loader.loads["slow", "1"] and quick.servables)
        assert quick.why() == "version 1 waits until another version has loaded"
        await asyncio.sleep(1.5)
        assert [s.state for s in (*slow.servables, *quick.servables)] == [State.LOADING] * 2
        hall.loader.let("slow", "1")
        await until(lambda: hall.loaded() == {"slow", "quick"})


@pytest.mark.audit("14")
async def test_the_newest_version_is_noted_last() -> None:
    """A slow disk keeps the note of an old version waiting; it must not overwrite the next one's."""
    hold, noted = threading.Event(), list[str]()

    def remember(version: ModelVersion) -> None:
        if version.version == "1":
            hold.wait(10)
        noted.append(version.version)

    hall = required()
    hall.registry.add("m", "1", "2", champion="1")
    hall.seats["m"] = hall.seat("m", required=True, on_demand=False, remember=remember)
    async with running(hall):
        await until(lambda: hall.ready("m") == {"1"})
        promote(hall, "m", "2")
        await until(lambda: hall.ready("m") == {"2"})
        hold.set()
        await until(lambda: len(noted) == 2)
        assert noted == ["1", "2"]


@pytest.mark.audit("14")
async def test_the_end_of_a_manager_ends_all_waiting() -> None:
    """For a version that comes, and for one that leaves."""
    hall = Hall("m", "n")
    async with running(hall):
        await hall.fleet.summon("n")
        hall.loader.end.clear()
        hall.loader.gate.clear()
        waiting = [asyncio.create_task(hall.fleet.dismiss("n")), asyncio.create_task(hall.fleet.summon("m"))]
        await until(lambda: hall.loader.loads["m", "1"] == 1 and hall.seats["n"].manager.leaving)
        await hall.fleet.stop()
        async with asyncio.timeout(5):
            left, came = await asyncio.gather(*waiting, return_exceptions=True)
        assert (left, type(came)) == (None, NotReady)


async def test_a_thread_hands_over_what_it_may() -> None:
    """An ordinary error comes as it is."""
    with pytest.raises(ZeroDivisionError):
        await in_thread(lambda: 1 // 0)
