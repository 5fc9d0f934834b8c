"""Cheap models share the event loop by what they cost; no clock but what each member says that it took."""

import asyncio

import pytest

from serving.turns import MOST_SECONDS, TICK_SECONDS, Turns


class Clock:
    """Stands still unless it is put forward."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Busy:
    """A member with work for `left` turns, each of which takes `cost`, by `clock`; it notes the name of who had one in
    `had`."""

    def __init__(
        self, turns: Turns, had: list[str], name: str, cost: float, left: int, *, full: bool = False,
        clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.used = 0.0
        self._turns, self._had, self._name, self._cost, self.left = turns, had, name, cost, left
        self._full, self._clock = full, clock or Clock()

    def turn(self) -> None:
        self.used += self._cost
        self._had.append(self._name)
        self._clock.now += self._cost
        self.left -= 1
        if self.left:
            self._turns.ask(self, full=self._full)


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
    turns, had = Turns(Clock()), list[str]()
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


async def test_full_batches_wait_for_nothing() -> None:
    """There is nothing that the sockets could add to them; yet they end with the tick's time."""
    clock, had = Clock(), list[str]()
    turns = Turns(clock)
    turns.ask(Busy(turns, had, "long", TICK_SECONDS / 2.5, 4, full=True, clock=clock), full=True)
    await ticks(1)
    assert len(had) == 3
    await ticks(1)
    assert len(had) == 4


async def test_at_once_if_nobody_else_waits() -> None:
    """A member that did not ask has no turn, and with another the order is by use."""
    turns, had = Turns(Clock()), list[str]()
    a, b = Busy(turns, had, "a", 0.1, 9), Busy(turns, had, "b", 0.1, 9)
    turns.at_once(a)
    assert had == []
    turns.ask(a)
    turns.at_once(b)
    assert had == []
    turns.at_once(a)
    assert had == ["a"]
    turns.ask(b)
    turns.at_once(a)
    assert had == ["a"]
    await ticks(1)
    assert had == ["a", "b", "a"]


async def test_at_once_ends_with_the_ticks_time_and_never_within_a_turn() -> None:
    """Answers may begin requests, which must not run the next batch on top of this one; and sockets never end."""
    clock, had = Clock(), list[str]()
    turns = Turns(clock)

    class Greedy(Busy):
        def turn(self) -> None:
            super().turn()
            turns.at_once(self)

    member = Greedy(turns, had, "a", MOST_SECONDS / 4, 100, full=True, clock=clock)
    turns.ask(member, full=True)
    for count in (1, 2, 3, 4, 4, 4):
        turns.at_once(member)
        assert len(had) == count
    await ticks(1)
    before = len(had)
    turns.at_once(member)
    assert len(had) == before + 1


async def test_full_batches_and_others_alternate() -> None:
    """Whoever has used the least goes first, whether its batch is full or not."""
    turns, had = Turns(Clock()), list[str]()
    turns.ask(Busy(turns, had, "full", 0.1, 3, full=True), full=True)
    turns.ask(Busy(turns, had, "not", 0.1, 3))
    await ticks(1)
    assert had == ["full", "not", "full"]


@pytest.mark.parametrize(("sockets", "batches"), [(0.5, 2), (6, 6), (100, 20)])
async def test_batches_have_as_long_as_the_sockets_had(sockets: float, batches: int) -> None:
    """Where turning others away takes most of the time, those who were taken in have half of it, within a bound."""
    clock, had = Clock(), list[str]()
    turns = Turns(clock)
    step = TICK_SECONDS / 2 + 1e-9
    turns.ask(Busy(turns, had, "a", step, 1000, full=True, clock=clock), full=True)
    await ticks(1)
    had.clear()
    clock.now += sockets * step
    await ticks(1)
    assert len(had) == batches


@pytest.mark.parametrize("members", [1, 40])
async def test_a_tick_ends_though_there_is_work(members: int) -> None:
    """The loop comes to its sockets between any two batches of one member that are not full."""
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
