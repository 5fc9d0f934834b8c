"""Gzipped bodies: what is unpacked is bounded whatever the bound is, and the time that it waits for is the request's."""

import asyncio
import gzip
import threading

import pytest

from serving.errors import BodyTooLarge
from serving.transport.inflating import POOL, SHORT, Inflating
from tests.lanes import answers, listening, rows, zipped


@pytest.mark.parametrize("limit", [1, SHORT - 2, SHORT - 1, SHORT, SHORT + 1])
def test_no_more_comes_out_than_one_byte_over_the_limit(limit: int) -> None:
    """Then it is known to be too much, and nobody unpacks the rest."""
    inflating = Inflating(limit, lambda: BodyTooLarge("too large"))
    body = gzip.compress(bytes(2**20))
    with pytest.raises(BodyTooLarge):
        inflating.begin(body) or inflating.finish()
    assert len(inflating._unpacked) == limit + 1


async def test_a_request_that_waits_to_be_unpacked_waits_no_longer_than_its_deadline_says(lane: str) -> None:
    """It began when its last byte was there: it is late when both threads are free again, and is not computed."""
    gate = threading.Event()
    async with listening(lane) as server:
        busy = [POOL.submit(gate.wait, 30) for _ in range(2)]
        body = rows(1.0) + b" " * SHORT
        asked = asyncio.create_task(server.say(zipped(body, "x-request-timeout-ms: 1", close=True)))
        await server.until(lambda: any(c.cycle and not c.cycle.more_body for c in server.state.connections))
        late = asyncio.get_running_loop().time() + 0.01
        await server.until(lambda: asyncio.get_running_loop().time() > late)
        gate.set()
        assert [status for status, _, _ in answers(await asked)] == [504]
        assert server.failed("deadline") == 1
        assert server.runtime.seen == []
        assert all(each.result() for each in busy)
