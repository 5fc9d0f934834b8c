"""The client of a transformer, against a socket that listens and never answers."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from serving.errors import DeadlineExceeded, NotReady, QueueFull
from serving.predictor import Predictor
from tests.servers import free_port


@pytest.fixture
async def silent() -> AsyncIterator[tuple[str, "asyncio.Queue[str]"]]:
    """An address, and what happens there: `asked` and `closed`, in order."""
    happened: asyncio.Queue[str] = asyncio.Queue()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        happened.put_nowait("asked")
        await reader.read()
        happened.put_nowait("closed")
        writer.close()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", happened


async def test_what_is_cancelled_makes_room(silent: tuple[str, "asyncio.Queue[str]"]) -> None:
    """Over the bound a question is refused at once; one that is cancelled, or too late, closes its connection."""
    address, happened = silent
    predictor = Predictor(address, most=1)
    asked = asyncio.create_task(predictor.ask("GET", "/", [], b"", None))
    assert await asyncio.wait_for(happened.get(), 10) == "asked"
    with pytest.raises(QueueFull):
        await predictor.ask("GET", "/", [], b"", None)
    asked.cancel()
    assert await asyncio.wait_for(happened.get(), 10) == "closed"
    with pytest.raises(DeadlineExceeded):
        await predictor.ask("GET", "/", [], b"", time.monotonic() + 0.3)
    assert [await asyncio.wait_for(happened.get(), 10) for _ in range(2)] == ["asked", "closed"]
    await predictor.close()


async def test_nobody_there() -> None:
    """A refused connection is a predictor that is not ready."""
    predictor = Predictor(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(NotReady):
        await predictor.ask("GET", "/", [], b"", time.monotonic() + 10)
    await predictor.close()
