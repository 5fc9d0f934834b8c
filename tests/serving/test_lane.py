"""The lane, on real sockets: HTTP as the standard has it, whoever is slow, leaves or lies; and the same as over ASGI."""

import asyncio
import json
import random
import socket
import struct
import zlib
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transport.protocol import LARGEST_HEAD
from tests.lanes import (
    INFER,
    LIMIT,
    PREDICT,
    Listening,
    answers,
    chunked,
    listening,
    predictions,
    request,
    rows,
    sized,
    zipped,
)

GOOD = rows(1.0)
BOMB = zlib.compress(b" " * (LIMIT + 1), wbits=31)


def tensors(values: list[float], **more: Any) -> bytes:
    """A V2 body with its tensor in binary, and what header it needs."""
    raw = np.array(values, dtype="<f8").tobytes()
    tensor = {"name": "x", "datatype": "FP64", "shape": [len(values)], "parameters": {"binary_data_size": len(raw)}}
    document = json.dumps({"inputs": [tensor], **more}).encode()
    return sized(document + raw, f"inference-header-content-length: {len(document)}", path=INFER, close=True)


BOTH_LENGTHS = ("content-length: 5", "transfer-encoding: chunked")
CONFORMANCE: list[tuple[str, bytes, list[int]]] = [
    ("sized", sized(GOOD, close=True), [200]),
    ("chunked", chunked(GOOD, 7, close=True), [200]),
    ("chunk extensions", request(b"1d;a=b\r\n" + rows(1.0, 2.0) + b"\r\n0\r\n\r\n", "transfer-encoding: chunked",
                                 close=True), [200]),
    ("trailers", request(b"%x\r\n%b\r\n0\r\nx-more: 1\r\n\r\n" % (len(GOOD), GOOD), "transfer-encoding: chunked",
                         close=True), [200]),
    ("pipelined", sized(GOOD) + sized(rows(2.0)) + sized(rows(3.0), close=True), [200, 200, 200]),
    ("pipelined, mixed routes", sized(GOOD) + request(path="/v1/models", method="GET") + sized(GOOD, close=True),
     [200, 200, 200]),
    ("pipelined, the first wrong", sized(b"{") + request(method="GET", path="/nowhere") + sized(GOOD, close=True),
     [400, 404, 200]),
    ("HTTP/1.0", sized(GOOD).replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
    ("no body", request(close=True), [400]),
    ("length zero", sized(b"", close=True), [400]),
    ("over the limit, sized", sized(b" " * (LIMIT + 1), close=True), [413]),
    ("over the limit, chunked, and a good one", chunked(b" " * (LIMIT + 1), 9999) + sized(GOOD, close=True), [413, 200]),
    ("at the limit", sized(GOOD + b" " * (LIMIT - len(GOOD)), close=True), [200]),
    ("gzip", zipped(GOOD, close=True), [200]),
    ("gzip in capitals", sized(zlib.compress(GOOD, wbits=31), "content-encoding: GZIP", close=True), [200]),
    ("gzip bomb", sized(BOMB, "content-encoding: gzip", close=True), [413]),
    ("no gzip", sized(GOOD, "content-encoding: gzip", close=True), [400]),
    ("half a gzip", sized(BOMB[:20], "content-encoding: gzip", close=True), [400]),
    ("two gzips", sized(zlib.compress(GOOD, wbits=31) * 2, "content-encoding: gzip", close=True), [400]),
    ("another coding", sized(GOOD, "content-encoding: br", close=True), [415]),
    ("identity", sized(GOOD, "content-encoding: identity", close=True), [200]),
    ("text", sized(GOOD, "content-type: text/plain", close=True), [415]),
    ("text, and a good one", sized(GOOD, "content-type: text/plain") + sized(GOOD, close=True), [415, 200]),
    ("expect, the body at once", sized(GOOD, "expect: 100-continue", close=True), [200]),
    ("expect, too large", request(b"", "expect: 100-continue", f"content-length: {LIMIT + 1}"), [413]),
    ("query", sized(GOOD, path=PREDICT + "?a=b", close=True), [200]),
    ("escaped", sized(GOOD, path="/v1/models/%65cho:predict", close=True), [200]),
    ("absolute target", sized(GOOD, path="http://somewhere" + PREDICT, close=True), [200]),
    ("version", sized(GOOD, path="/v1/models/echo/versions/1:predict", close=True), [200]),
    ("no such version", sized(GOOD, path="/v1/models/echo/versions/2:predict", close=True), [404]),
    ("no such label", sized(GOOD, path="/v1/models/echo/labels/a:predict", close=True), [404]),
    ("no such model", sized(GOOD, path="/v1/models/nobody:predict", close=True), [404]),
    ("another verb", sized(GOOD, method="PUT", close=True), [405]),
    ("GET", request(method="GET", close=True), [405]),
    ("both lengths", request(b"0\r\n\r\n", *BOTH_LENGTHS), [400]),
    ("two lengths", request(GOOD, "content-length: 5", "content-length: 6"), [400]),
    ("negative length", request(b"", "content-length: -1"), [400]),
    ("a chunk in words", request(b"many\r\n", "transfer-encoding: chunked"), [400]),
    ("bare line feeds in the head", b"POST " + PREDICT.encode() + b" HTTP/1.1\nhost x\n\n", [400]),
    ("no HTTP", b"\x16\x03\x01\x02\x00\r\n\r\n", [400]),
    ("V2", sized(json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1.0]}]}).encode(),
                 path=INFER, close=True), [200]),
    ("V2 binary in", tensors([1.0, 2.0]), [200]),
    ("V2 binary in and out", tensors([1.0, 2.0], parameters={"binary_data_output": True}), [200]),
    ("V2 binary, too short", tensors([1.0, 2.0]).replace(b"[2]", b"[3]"), [400]),
    ("V2 binary, a header too large", tensors([1.0]).replace(b"header-content-length: ", b"header-content-length: 9"), [400]),
    ("a client's timeout that is none", sized(GOOD, "x-request-timeout-ms: soon", close=True), [400]),
    ("an id", sized(GOOD, "x-request-id: caf\xe9", close=True), [200]),
    ("poison", sized(b'{"instances": [[1e400]]}', close=True), [400]),
]  # fmt: skip


@pytest.mark.parametrize(("stream", "statuses"), [pytest.param(*case[1:], id=case[0]) for case in CONFORMANCE])
async def test_both_lanes_answer_alike_byte_for_byte(stream: bytes, statuses: list[int]) -> None:
    """The status of every request of a stream, and the same bodies and headers whichever way it went."""
    heard = []
    for lane in ("protocol", "asgi"):
        async with listening(lane) as server:
            heard.append([_comparable(a) for a in answers(await server.say(stream))])
    assert [a[0] for a in heard[0] if a[0] != 100] == statuses
    assert heard[0] == heard[1]


def _comparable(answer: tuple[int, dict[str, str], bytes]) -> Any:
    """An answer without what differs from request to request."""
    status, headers, body = answer
    made = len(headers.get("x-request-id", "")) == 32
    moment = {"server-timing", "date", *(["x-request-id"] if made else [])}
    return status, {k: v for k, v in headers.items() if k not in moment}, body


async def test_a_binary_answer_says_where_its_json_ends() -> None:
    """Octets behind the JSON, as the Open Inference Protocol has it, and exactly the numbers."""
    async with listening("protocol") as server:
        stream = tensors([1.5, -2.0], parameters={"binary_data_output": True}, id="7")
        ((status, headers, body),) = answers(await server.say(stream))
    length = int(headers["inference-header-content-length"])
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    assert json.loads(body[:length])["id"] == "7"
    assert json.loads(body[:length])["outputs"][0]["parameters"] == {"binary_data_size": 16}
    assert struct.unpack("<2d", body[length:]) == (1.5, -2.0)


STREAM = [
    sized(rows(1.0)),
    chunked(rows(2.0, 3.0), 5),
    zipped(rows(4.0)),
    sized(b"{"),
    chunked(b" " * LIMIT * 2, 3000),
    request(path="/v1/models", method="GET"),
    sized(rows(5.0), "expect: 100-continue"),
    sized(rows(6.0), close=True),
]
SAID = [[1.0], [2.0, 3.0], [4.0], 400, 413, None, [5.0], [6.0]]


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 60))
def test_a_stream_may_be_cut_anywhere(choose: random.Random, cuts: int) -> None:
    """Eight pipelined requests of every framing, in pieces of any size: the same answers, in order."""
    whole = b"".join(STREAM)
    places = sorted({0, len(whole), *(choose.randrange(len(whole)) for _ in range(cuts))})
    pieces = [whole[a:b] for a, b in pairwise(places)]

    async def ask() -> bytes:
        async with listening("protocol") as server:
            return await server.say(*pieces)

    heard = [a for a in answers(asyncio.run(ask())) if a[0] != 100]
    assert len(heard) == len(SAID)
    for (status, _, body), said in zip(heard, SAID, strict=True):
        if isinstance(said, list):
            assert json.loads(body)["predictions"] == said
        else:
            assert status == (said or 200)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([*STREAM, b"\r\n", b"POST ", b"0\r\n\r\n"])), max_size=6)
)
def test_no_bytes_break_the_server(pieces: list[bytes]) -> None:
    """Rubbish between good requests is answered by errors, or by nothing; the next connection is served."""

    async def ask() -> bytes:
        async with listening("protocol", read_seconds=0.05, keep_alive=1) as server:
            heard = await server.say(*pieces)
            assert all(status in (100, 200, 400, 404, 405, 408, 413, 415) for status, _, _ in answers(heard))
            return await server.say(sized(GOOD, close=True))

    assert predictions(asyncio.run(ask())) == [[1.0]]


async def test_a_head_without_end_is_refused(each_lane: str) -> None:
    """It may not grow until memory ends."""
    async with listening(each_lane) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request()[:-2] + b"x: ")
        await server.until(lambda: any(c._in_head for c in server.state.connections))
        writer.write(b"a" * (LARGEST_HEAD + 1))
        assert predictions(await reader.read()) == [400]
        writer.close()


@pytest.fixture(params=["protocol", "asgi"])
def each_lane(request: pytest.FixtureRequest) -> str:
    """Both lanes."""
    return str(request.param)


@pytest.mark.parametrize("stream", [sized(GOOD)[:20], request(GOOD[:5], "content-length: 100"),
                                    request(b"5\r\nab", "transfer-encoding: chunked")])  # fmt: skip
async def test_a_client_that_does_not_finish_its_request_is_told_408(each_lane: str, stream: bytes) -> None:
    """Whether it stops in the head, the body or a chunk; the connection is closed."""
    async with listening(each_lane, read_seconds=0.1) as server:
        ((status, headers, body),) = answers(await server.say(stream))
    assert (status, headers["connection"], list(json.loads(body))) == (408, "close", ["error"])


async def test_a_client_that_says_nothing_is_hung_up_on(each_lane: str) -> None:
    """Before its first request and after one, when keep-alive is over."""
    async with listening(each_lane, keep_alive=1) as server:
        assert await server.say() == b""
        assert predictions(await server.say(sized(GOOD))) == [[1.0]]


async def test_expect_continue_is_asked_for_once(each_lane: str) -> None:
    """The body is sent after the 100, and the answer follows."""
    async with listening(each_lane) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request(b"", "expect: 100-continue", f"content-length: {len(GOOD)}", close=True))
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(GOOD)
        assert predictions(await reader.read()) == [[1.0]]
        writer.close()


@pytest.mark.parametrize("how", ["close", "reset", "half-close"])
async def test_what_a_client_that_left_had_asked_for_is_not_computed(each_lane: str, how: str) -> None:
    """Its place in the queue is free, its leases are back, it is counted, and its neighbours are answered."""
    async with listening(each_lane, inline=False) as server:
        server.runtime.gate.clear()
        running = asyncio.create_task(server.say(sized(GOOD, close=True)))
        await server.until(lambda: server.manager.current is not None and server.manager.current.leases == 1)
        await server.until(lambda: _depth(server) == 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sized(rows(4711.0)))
        await server.until(lambda: _depth(server) == 1)
        neighbour = asyncio.create_task(server.say(sized(rows(2.0), close=True)))
        await server.until(lambda: _depth(server) == 2)
        _leave(writer, how)
        await server.until(lambda: _depth(server) == 1)
        server.runtime.gate.set()
        assert [predictions(await task) for task in (running, neighbour)] == [[[1.0]], [[2.0]]]
        assert server.failed("cancelled") == 1
        assert server.runtime.seen == [1.0, 2.0]
        assert server.manager.current is not None
        assert server.manager.current.leases == 0
        del reader


def _depth(server: Listening) -> int:
    assert server.manager.current is not None
    return server.manager.current.ready[1].depth


def _leave(writer: asyncio.StreamWriter, how: str) -> None:
    connection = writer.get_extra_info("socket")
    if how == "reset":
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":
        writer.write_eof()
    else:
        writer.close()


async def test_who_does_not_take_its_answers_is_not_served_further() -> None:
    """Pipelined questions wait until the answers are taken, then all are answered in order; or the line is cut."""
    wide = json.dumps({"instances": [[float(i)] for i in range(10_000)]}).encode()
    async with listening("protocol", max_rows=10_000, max_queue=100_000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=2**20)
        sending = asyncio.create_task(_send(writer, [sized(wide)] * 200 + [sized(GOOD, close=True)]))
        await server.until(lambda: any(c.flow.write_paused for c in server.state.connections))
        served = len(server.runtime.seen)
        assert served < 200 * 10_000
        heard = answers(await reader.read())
        await sending
        assert [a[0] for a in heard] == [200] * 201
        assert json.loads(heard[-1][2])["predictions"] == [1.0]
        writer.close()
    async with listening("protocol", read_seconds=0.2, max_rows=10_000, max_queue=100_000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        sending = asyncio.create_task(_send(writer, [sized(wide)] * 200))
        await server.until(lambda: server.state.connections and server.runtime.seen)
        await server.until(lambda: not server.state.connections)
        sending.cancel()
        writer.close()


async def _send(writer: asyncio.StreamWriter, pieces: list[bytes]) -> None:
    for piece in pieces:
        writer.write(piece)
        await writer.drain()


async def test_while_draining_each_connection_ends_with_its_answer(each_lane: str) -> None:
    """`Connection: close` on what is answered, errors included."""
    async with listening(each_lane) as server:
        server.plane.draining = True
        for stream, status in ((sized(GOOD), 200), (sized(b"{"), 400)):
            ((heard, headers, _),) = answers(await server.say(stream))
            assert (heard, headers["connection"]) == (status, "close")


async def test_at_shutdown_what_is_in_flight_is_answered_and_idle_connections_close(each_lane: str) -> None:
    """Uvicorn tells each connection to shut down: the one that waits is answered, with `Connection: close`."""
    async with listening(each_lane, inline=False) as server:
        server.runtime.gate.clear()
        idle = asyncio.create_task(server.say())
        busy = asyncio.create_task(server.say(sized(GOOD)))
        await server.until(lambda: server.manager.current is not None and server.manager.current.leases == 1)
        await server.until(lambda: len(server.state.connections) == 2)
        for connection in list(server.state.connections):
            connection.shutdown()
        assert await idle == b""
        server.runtime.gate.set()
        ((status, headers, _),) = answers(await busy)
        assert (status, headers["connection"]) == (200, "close")


async def _mixed(server: Listening, requests: int, clients: int, seed: int) -> tuple[int, int]:
    """Sends requests with unique rows from many clients at once, some of which leave; how many were answered and left."""
    unique, choose = iter(range(10**9)), random.Random(seed)

    async def client(count: int) -> tuple[int, int]:
        answered = left = 0
        while answered + left < count:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            asked = [[float(next(unique)) for _ in range(choose.randint(1, 5))] for _ in range(choose.randint(1, 4))]
            frame = choose.choice([sized, zipped, lambda body: chunked(body, 11)])
            writer.write(b"".join(frame(rows(*values)) for values in asked))
            if choose.random() < 0.25:
                await asyncio.sleep(choose.choice([0, 0.001]))
                _leave(writer, choose.choice(["close", "reset", "half-close"]))
                left += len(asked)
                continue
            for values in asked:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                assert json.loads(await reader.readexactly(length))["predictions"] == values
            answered += len(asked)
            writer.close()
        return answered, left

    totals = await asyncio.gather(*(client(requests // clients) for _ in range(clients)))
    return sum(t[0] for t in totals), sum(t[1] for t in totals)


async def _check_mixed(inline: bool, requests: int) -> None:
    async with listening("protocol", inline=inline, max_queue=10**6) as server:
        answered, left = await _mixed(server, requests, 32, seed=requests)
        assert answered > requests // 2
        assert left > requests // 10
        current = server.manager.current
        assert current is not None
        await server.until(lambda: current.leases == 0)
        assert _depth(server) == 0


@pytest.mark.parametrize("inline", [True, False])
async def test_nobody_is_answered_with_anothers_rows(inline: bool) -> None:
    """Thousands of requests of any framing with unique rows, pipelined, a quarter of them abandoned; no lease stays."""
    await _check_mixed(inline, 3_000)


@pytest.mark.slow
@pytest.mark.parametrize("inline", [True, False])
async def test_nobody_is_answered_with_anothers_rows_at_length(inline: bool) -> None:
    """The same with a hundred thousand."""
    await _check_mixed(inline, 100_000)
