"""A request that asks for another protocol is answered as what it is, body and all; trailers are no headers."""

import asyncio
import contextlib
import json
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.transport.protocol import LARGEST_HEAD
from tests.lanes import answers, chunked, listening, predictions, request, rows, sized, zipped

GOOD = rows(1.0)
H2C = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAARAAAAAAAIAAAAA")
WEBSOCKET = ("connection: keep-alive, Upgrade", "upgrade: websocket", "sec-websocket-version: 13")
WISHES = [H2C, WEBSOCKET, ("Upgrade: TLS/1.0", "Connection: UPGRADE"), ("upgrade:", "connection: upgrade")]
SMUGGLED = b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n"
ALIVE = {"status": "alive"}


@pytest.mark.audit("31")
@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("frame", [sized, zipped, lambda body, *more: chunked(body, 3, *more)])
async def test_a_wish_that_is_not_granted_leaves_the_request_as_it_is(lane: str, wish: tuple[str, ...], frame) -> None:  # type: ignore[no-untyped-def]
    """curl's and Java's HTTP/2 clients ask so: they are answered, and their connection goes on."""
    async with listening(lane) as server:
        stream = frame(GOOD, *wish) + frame(rows(2.0), *wish) + sized(rows(3.0), close=True)
        assert predictions(await server.say(stream)) == [[1.0], [2.0], [3.0]]


@pytest.mark.audit("31")
@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/health", 200), ("POST", "/health", 405), ("PUT", "/nowhere", 404), ("GET", "/v2/models/echo/infer", 405),
     ("POST", "/v2/models/echo/infer", 400), ("POST", "/v1/models/nobody:predict", 404), ("DELETE", "/metrics", 405)],
)  # fmt: skip
async def test_a_body_is_never_a_request(lane: str, wish: tuple[str, ...], method: str, path: str, status: int) -> None:
    """On any route, of any method: what is in a body is not asked, and what comes behind it is."""
    async with listening(lane) as server:
        hidden = SMUGGLED * 3
        stream = sized(hidden, *wish, method=method, path=path) + sized(GOOD, close=True)
        assert [a[0] for a in answers(await server.say(stream))] == [status, 200]


@pytest.mark.audit("31")
async def test_a_request_without_a_body_may_wish_too(lane: str) -> None:
    """Many in one piece, as a websocket's client begins; the order of answers holds."""
    one = request(b"", *WEBSOCKET, method="GET", path="/health")
    async with listening(lane) as server:
        heard = answers(await server.say(one * 2000 + sized(GOOD, close=True)))
        assert [json.loads(body) for _, _, body in heard[:-1]] == [ALIVE] * 2000
        assert heard[-1][0] == 200


@pytest.mark.audit("31")
@pytest.mark.parametrize(
    ("stream", "statuses"),
    [
        (request(b"0\r\n\r\n", "content-length: 5", "transfer-encoding: chunked", *H2C), [400]),
        (request(SMUGGLED, "transfer-encoding: gzip", *H2C), [400]),
        (request(b"many\r\n" + SMUGGLED, "transfer-encoding: chunked", *H2C), [400]),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\n\r\n" + SMUGGLED, [400]),
        (b"CONNECT x:80 HTTP/1.1\r\nhost: x:80\r\ncontent-length: 5\r\n\r\n" + SMUGGLED, [400]),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + SMUGGLED, [400]),
        (sized(GOOD, *H2C).replace(b"HTTP/1.1", b"HTTP/1.0"), [200]),
        (sized(b" " * 200_000, *H2C) + sized(GOOD, close=True), [413, 200]),
        (sized(GOOD, "expect: 100-continue", *H2C, close=False).replace(b"connection: U", b"connection: close, U"),
         [100, 200]),
    ],
)  # fmt: skip
async def test_a_wish_does_not_loosen_the_framing(lane: str, stream: bytes, statuses: list[int]) -> None:
    """What is no HTTP without it is none with it, and the connection ends there."""
    async with listening(lane) as server:
        assert [a[0] for a in answers(await server.say(stream))] == statuses


STREAM = [
    sized(GOOD, *H2C),
    chunked(rows(2.0, 3.0), 5, *WEBSOCKET),
    sized(SMUGGLED, *H2C, method="GET", path="/health"),
    zipped(rows(4.0), *H2C),
    request(b"", *WEBSOCKET, method="GET", path="/health"),
    sized(rows(5.0), "expect: 100-continue", *H2C),
    request(b"%x\r\n%b\r\n0\r\nhost: y\r\n\r\n" % (len(GOOD), GOOD), "transfer-encoding: chunked", *H2C),
    sized(rows(6.0), close=True),
]
SAID = [[1.0], [2.0, 3.0], ALIVE, [4.0], ALIVE, [5.0], [1.0], [6.0]]


@pytest.mark.audit("31")
@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 200), st.sampled_from(["protocol", "asgi"]))
def test_wherever_the_stream_is_cut(choose: random.Random, cuts: int, lane: str) -> None:
    """Wishes pipelined with all framings, in pieces of any size: the same answers, in order."""
    whole = b"".join(STREAM)
    places = sorted({0, len(whole), *(choose.randrange(len(whole)) for _ in range(cuts))})

    async def ask() -> bytes:
        async with listening(lane) as server:
            return await server.say(*(whole[a:b] for a, b in pairwise(places)))

    heard = [json.loads(body) for status, _, body in answers(asyncio.run(ask())) if status == 200]
    assert [each.get("predictions", each) for each in heard] == SAID


@pytest.mark.audit("32")
async def test_trailers_are_no_headers(lane: str) -> None:
    """Neither of their own request nor of the next."""
    trailer = b"%x\r\n%b\r\n0\r\nx-request-id: evil\r\ncontent-encoding: br\r\n\r\n" % (len(GOOD), GOOD)
    async with listening(lane) as server:
        stream = request(trailer, "transfer-encoding: chunked") + sized(GOOD, close=True)
        heard = answers(await server.say(stream))
        assert [status for status, _, _ in heard] == [200, 200]
        assert all(headers["x-request-id"] != "evil" for _, headers, _ in heard)


@pytest.mark.audit("32")
@pytest.mark.parametrize("start", ["0\r\nx: ", "1;x="], ids=["trailers", "extension"])
@pytest.mark.parametrize("piece", [b"x: y\r\n" * 1000, b"x" * 6000], ids=["many", "long"])
async def test_what_stands_beside_the_body_is_bounded(lane: str, start: str, piece: bytes) -> None:
    """Trailers or a chunk's extensions: the connection ends before they fill the memory."""
    async with listening(lane) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(request(start.encode(), "transfer-encoding: chunked"))
        await server.until(lambda: server.state.connections)
        sent = 0
        with contextlib.suppress(ConnectionError):
            while server.state.connections and sent < 50 * LARGEST_HEAD:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)
                sent += len(piece)
        assert sent < 20 * LARGEST_HEAD
        writer.close()


@pytest.fixture(params=["protocol", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Both lanes."""
    return str(request.param)
