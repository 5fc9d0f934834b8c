"""What takes long on the loop leaves it to others again and again, and is done once for all who ask."""

import asyncio

import pytest

from serving.slices import Shared, in_slices
from tests.lanes import Listening, answers, listening, request

pytestmark = pytest.mark.audit("18")
SCRAPE = request(path="/metrics", method="GET", close=True)


async def answered_meanwhile(server: Listening, scrape: asyncio.Task[bytes]) -> int:
    """How often liveness is answered on one connection before the scrape is."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    answered = 0
    while not scrape.done():
        writer.write(request(path="/health", method="GET"))
        await reader.readuntil(b'{"status":"alive"}')
        answered += 1
    writer.close()
    return answered


async def test_requests_are_answered_while_a_page_is_written(lane: str) -> None:
    """A page of 300 versions takes a fifth of a second and more."""
    async with listening(lane) as server:
        for number in map(str, range(2, 302)):
            bound = server.metrics.bound("echo", number)
            for histogram in (bound.latency, bound.request_latency, bound.batch_size, bound.batch_latency):
                histogram.observe(0.001)
        scrape = asyncio.create_task(server.say(SCRAPE))
        await asyncio.sleep(0)
        assert await answered_meanwhile(server, scrape) > 20
        ((status, _, body),) = answers(await scrape)
        assert status == 200
        assert b'inference_batch_size_count{model_name="echo",model_version="301"} 1.0' in body


async def test_all_who_ask_while_a_page_is_written_share_the_next_one() -> None:
    """One at a time, and what each gets was begun after it asked; who gives up takes it from nobody."""
    begun, gate = 0, asyncio.Event()

    async def make() -> int:
        nonlocal begun
        begun += 1
        mine = begun
        await gate.wait()
        return mine

    shared = Shared(make)
    first = asyncio.create_task(shared())
    while not begun:
        await asyncio.sleep(0)
    others = [asyncio.create_task(shared()) for _ in range(100)]
    await asyncio.sleep(0)
    others.pop().cancel()
    await asyncio.sleep(0)
    assert begun == 1
    gate.set()
    assert await first == 1
    assert set(await asyncio.gather(*others)) == {2}
    assert await shared() == 3


async def test_one_that_fails_does_not_keep_the_next_from_being_made() -> None:
    """Each asker hears of its own."""
    outcomes = iter([OSError("no"), None])

    async def make() -> str:
        if error := next(outcomes):
            raise error
        return "page"

    shared = Shared(make)
    asked = asyncio.create_task(shared())
    await asyncio.sleep(0)
    second = asyncio.create_task(shared())
    with pytest.raises(OSError, match="no"):
        await asked
    assert await second == "page"


async def test_slices_give_everything_in_order() -> None:
    """Whether it takes one slice or many."""
    assert await in_slices(iter(range(10_000))) == list(range(10_000))
