"""Connections that are hung up on: when they idle, and when the port closes. What a client has already asked is answered."""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable
from functools import partial

import grpc
import pytest
import uvloop
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.transport.arrivals import Arrivals
from serving.transport.grpc import build_server
from tests.lanes import Listening, answers, listening, request, rows, sized
from tests.servers import free_port

GOOD = rows(1.0)
KEEP_ALIVE = 1.0


@pytest.fixture(params=["protocol", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Both lanes."""
    return str(request.param)


async def _ask(reader: asyncio.StreamReader) -> int:
    """The status of the next answer, 0 for a connection that is gone."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    except (ConnectionError, asyncio.IncompleteReadError):
        return 0
    return int(head.split()[1])


async def _late(server: Listening, clients: int) -> list[int]:
    """Idle connections are used again just before their time is over, by a loop that stands still for 0.2 s then."""
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(clients)]
    for _, writer in opened:
        writer.write(sized(GOOD))
    assert await asyncio.gather(*(_ask(reader) for reader, _ in opened)) == [200] * clients
    await asyncio.sleep(KEEP_ALIVE - 0.1)
    await _while_it_reads(partial(_use, [writer for _, writer in opened]))
    heard = await asyncio.gather(*(_ask(reader) for reader, _ in opened))
    for _, writer in opened:
        writer.close()
    return heard


def _use(writers: list[asyncio.StreamWriter]) -> None:
    for writer in writers:
        os.write(writer.get_extra_info("socket").fileno(), sized(GOOD))  # now, and not when the loop comes to it
    time.sleep(0.2)


async def _while_it_reads(work: Callable[[], None]) -> None:
    """Does it where the loop reads; its timers are next."""
    loop = asyncio.get_running_loop()
    bell, rope = socket.socketpair()
    done = asyncio.Event()
    with bell, rope:
        loop.add_reader(bell, lambda: (loop.remove_reader(bell), work(), done.set()))
        rope.send(b"x")
        await done.wait()


def _rounds(lane: str, clients: int, rounds: int) -> list[int]:
    async def all_of_them() -> list[int]:
        async with listening(lane, keep_alive=KEEP_ALIVE) as server:
            return [status for _ in range(rounds) for status in await _late(server, clients)]

    heard: list[int] = uvloop.run(
        all_of_them()
    )  # the server's own loop: behind what it has read it looks at its timers
    return heard


def test_what_has_arrived_is_read_before_an_idle_connection_is_closed(lane: str) -> None:
    """However late the loop comes to read it."""
    assert _rounds(lane, 50, 1) == [200] * 50


@pytest.mark.slow
def test_of_a_thousand_requests_around_the_timeout_none_is_reset() -> None:
    """The same, twenty times."""
    assert _rounds("protocol", 50, 20) == [200] * 1000


async def test_a_request_that_has_begun_to_arrive_when_the_port_closes_is_answered(lane: str) -> None:
    """Half its head was read, or it lies in the socket still; who has sent nothing is hung up on."""
    async with listening(lane) as server:
        idle = asyncio.create_task(server.say())
        (half, half_writer), (new, new_writer) = [
            await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)
        ]
        half_writer.write(sized(GOOD)[:20])
        await server.until(lambda: len(server.state.connections) == 3)
        await server.until(lambda: any(c._in_head for c in server.state.connections))
        new_writer.write(sized(GOOD))
        server.plane.draining = True
        for connection in list(server.state.connections):
            connection.shutdown()
        half_writer.write(sized(GOOD)[20:])
        for reader, writer in ((half, half_writer), (new, new_writer)):
            ((status, headers, _),) = answers(await reader.read())
            assert (status, headers["connection"]) == (200, "close")
            writer.close()
        assert await idle == b""
        await server.until(lambda: not server.state.connections)


@pytest.mark.parametrize("stream", [sized(GOOD)[:20], request(GOOD[:5], "content-length: 100"),
                                    request(b"5\r\nab", "transfer-encoding: chunked")])  # fmt: skip
async def test_who_still_sends_at_the_drain_bound_is_told_so(lane: str, stream: bytes) -> None:
    """A 503 in place of a connection that just ends; what comes after it is dropped."""
    async with listening(lane) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(stream)
        await server.until(lambda: any(c._reading for c in server.state.connections))
        for connection in list(server.state.connections):
            connection.cut()
        writer.write(b"more, and more")
        ((status, headers, body),) = answers(await reader.read())
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(body) == {"error": "The server is shutting down."}
        writer.close()


async def test_an_idle_channel_is_told_to_go() -> None:
    """Over gRPC, after as much idleness; the next call finds another connection."""
    async with listening("protocol") as served:
        address = f"127.0.0.1:{free_port()}"
        server = build_server(served.plane, address, 2**20, 100, served.room, Arrivals(), idle_seconds=0.3)
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(30):
            stub = GRPCInferenceServiceStub(channel)
            for _ in range(2):
                assert (await stub.ServerLive(pb.ServerLiveRequest())).live
                await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
        await server.stop(None)
