"""The line between the supervisor and a worker: questions, remarks, errors, deadlines, and its end."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from serving.errors import NoRoom
from serving.workers import link as module
from serving.workers.link import Link, LinkLost, Refused

LONG = 30.0


class End:
    """One end: its link, what it heard, and what it answers."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self.free = asyncio.Event()
        self.link: Link

    async def answer(self, what: str, facts: Any) -> Any:
        self.heard.put_nowait((what, facts))
        if what == "double":
            return 2 * facts
        if what == "refuse":
            raise NoRoom("There is no room.", 7)
        if what == "wait":
            await self.free.wait()
        return None


@contextlib.asynccontextmanager
async def line() -> AsyncIterator[tuple[End, End, asyncio.Task[None]]]:
    """Two ends, and the task that reads the second one."""
    ends = End(), End()
    sockets = socket.socketpair()
    for end, each in zip(ends, sockets, strict=True):
        end.link = await Link.over(each, end.answer)
    reading = [asyncio.create_task(end.link.run()) for end in ends]
    try:
        yield *ends, reading[1]
    finally:
        for end in ends:
            end.link.close()
        await asyncio.wait_for(asyncio.gather(*reading), LONG)


async def test_both_ends_ask_at_the_same_time_and_each_gets_its_own_answer() -> None:
    """Also while another question waits, and whatever its length."""
    async with line() as (one, two, _):
        waiting = asyncio.create_task(one.link.ask("wait", seconds=LONG))
        asked = [one.link.ask("double", i, seconds=LONG) for i in range(5)]
        asked += [two.link.ask("double", text, seconds=LONG) for text in ("a", "é" * 3_000_000)]
        assert await asyncio.gather(*asked) == [0, 2, 4, 6, 8, "aa", "é" * 6_000_000]
        assert not waiting.done()
        two.free.set()
        assert await waiting is None


async def test_bytes_go_over_it_as_they_are() -> None:
    """As a question and as an answer, however many, with others before and after them."""
    async with line() as (one, _, __):
        asked = [one.link.ask("double", data, seconds=LONG) for data in (b"", b"\x00\xff", b"page" * 2_000_000, 7)]
        assert await asyncio.gather(*asked) == [b"", b"\x00\xff" * 2, b"page" * 4_000_000, 14]


async def test_a_remark_is_heard_and_not_answered() -> None:
    """Two of them in their order."""
    async with line() as (one, two, _):
        one.link.tell("first", {"a": 1})
        one.link.tell("refuse")
        assert [await two.heard.get(), await two.heard.get()] == [("first", {"a": 1}), ("refuse", None)]
        assert await one.link.ask("double", 1, seconds=LONG) == 2


async def test_what_one_end_raises_is_raised_at_the_other() -> None:
    """By name, with its text and when to ask again."""
    async with line() as (one, _, __):
        with pytest.raises(Refused, match="There is no room") as error:
            await one.link.ask("refuse", seconds=LONG)
        assert (error.value.kind, error.value.retry_after) == ("NoRoom", 7)


async def test_an_answer_that_comes_too_late_is_nobodys() -> None:
    """The question is over; the next one gets its own answer."""
    async with line() as (one, two, _):
        with pytest.raises(TimeoutError):
            await one.link.ask("wait", seconds=0.05)
        two.free.set()
        assert await one.link.ask("double", 4, seconds=LONG) == 8


async def test_when_an_end_is_gone_whoever_waits_hears_it() -> None:
    """And whoever asks afterwards; a remark is lost."""
    async with line() as (one, two, _):
        waiting = asyncio.create_task(one.link.ask("wait", seconds=LONG))
        await two.heard.get()
        two.link.close()
        with pytest.raises(LinkLost):
            await waiting
        with pytest.raises(LinkLost):
            await one.link.ask("double", 1, seconds=LONG)
        one.link.tell("anything")


@pytest.mark.parametrize(
    "noise",
    [
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x05hello",
        b"\x00\x00\x00\x01",
        b'\x00\x00\x00\x14{"bytes":4294967296}',
    ],
    ids=["length", "no JSON", "cut off", "bytes"],
)
async def test_noise_ends_the_line(noise: bytes) -> None:
    """A length out of bounds, what is no JSON, and half a message."""
    ours, theirs = socket.socketpair()
    end = End()
    link = await Link.over(ours, end.answer)
    theirs.sendall(noise)
    theirs.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(link.run(), LONG)
    with pytest.raises(LinkLost):
        await link.ask("double", 1, seconds=LONG)
    theirs.close()


async def test_what_may_be_under_way_is_bounded() -> None:
    """One question more is refused at once."""
    async with line() as (one, two, _):
        asked = [asyncio.create_task(one.link.ask("wait", seconds=LONG)) for _ in range(module.MOST_UNDER_WAY)]
        await asyncio.sleep(0)
        with pytest.raises(LinkLost, match="too many"):
            await one.link.ask("double", 1, seconds=LONG)
        two.free.set()
        await asyncio.gather(*asked)
