"""Sockets that several processes hold: who connects is answered though the worker that it was meant for does not accept."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from serving.doors import Doors
from serving.ports import shared_port

pytestmark = pytest.mark.audit("30d")
MANY = 32


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """Two on one port; the kernel spreads connections over those that listen."""
    first = shared_port("127.0.0.1", 0)
    made = [first, shared_port("127.0.0.1", first.getsockname()[1])]
    yield made
    for each in made:
        each.close()


class Worker:
    """Answers every connection with its number."""

    def __init__(self, sockets: list[socket.socket], number: int) -> None:
        self.doors, self._number = Doors([each.dup() for each in sockets], number), number
        self._server: asyncio.Server | None = None

    async def begin(self) -> None:
        self._server = await self._listen(self.doors.own)
        self.doors.opened(self._listen)

    async def _listen(self, door: socket.socket) -> asyncio.Server:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(str(self._number).encode())
            writer.close()

        return await asyncio.start_server(answer, sock=door)

    def hang(self) -> None:
        """It accepts no more, and its socket goes on listening: others hold it."""
        assert self._server is not None
        self._server.close()

    def end(self) -> None:
        self.hang()
        self.doors.shut()


@contextlib.asynccontextmanager
async def connections(port: int) -> AsyncIterator[list[asyncio.StreamReader]]:
    made = [await asyncio.open_connection("127.0.0.1", port) for _ in range(MANY)]
    yield [reader for reader, _ in made]
    for _, writer in made:
        writer.close()


async def heard(readers: list[asyncio.StreamReader], seconds: float = 30.0) -> set[bytes]:
    async with asyncio.timeout(seconds):
        return set(await asyncio.gather(*(reader.read() for reader in readers)))


async def test_what_waits_at_one_that_hangs_is_answered_by_another(sockets: list[socket.socket]) -> None:
    """Before it was told to, and after; and when the one accepts again, the other leaves it to it."""
    port = sockets[0].getsockname()[1]
    one, two = Worker(sockets, 1), Worker(sockets, 2)
    await one.begin()
    await two.begin()
    async with connections(port) as readers:
        assert await heard(readers) == {b"1", b"2"}
    one.hang()
    async with connections(port) as readers:
        with pytest.raises(TimeoutError):
            await heard(readers, 0.2)  # half of them wait: that is the fault
    async with connections(port) as readers:
        two.doors.stand_in([1])
        assert await heard(readers) == {b"2"}
    async with connections(port) as readers:
        assert await heard(readers) == {b"2"}
    await one.begin()
    two.doors.stand_in([])
    async with connections(port) as readers:
        assert await heard(readers) == {b"1", b"2"}
    one.end()
    two.end()


async def test_one_that_ends_leaves_its_own_to_the_others(sockets: list[socket.socket]) -> None:
    """Whoever waits there is answered; and in the end of the server nobody is let in, though others hold it too."""
    port = sockets[0].getsockname()[1]
    one, two = Worker(sockets, 1), Worker(sockets, 2)
    await one.begin()
    await two.begin()
    one.end()
    async with connections(port) as readers:
        two.doors.stand_in([1])
        assert await heard(readers) == {b"2"}
    two.doors.ending = True
    two.end()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_who_has_not_begun_stands_in_when_it_has(sockets: list[socket.socket]) -> None:
    """It may be told before it listens itself; and never accepts from its own twice."""
    port = sockets[0].getsockname()[1]
    one, two = Worker(sockets, 1), Worker(sockets, 2)
    await one.begin()
    one.hang()
    two.doors.stand_in([1, 2])
    await two.begin()
    async with connections(port) as readers:
        assert await heard(readers) == {b"2"}
    two.end()
