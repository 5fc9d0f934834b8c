"""A client that leaves its answers where they are is hung up on, however the connection was to go on."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest

from tests.lanes import Listening, listening, request, rows, sized

METRICS = request(method="GET", path="/metrics")
LONG, SHORT = rows(*[0.123456789012345] * 8000), rows(*[0.123456789012345] * 400)


@contextlib.asynccontextmanager
async def connected(server: Listening) -> AsyncIterator[socket.socket]:
    """A client whose network holds next to nothing: what it does not read stays with the server."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", server.port))
        await server.until(lambda: server.state.connections)
        (connection,) = server.state.connections
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        yield client


@pytest.mark.parametrize(
    "asked",
    [
        pytest.param(sized(LONG), id="long"),
        pytest.param(sized(LONG, close=True), id="long, and the last"),
        pytest.param(sized(SHORT, close=True), id="short, and the last"),
        pytest.param(METRICS, id="metrics"),
        pytest.param(METRICS * 20, id="metrics, many in line"),
        pytest.param(sized(SHORT) + b"POST / HTTP/1.1\r\n", id="behind it a head without an end"),
    ],
)
async def test_an_answer_that_is_not_taken_does_not_keep_its_connection(lane: str, asked: bytes) -> None:
    """Its time is `server.read_seconds`, or the connection's for idling and that."""
    async with listening(lane, read_seconds=0.2, keep_alive=0.2, limit=2**20) as server, connected(server) as client:
        await asyncio.get_running_loop().sock_sendall(client, asked)
        await server.until(lambda: server.state.total_requests or not server.state.connections)
        await server.until(lambda: not server.state.connections)
        assert server.room.used == 0


async def test_a_request_behind_an_answer_that_was_taken_late_has_its_time(lane: str) -> None:
    """A head that does not end is refused, though the answer before it was waited for."""
    loop = asyncio.get_running_loop()
    async with listening(lane, read_seconds=0.5, limit=2**20) as server, connected(server) as client:
        await loop.sock_sendall(client, sized(LONG) + b"POST / HTTP/1.1\r\n")
        (connection,) = server.state.connections
        await server.until(lambda: connection.flow.write_paused)
        heard = b""
        while piece := await loop.sock_recv(client, 65536):
            heard += piece
        assert b"HTTP/1.1 200" in heard
        assert b"HTTP/1.1 408" in heard
        await server.until(lambda: not server.state.connections)
