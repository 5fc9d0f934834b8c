"""What all clients together may make the server hold: bodies that come in, answers that are not taken, connections."""

import asyncio
import contextlib
import json
import os
import random
import socket
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.errors import Overloaded
from serving.transport.arrivals import Arrivals
from serving.transport.grpc import build_server
from serving.transport.protocol import SPARE
from serving.transport.room import FREE, Room
from tests.lanes import Listening, answers, chunked, listening, predictions, request, rows, sized, zipped
from tests.servers import free_port

GOOD = rows(1.0)
LARGE = 1_000_000
KINDS = ("whole", "half", "slow", "small")


def padded(size: int) -> bytes:
    return GOOD + b" " * (size - len(GOOD))


def wide(values: int) -> bytes:
    return json.dumps({"instances": [[float(i)] for i in range(values)]}).encode()


@pytest.fixture(params=["protocol", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Both lanes."""
    return str(request.param)


@pytest.mark.audit("34")
def test_room_is_taken_in_steps_and_given_back_whole() -> None:
    """What is small takes none; over the limit nothing is taken, and the error says when to come again."""
    room = Room(10 * FREE)
    held = 0
    for size in range(1, 5 * FREE, 1000):
        held = room.grow(held, size)
        assert (held == 0) == (size <= FREE)
        assert room.used == held >= (size if size > FREE else 0)
    with pytest.raises(Overloaded) as error:
        room.grow(0, 6 * FREE)
    assert error.value.retry_after == 1
    assert room.used == held
    with pytest.raises(ValueError, match="x"), room.holding(2 * FREE):
        raise ValueError("x")
    room.check(FREE)
    assert room.used == held


@pytest.mark.audit("34")
async def test_uploads_that_never_end_are_bounded_in_sum(lane: str) -> None:
    """Over the bound 503, with Retry-After, in the contract's shape; small requests are answered all the while, and
    when the uploads are gone so is what they held."""
    room = Room(20 * FREE)
    async with listening(lane, room=room, limit=LARGE) as server:
        lines = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(20)]
        half = padded(4 * FREE)
        for _, writer in lines:
            writer.write(request(half, f"content-length: {LARGE}"))
        await server.until(lambda: room.used > room.limit - 4 * FREE)
        refused = await asyncio.wait([asyncio.ensure_future(reader.read(4096)) for reader, _ in lines], timeout=1)
        heard = [answers(task.result())[0] for task in refused[0]]
        assert len(heard) >= 15
        assert {status for status, _, _ in heard} == {503}
        assert {headers["retry-after"] for _, headers, _ in heard} == {"1"}
        assert {tuple(json.loads(body)) for _, _, body in heard} == {("error",)}
        assert room.used <= room.limit
        assert predictions(await server.say(sized(GOOD, close=True))) == [[1.0]]
        for task in refused[1]:
            task.cancel()
        for _, writer in lines:
            writer.close()
        await server.until(lambda: room.used == 0)
        assert predictions(await server.say(sized(padded(LARGE), close=True))) == [[1.0]]


@pytest.mark.audit("34")
async def test_answers_that_nobody_takes_are_bounded_in_sum(lane: str) -> None:
    """Who asks for more large ones hears 503; small ones are answered."""
    room = Room(4_000_000)
    async with listening(lane, room=room, limit=10**7, max_rows=10**6, max_queue=10**8) as server:
        lines = []
        for _ in range(6):
            lines.append(await _slow(server))
            await asyncio.get_running_loop().sock_sendall(lines[-1], sized(wide(100_000)))
            await server.until(lambda: all(c.cycle and c.cycle.response_started for c in server.state.connections))
        assert 2 <= sum(c._untaken > 0 for c in server.state.connections) <= 6
        assert predictions(await server.say(sized(wide(100_000), close=True))) == [503]
        assert predictions(await server.say(sized(GOOD, close=True))) == [[1.0]]
        assert 0 < room.used <= room.limit
        for line in lines:
            line.close()
        await server.until(lambda: room.used == 0)


async def _slow(server: Listening) -> socket.socket:
    """A client that reads nothing, and for whom the kernel keeps as little as it can."""
    line, before = socket.socket(), set(server.state.connections)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    line.setblocking(False)
    await asyncio.get_running_loop().sock_connect(line, ("127.0.0.1", server.port))
    await server.until(lambda: server.state.connections - before)
    (new,) = server.state.connections - before
    new.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return line


async def _client(server: Listening, choose: random.Random, kind: str) -> None:
    """One client of a kind, which leaves as it likes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**16)
    frame = choose.choice([sized, zipped, lambda body: chunked(body, 999)])
    body = wide(choose.randint(1, 20_000)) if kind != "small" else GOOD
    whole = frame(body) * choose.choice([1, 1, 3])
    writer.write(whole if kind != "half" else whole[: choose.randrange(len(whole))])
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(choose.choice([0.001, 0.01, 0.1, 0.5])):
            if kind == "slow":
                await asyncio.sleep(0.3)
            while await reader.read(65536):
                pass
    if choose.random() < 0.5:
        line = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()


@pytest.mark.audit("34")
@pytest.mark.parametrize("inline", [True, False])
async def test_after_any_mix_nothing_is_held(lane: str, inline: bool) -> None:
    """Whole and half uploads of all framings, pipelined, taken at once, slowly or not at all, reset or closed."""
    choose, room = random.Random(4711), Room(3_000_000)
    many = {"inline": inline, "limit": 10**6, "max_rows": 10**5, "max_queue": 10**7}
    async with listening(lane, room=room, **many) as server:
        for _ in range(2):
            await asyncio.gather(*(_client(server, choose, choose.choice(KINDS)) for _ in range(40)))
        await server.until(lambda: not server.state.connections and not server.state.tasks)
        await server.until(lambda: room.used == 0)
        assert predictions(await server.say(sized(GOOD, close=True))) == [[1.0]]


@pytest.mark.audit("34")
async def test_connections_are_bounded(lane: str) -> None:
    """Over the bound 503 and the end of the connection, but an answer to probes; far over it nothing at all."""
    async with listening(lane, connections=2) as server:
        kept = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await server.until(lambda: len(server.state.connections) == 2)
        for asked in (sized(GOOD), sized(GOOD, "ce-specversion: 1.0", "ce-id: 1", "ce-source: x", "ce-type: x")):
            ((status, headers, body),) = answers(await server.say(asked))
            assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
            assert list(json.loads(body)) == ["error"]
        for path in ("/health", "/health/live", "/v2/health/live", "/", "/ready"):
            ((status, headers, _),) = answers(await server.say(request(method="GET", path=path)))
            assert status in (200, 503 if path == "/ready" else 200)
            assert headers["connection"] == "close"
            assert "retry-after" not in headers
        more = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(SPARE)]
        await server.until(lambda: len(server.state.connections) == SPARE + 2)
        assert await server.say(request(method="GET", path="/health")) == b""
        reader, writer = kept[0]
        writer.write(sized(GOOD, close=True))
        assert predictions(await reader.read()) == [[1.0]]
        for _, writer in [*kept, *more]:
            writer.close()
        await server.until(lambda: not server.state.connections)
        assert predictions(await server.say(sized(GOOD, close=True))) == [[1.0]]


@pytest.mark.audit("33")
async def test_a_body_in_tiny_chunks_is_held_once(lane: str) -> None:
    """Not as millions of pieces that are each fifty times as large."""
    async with listening(lane, limit=LARGE * 3) as server:
        stream = chunked(padded(LARGE * 3), 2, close=True)
        before, most = _resident(), 0
        asked = asyncio.create_task(server.say(*(stream[i : i + 2**18] for i in range(0, len(stream), 2**18))))
        while not asked.done():
            await asyncio.sleep(0.005)
            most = max(most, _resident())
        assert predictions(await asked) == [[1.0]]
        assert most - before < 40_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.audit("34")
async def test_large_messages_over_grpc_take_room_as_well() -> None:
    """Over the bound RESOURCE_EXHAUSTED, with when to come again; what was answered holds nothing."""
    room = Room(8 * FREE)
    async with listening("protocol", max_rows=10**6, max_queue=10**7) as served:
        address = f"127.0.0.1:{free_port()}"
        server = build_server(served.plane, address, 2**24, 100, room, Arrivals(), idle_seconds=60)
        await server.start()
        async with grpc.aio.insecure_channel(address) as opened:
            stub = GRPCInferenceServiceStub(opened)
            assert len((await stub.ModelInfer(_message(50_000))).outputs[0].contents.fp64_contents) == 50_000
            assert room.used == 0
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await stub.ModelInfer(_message(200_000))
            assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert dict(error.value.trailing_metadata())["retry-after"] == "1"
        assert room.used == 0
        await server.stop(None)


def _message(values: int) -> Any:
    contents = {"fp64_contents": [7.0] * values}
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=[values], contents=contents)
    return pb.ModelInferRequest(model_name="echo", inputs=[tensor])


@pytest.mark.audit("22")
async def test_what_http_turns_away_is_counted_by_reason(lane: str) -> None:
    """Each reason is there from the start; a model that is not there is none of them."""
    async with listening(lane) as server:
        names = ("route", "method", "media", "size", "auth", "scope", "limit")
        counts = lambda: [  # noqa: E731
            server.metrics.registry.get_sample_value("headway_http_refusals_total", {"reason": name}) for name in names
        ]
        assert counts() == [0] * 7
        for stream in (
            request(method="GET", path="/nowhere", close=True),
            request(method="PUT", path="/health", close=True),
            request(method="GET", close=True),
            sized(GOOD, "content-type: text/plain", close=True),
            sized(GOOD, "content-encoding: br", close=True),
            sized(padded(100_001), close=True),
            chunked(padded(100_001), 9999, close=True),
            zipped(padded(100_001), close=True),
            sized(GOOD, path="/v1/models/nobody:predict", close=True),
            sized(b"{", close=True),
            sized(GOOD, close=True),
        ):
            await server.say(stream)
        assert counts() == [1, 2, 2, 3, 0, 0, 0]
