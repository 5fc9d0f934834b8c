"""Overload and priority where a user meets them: on a socket, over both lanes."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.configuration import resolve
from serving.options import options_of
from serving.settings import Batching, ModelEntry, Settings
from tests.lanes import INFER, Listening, answers, listening, predictions, rows, sized

LANES = pytest.mark.parametrize("lane", ["protocol", "asgi"])


def asking(value: float, *headers: str, **parameters: Any) -> bytes:
    """A V1 request of one row."""
    body = {"instances": [[value]], **({"parameters": parameters} if parameters else {})}
    return sized(json.dumps(body).encode(), *headers, close=True)


def inferring(value: float, **parameters: Any) -> bytes:
    """The same as V2."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [1], "data": [value]}
    return sized(json.dumps({"inputs": [tensor], "parameters": parameters}).encode(), path=INFER, close=True)


class Queue:
    """Requests behind one that runs, in the order in which they were sent; `end` lets the runtime go on."""

    def __init__(self, server: Listening) -> None:
        self._server = server
        self._said: list[asyncio.Task[bytes]] = []

    async def add(self, *requests: bytes) -> None:
        """Each has a connection of its own, and waits when this returns."""
        batcher = self._server.manager.servables[0].batcher
        assert batcher is not None
        for request in requests:
            depth = batcher.depth
            self._said.append(asyncio.create_task(self._server.say(request)))
            await self._server.until(lambda depth=depth: batcher.depth > depth)

    async def end(self) -> list[int]:
        """The statuses that they were answered."""
        self._server.runtime.gate.set()
        return [status for heard in await asyncio.gather(*self._said) for status, _, _ in answers(heard)]


@contextlib.asynccontextmanager
async def busy(lane: str, **limits: Any) -> AsyncIterator[tuple[Listening, Queue]]:
    """A server whose runtime is held in a batch of one row."""
    async with listening(lane, inline=False, max_rows=1, **limits) as server:
        server.runtime.gate.clear()
        first = asyncio.create_task(server.say(asking(0.0)))
        batcher = server.manager.servables[0].batcher
        assert batcher is not None
        await server.until(lambda: batcher.running == 1)
        yield server, Queue(server)
        server.runtime.gate.set()
        assert predictions(await first) == [[0.0]]


@LANES
async def test_priority_is_a_parameter_of_v1_and_v2(lane: str) -> None:
    """High before normal before low; 0 and nothing at all are normal."""
    async with busy(lane, client_priority=True) as (server, queue):
        await queue.add(asking(1.0, priority=3), inferring(2.0, priority=0), asking(3.0), inferring(4.0, priority=1))
        await queue.add(asking(5.0, priority=1), inferring(6.0, priority=2), asking(7.0, priority=2))
        await queue.end()
        # the fourth batch goes by arrival alone
        assert server.runtime.seen == [0.0, 4.0, 5.0, 2.0, 1.0, 3.0, 6.0, 7.0]


@LANES
@pytest.mark.audit("38")
async def test_high_priority_is_the_operators_to_allow(lane: str) -> None:
    """Unless `client_priority` is set, 1 counts as normal without an error: neither in the order nor at the watermark."""
    async with busy(lane, max_queue=8, high_watermark=0.5) as (server, queue):
        await queue.add(asking(1.0), inferring(2.0, priority=3), asking(3.0, priority=1), inferring(4.0, priority=1))
        assert predictions(await server.say(asking(9.0, priority=1))) == [503]
        assert await queue.end() == [200] * 4
        assert server.runtime.seen == [0.0, 1.0, 3.0, 4.0, 2.0]


@LANES
@pytest.mark.parametrize("wrong", [4, -1, "1", True, 1.0, [1]])
async def test_another_priority_is_a_400(lane: str, wrong: Any) -> None:
    """It says which there are, and not what was given."""
    async with listening(lane) as server:
        for request in (asking(1.0, priority=wrong), inferring(1.0, priority=wrong)):
            ((status, _, body),) = answers(await server.say(request))
            assert status == 400
            assert b"'priority' must be 1 (high), 2 (normal), 3 (low), or 0" in body


@LANES
async def test_what_would_be_shed_anyway_is_not_decoded(lane: str) -> None:
    """Over the watermark even nonsense is a 503 that says when to come back; without a queue it is a 400."""
    nonsense = sized(b"[" * 1000, close=True)
    async with busy(lane, max_queue=4, high_watermark=0.5) as (server, queue):
        assert predictions(await server.say(nonsense)) == [400]
        await queue.add(asking(1.0), asking(2.0))
        ((status, headers, _),) = answers(await server.say(nonsense))
        assert (status, headers["retry-after"]) == (503, "1")
        assert server.failed("queue_full") == 1
        assert await queue.end() == [200, 200]


@LANES
async def test_low_is_shed_first_and_high_last(lane: str) -> None:
    """Low at half the watermark, normal at the watermark, high when the queue is full."""
    async with busy(lane, max_queue=4, high_watermark=0.5, client_priority=True) as (server, queue):
        await queue.add(asking(1.0))
        assert predictions(await server.say(asking(9.0, priority=3))) == [503]
        await queue.add(asking(2.0))
        for normal in (asking(9.0), asking(9.0, priority=2), inferring(9.0)):
            assert predictions(await server.say(normal)) == [503]
        await queue.add(asking(3.0, priority=1), inferring(4.0, priority=1))
        assert predictions(await server.say(asking(9.0, priority=1))) == [503]
        await queue.end()
        assert sorted(server.runtime.seen) == [0.0, 1.0, 2.0, 3.0, 4.0]


@LANES
async def test_who_cannot_be_answered_in_time_is_told_at_once(lane: str) -> None:
    """A row takes 50 ms here; behind ten of them half a second is not enough, and ten are."""
    async with listening(lane, inline=False, max_rows=1) as server:
        server.runtime.seconds = 0.05
        for _ in range(12):  # it learns the pace
            await server.say(asking(0.0))
        queue = Queue(server)
        server.runtime.gate.clear()
        waiting = [asyncio.create_task(server.say(asking(float(i)))) for i in range(11)]
        batcher = server.manager.servables[0].batcher
        assert batcher is not None
        await server.until(lambda: batcher.depth == 10)
        ((status, headers, body),) = answers(await server.say(asking(99.0, "x-request-timeout-ms: 500")))
        assert (status, int(headers["retry-after"]) >= 1) == (503, True)
        assert b"longer than the request has time for" in body
        await queue.add(asking(50.0, "x-request-timeout-ms: 10000"))
        server.runtime.seconds = 0.0
        assert await queue.end() == [200]
        await asyncio.gather(*waiting)
        assert 99.0 not in server.runtime.seen


@LANES
async def test_other_models_routes_answer_while_one_is_full(lane: str) -> None:
    """Liveness, readiness and the metrics do not wait for a model's queue."""
    async with busy(lane, max_queue=2, high_watermark=0.5) as (server, queue):
        await queue.add(asking(1.0))
        for path in ("/health", "/ready", "/metrics"):
            heard = await server.say(sized(b"", path=path, close=True).replace(b"POST", b"GET", 1))
            assert answers(heard)[0][0] == 200
        assert predictions(await server.say(sized(rows(2.0), close=True))) == [503]
        assert await queue.end() == [200]


@pytest.mark.audit("38")
@pytest.mark.parametrize(("said", "allowed"), [({}, False), ({"client_priority": True}, True)])
def test_no_version_gives_its_clients_priority(said: dict[str, bool], allowed: bool) -> None:
    """The model's entry does; a tag of that name says nothing."""
    tags = {"headway.client_priority": str(not allowed).lower()}
    entry = ModelEntry(name="m", uri="models:/m/1", batching=Batching(**said))
    assert resolve(options_of(entry, Settings()), tags, tags).limits.client_priority is allowed
