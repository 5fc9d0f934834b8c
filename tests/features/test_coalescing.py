"""The coalescer and its breaker, over a reader that the tests hold in their hands: the timing of a real store cannot be had."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from features.blocks import Block
from features.breaker import Breaker, Circuit
from features.coalescing import Coalescer, Store
from features.errors import FeaturesUnavailable
from features.readers import Ask
from features.service import Key, View

VIEW = View("view", (Key("id", "id", "INT64"),), ("value",), (), {"value": "DOUBLE"}, None)
OTHER = View("other", (Key("id", "id", "INT64"),), ("value",), (), {"value": "DOUBLE"}, None)


class Held:
    """A reader whose reads wait until they are let go; each value is its entity's id."""

    chunk = 4

    def __init__(self) -> None:
        self.asked: list[dict[str, list[int]]] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def read(self, asks: Sequence[Ask]) -> list[Block]:
        self.asked.append({ask.view.name: [entity[0] for entity in ask.entities] for ask in asks})
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return [_block([entity[0] for entity in ask.entities]) for ask in asks]


def _block(ids: list[int]) -> Block:
    return Block(np.ones(len(ids)), np.array(ids, dtype=np.float64)[:, None], ())


class Clock:
    """A clock that moves when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def coalescer(reader: Held, breaker: Breaker | None = None, timeout: float = 20, **limits: int) -> Coalescer:
    return Coalescer(Store(reader, breaker or Breaker(), timeout), **limits)


async def ask(waits: Coalescer, *ids: int, view: View = VIEW, seconds: float = 20) -> list[float]:
    found = await waits.read({view: [(i,) for i in ids]}, len(ids), seconds)
    return [float(v) for v in found[view].floats[:, 0]]


async def settle_down() -> None:
    """Lets everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_waits_is_asked_for_together_and_each_entity_once() -> None:
    """The first read starts at once; while it is out the others form one, of both views, and each gets its own rows."""
    reader = Held()
    waits = coalescer(reader, in_flight=1)
    first = asyncio.create_task(ask(waits, 1))
    await settle_down()
    later = [asyncio.create_task(ask(waits, *ids)) for ids in ((2, 3), (3, 2, 3), (1,))]
    other = asyncio.create_task(ask(waits, 3, view=OTHER))
    await settle_down()
    assert reader.asked == [{"view": [1]}]
    reader.gate.set()
    assert await first == [1.0]
    assert [await task for task in later] == [[2.0, 3.0], [3.0, 2.0, 3.0], [1.0]]
    assert await other == [3.0]
    assert reader.asked[1:] == [{"view": [2, 3, 1], "other": [3]}]


async def test_a_long_read_runs_in_chunks() -> None:
    """No chunk is larger than the reader wants, and the rows come back whole."""
    reader = Held()
    reader.gate.set()
    assert await ask(coalescer(reader), *range(10)) == [float(i) for i in range(10)]
    assert [len(asked["view"]) for asked in reader.asked] == [4, 4, 2]


async def test_who_is_late_leaves_and_is_not_asked_for() -> None:
    """A lookup that expired or was cancelled while it waited costs the store nothing."""
    reader = Held()
    waits = coalescer(reader, in_flight=1)
    first = asyncio.create_task(ask(waits, 1))
    await settle_down()
    with pytest.raises(FeaturesUnavailable, match="in time"):
        await ask(waits, 2, seconds=0)
    gone = asyncio.create_task(ask(waits, 3))
    await settle_down()
    gone.cancel()
    await settle_down()
    reader.gate.set()
    assert await first == [1.0]
    assert await ask(waits, 4) == [4.0]
    assert reader.asked == [{"view": [1]}, {"view": [4]}]


async def test_what_waits_has_a_bound() -> None:
    """One lookup larger than the bound is taken when nobody waits; beyond it the next is refused at once."""
    reader = Held()
    waits = coalescer(reader, in_flight=1, waiting=3)
    tasks = [asyncio.create_task(ask(waits, 1))]
    await settle_down()
    tasks.append(asyncio.create_task(ask(waits, *range(8))))
    await settle_down()
    with pytest.raises(FeaturesUnavailable, match="Too many"):
        await ask(waits, 2)
    reader.gate.set()
    assert [len(await task) for task in tasks] == [1, 8]


async def test_a_store_that_hangs_is_let_go_after_the_timeout() -> None:
    """All who wait for that read hear of it, and the next read is free to start."""
    reader = Held()
    waits = coalescer(reader, timeout=0.01, in_flight=1)
    results = await asyncio.gather(ask(waits, 1), ask(waits, 2), return_exceptions=True)
    assert [type(result) for result in results] == [FeaturesUnavailable] * 2
    reader.gate.set()
    assert await ask(waits, 3) == [3.0]


async def test_the_breaker_opens_probes_and_closes() -> None:
    """After the failures nobody is let through, then one probe; its success lets everybody in again."""
    seen: list[Circuit] = []
    clock, reader = Clock(), Held()
    breaker = Breaker(failures=2, rest_seconds=5, changed=seen.append, clock=clock)
    waits = coalescer(reader, breaker)
    reader.gate.set()
    reader.error = OSError("refused")
    for _ in range(2):
        with pytest.raises(FeaturesUnavailable, match="did not answer"):
            await ask(waits, 1)
    with pytest.raises(FeaturesUnavailable, match="a moment ago"):
        await ask(waits, 1)
    clock.now = 6
    with pytest.raises(FeaturesUnavailable, match="did not answer"):
        await ask(waits, 1)
    with pytest.raises(FeaturesUnavailable, match="a moment ago"):
        await ask(waits, 1)
    assert len(reader.asked) == 3
    clock.now, reader.error = 12, None
    reader.gate.clear()
    probe = asyncio.create_task(ask(waits, 1))
    await settle_down()
    with pytest.raises(FeaturesUnavailable, match="a moment ago"):
        await ask(waits, 2)
    reader.gate.set()
    assert await probe == [1.0]
    assert await ask(waits, 2) == [2.0]
    assert seen == [Circuit.OPEN, Circuit.HALF_OPEN, Circuit.OPEN, Circuit.HALF_OPEN, Circuit.CLOSED]


async def test_a_probe_that_never_reports_is_replaced() -> None:
    """Its place is free again after another rest."""
    clock = Clock()
    breaker = Breaker(failures=1, rest_seconds=5, clock=clock)
    breaker.record(ok=False)
    clock.now = 5
    breaker.admit()
    with pytest.raises(FeaturesUnavailable):
        breaker.admit()
    clock.now = 10
    breaker.admit()
