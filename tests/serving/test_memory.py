"""What a version is measured at, and for how long that counts: with a loader in memory and a clock that is moved."""

import asyncio

import pytest

from serving.errors import NoRoom
from serving.memory import HALF_LIFE_SECONDS, RETRY_SECONDS
from tests.serving.test_fleet import Clock, Hall, running


def noisy(budget: int, clock: Clock) -> Hall:
    """Room for `budget`; versions of `a` and `b` take 10."""
    hall = Hall("a", "b", budget=budget, clock=clock)
    hall.loader.sizes = {"a": 10, "b": 10}
    return hall


async def load_beside_noise(hall: Hall, name: str, noise: int) -> None:
    """Loads a model while something else takes so many bytes, and gives them back afterwards."""
    hall.loader.gate.clear()
    coming = asyncio.create_task(hall.ask(name))
    while not hall.loader.loads[name, "1"]:
        await asyncio.sleep(0.002)
    hall.loader.resident += noise
    hall.loader.gate.set()
    try:
        await coming
    finally:
        hall.loader.resident -= noise


@pytest.mark.audit("30c")
async def test_a_large_measure_is_forgotten_by_the_next_one() -> None:
    """A model that was measured at the whole budget is loaded again beside another, and counts what it takes then."""
    hall = noisy(24, clock := Clock())
    async with running(hall):
        await load_beside_noise(hall, "a", 14)
        assert hall.fleet.used == 24
        await hall.fleet.dismiss("a")
        clock.now += RETRY_SECONDS
        await hall.ask("a")
        assert hall.fleet.used == 10
        await hall.ask("b")
        assert hall.loaded() == {"a", "b"}


@pytest.mark.audit("30c")
async def test_a_model_that_fits_the_empty_budget_is_admitted_whatever_it_was_measured_at() -> None:
    """Measured at more than there is, it is refused once; when it is asked for again it is loaded and measured again."""
    hall = noisy(15, clock := Clock())
    async with running(hall):
        with pytest.raises(NoRoom):
            await load_beside_noise(hall, "a", 100)
        with pytest.raises(NoRoom):
            await hall.ask("a")  # a moment later: it has just been tried
        assert hall.loader.loads.total() == 1
        clock.now += RETRY_SECONDS
        assert await hall.ask("a") == "1"
        assert hall.fleet.used == 10


@pytest.mark.audit("30c")
async def test_a_measure_refuses_for_less_as_it_ages() -> None:
    """Another model is in use meanwhile, so that the budget is not empty: in the end it is tried beside that one."""
    hall = noisy(25, clock := Clock())
    async with running(hall):
        await hall.ask("b")
        with hall.seats["b"].manager.lease():
            with pytest.raises(NoRoom):
                await load_beside_noise(hall, "a", 100)
            clock.now += HALF_LIFE_SECONDS
            with pytest.raises(NoRoom):
                await hall.ask("a")
            assert hall.loader.loads.total() == 2
            clock.now += 6 * HALF_LIFE_SECONDS
            assert await hall.ask("a") == "1"
            assert hall.loaded() == {"a", "b"}


@pytest.mark.audit("30c")
async def test_what_does_not_fit_is_refused_for_its_files_and_pushes_nobody_out() -> None:
    """However old the measure is: files larger than the budget are certain."""
    hall = noisy(25, clock := Clock())
    hall.loader.sizes["b"] = 30
    async with running(hall):
        await hall.ask("a")
        for _ in range(5):
            with pytest.raises(NoRoom, match="30 bytes"):
                await hall.ask("b")
            clock.now += 100 * HALF_LIFE_SECONDS
        assert (hall.loaded(), hall.loader.loads.total()) == ({"a"}, 2)


@pytest.mark.audit("29")
async def test_a_load_that_hangs_and_that_nobody_wants_holds_up_no_other_model() -> None:
    """It steps aside: others load, one by one, though they cannot be measured meanwhile."""
    hall = noisy(100, Clock())
    hall.loader.hang("a", "1")
    async with running(hall):
        waiting = asyncio.create_task(hall.ask("a"))
        while not hall.loader.loads["a", "1"]:
            await asyncio.sleep(0.002)
        hall.seats["a"].manager.rest()
        async with asyncio.timeout(10):
            assert await hall.ask("b") == "1"
        assert hall.loaded() == {"b"}
        waiting.cancel()
