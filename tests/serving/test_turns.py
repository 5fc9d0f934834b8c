"""Cheap models share the event loop by what they cost; no clock but what each member says that it took."""

import asyncio

import pytest

from serving.turns import Turns


class Busy:
    """A member with work for `turns` turns, each of which takes `cost`; it notes the name of who had one in `had`."""

    def __init__(self, turns: Turns, had: list[str], name: str, cost: float, left: int) -> None:
        self.used = 0.0
        self._turns, self._had, self._name, self._cost, self.left = turns, had, name, cost, left

    def turn(self) -> None:
        self.used += self._cost
        self._had.append(self._name)
        self.left -= 1
        if self.left:
            self._turns.ask(self)


async def ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_dear_model_has_fewer_turns() -> None:
    """Nine times as dear: nine times as few, so that both have the same time of the loop."""
    turns, had = Turns(), list[str]()
    for name, cost in (("dear", 0.9), ("cheap", 0.1)):
        turns.ask(Busy(turns, had, name, cost, 1000))
    async with asyncio.timeout(10):
        while had.count("dear") < 20:
            await ticks(1)
    assert abs(had.count("cheap") - 9 * had.count("dear")) <= 9


async def test_everybody_has_one_turn_in_a_tick() -> None:
    """Those who ask for the first time, at once and in order; and nobody twice before the sockets are looked after."""
    turns, had = Turns(), list[str]()
    for name in "abc":
        turns.ask(Busy(turns, had, name, 0.0, 2))
    await ticks(1)
    assert had == ["a", "b", "c"]
    await ticks(1)
    assert had == ["a", "b", "c"] * 2


async def test_who_rested_has_no_credit() -> None:
    """A model that comes back after another has worked for long does not shut that one out."""
    turns, had = Turns(), list[str]()
    turns.ask(Busy(turns, had, "old", 0.1, 1000))
    await ticks(100)
    turns.ask(Busy(turns, had, "new", 0.1, 1000))
    had.clear()
    await ticks(50)
    assert abs(had.count("old") - had.count("new")) <= 1


async def test_one_that_breaks_stops_nobody() -> None:
    """The others have their turns."""
    turns, had = Turns(), list[str]()

    class Broken(Busy):
        def turn(self) -> None:
            raise SystemError

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: had.append("broken"))
    for member in (Broken(turns, had, "", 0, 1), Busy(turns, had, "sound", 0.1, 2)):
        turns.ask(member)
    await ticks(4)
    assert had == ["broken", "sound", "sound"]


@pytest.mark.parametrize("members", [1, 40])
async def test_a_tick_ends_though_there_is_work(members: int) -> None:
    """The loop comes to its sockets between any two batches of one member."""
    turns, had = Turns(), list[str]()
    for name in range(members):
        turns.ask(Busy(turns, had, str(name), 0.001, 5))
    asked = 0
    async with asyncio.timeout(10):
        while len(had) < 5 * members:
            before = len(had)
            await ticks(1)
            asked += 1
            assert len(set(had[before:])) == len(had[before:])
    assert asked >= 5
