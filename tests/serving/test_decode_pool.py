"""Large bodies are decoded beside the loop: bounded, with a deadline, and not for somebody who has gone."""

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from serving.decode_pool import LARGE_BYTES, DecodePool, Pace
from serving.errors import BadRequest, DeadlineExceeded, NotReady, QueueFull
from tests import lanes
from tests.lanes import answers, listening, predictions, sized

pytestmark = pytest.mark.audit("33")


class Work:
    """Something that goes on, slice by slice, until it may end."""

    def __init__(self) -> None:
        self.began, self.may_end, self.ended = (threading.Event() for _ in range(3))

    def __call__(self, pace: Pace) -> str:
        self.began.set()
        try:
            while not self.may_end.wait(0.001):
                pace()
            return "decoded"
        finally:
            self.ended.set()


async def until(event: threading.Event) -> None:
    """Waits beside the loop."""
    assert await asyncio.to_thread(event.wait, 10)


async def test_it_returns_what_the_work_returns() -> None:
    """Or raises what it raises."""
    pool = DecodePool()

    def refuse(pace: Pace) -> None:
        raise BadRequest("no")

    assert await pool.run(lambda pace: 3, None) == 3
    with pytest.raises(BadRequest):
        await pool.run(refuse, time.monotonic() + 60)


async def test_so_many_may_wait() -> None:
    """One more is told to come back; a place that is given back is free at once."""
    pool = DecodePool(threads=1, most_waiting=1)
    works = [Work(), Work()]
    running = [asyncio.ensure_future(pool.run(work, None)) for work in works]
    await until(works[0].began)
    with pytest.raises(QueueFull, match="large requests"):
        await pool.run(Work(), None)
    running[1].cancel()
    await asyncio.wait(running[1:])
    works[0].may_end.set()
    assert await pool.run(lambda pace: "next", None) == "next"
    assert await running[0] == "decoded"
    assert not works[1].began.is_set()


@pytest.mark.parametrize("how", ["gone", "late", "stopped"])
async def test_nothing_is_decoded_for_nobody(how: str) -> None:
    """The thread ends at its next slice: after a cancellation, the deadline, or the server's end."""
    pool, work = DecodePool(), Work()
    running = asyncio.ensure_future(pool.run(work, time.monotonic() + (0.05 if how == "late" else 60)))
    await until(work.began)
    if how == "gone":
        running.cancel()
    elif how == "stopped":
        pool.close(NotReady("The server is shutting down."))
    await asyncio.wait([running])
    await until(work.ended)
    error = None if running.cancelled() else type(running.exception())
    assert error == {"gone": None, "late": DeadlineExceeded, "stopped": NotReady}[how]


async def test_who_waits_longer_than_its_deadline_is_told() -> None:
    """It never began."""
    pool, first, second = DecodePool(threads=1), Work(), Work()
    running = asyncio.ensure_future(pool.run(first, None))
    await until(first.began)
    with pytest.raises(DeadlineExceeded):
        await pool.run(second, time.monotonic() + 0.02)
    first.may_end.set()
    assert await running == "decoded"
    assert not second.began.is_set()


# -- through a socket ---------------------------------------------------------------------------------------------

COUNT = 40_000
OBJECTS = json.dumps({"instances": [{"x": float(i)} for i in range(COUNT)]}).encode()
LISTS = json.dumps({"instances": [[float(i)] for i in range(COUNT)]}).encode()


@pytest.fixture(params=["protocol", "asgi"])
def each_lane(request: pytest.FixtureRequest) -> str:
    lane: str = request.param
    return lane


def large(**more: Any) -> Any:
    """A lane that takes large bodies."""
    return listening(more.pop("lane"), limit=2**24, max_queue=10**6, max_rows=COUNT, **more)


async def test_large_bodies_are_answered_in_order_with_their_own_rows(each_lane: str) -> None:
    """Requests of one connection, large and small."""
    async with large(lane=each_lane) as server:
        bodies = [OBJECTS, lanes.rows(1.5), LISTS, lanes.rows(2.5)]
        heard = await server.say(*[sized(body, close=body is bodies[-1]) for body in bodies])
    whole = [float(i) for i in range(COUNT)]
    assert len(OBJECTS) > LARGE_BYTES
    assert predictions(heard) == [whole, [1.5], whole, [2.5]]


async def test_a_large_body_that_is_wrong_is_told_what(each_lane: str) -> None:
    """By the same sentence as a short one."""
    bodies = [OBJECTS[:-2] + b', {"y": 1}]}', LISTS[:-2] + b", [1, 2]]}", LISTS[:-1]]
    async with large(lane=each_lane) as server:
        heard = answers(await server.say(*[sized(body, close=body is bodies[-1]) for body in bodies]))
    assert [status for status, _, _ in heard] == [400] * 3
    for (_, _, body), says in zip(heard, ["Column 'y' is not", "must have 1 values", "not valid JSON"], strict=True):
        assert says in json.loads(body)["error"]


async def test_who_hangs_up_while_a_body_is_decoded_leaves_nothing_behind(each_lane: str) -> None:
    """Neither its place nor its lease: the version can be unloaded."""
    async with large(lane=each_lane) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sized(OBJECTS))
        await server.until(lambda: server.plane.decoding.busy)
        writer.transport.abort()
        await server.until(lambda: server.failed("cancelled") == 1)
        assert not server.plane.decoding.busy
        assert server.manager.current is not None
        assert server.manager.current.leases == 0
        assert server.runtime.seen == []
