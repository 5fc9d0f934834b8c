"""Sizes, framing, and bytes that are no HTTP at all, on a socket."""

import json
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest

from tests.bad_input.asking import GOOD, MODEL, PREDICT, SECRET, Answer, ask, check_alive, check_error
from tests.servers import Server

pytestmark = pytest.mark.e2e


def raw(server: Server, *pieces: bytes) -> bytes:
    """What the server says to bytes on a socket, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        heard = b""
        while chunk := connection.recv(65536):
            heard += chunk
    return heard


def request(body: bytes = b"", *headers: str, path: str = PREDICT, close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", *headers, *(["connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sized(document: Any, close: bool = True) -> bytes:
    body = json.dumps(document).encode()
    return request(body, f"content-length: {len(body)}", close=close)


def answers(heard: bytes) -> list[Answer]:
    """The answers in a stream, framed by their content lengths."""
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append(Answer(int(first.split()[1]), headers, rest[:length]))
        heard = rest[length:]
    return found


def test_a_body_over_the_limit_is_a_413_that_the_client_hears(server: Server) -> None:
    """20 MB of digits; a client that sends all of it before it listens is answered as well."""
    check_error(ask(server, "POST", PREDICT, b"1" * 20_000_000), 413, "server.max_body_bytes")
    url = urllib.request.Request(server.base + PREDICT, b"1" * 20_000_000, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:  # it asks to close the connection
        urllib.request.urlopen(url, timeout=30)
    check_error(Answer(error.value.code, dict(error.value.headers), error.value.read()), 413, "max_body_bytes")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/nobody:predict", f"/v1/models/{MODEL}"])
def test_a_large_body_for_nobody_does_not_cut_the_answer(server: Server, path: str) -> None:
    """Who is refused before the body was read still hears why."""
    url = urllib.request.Request(server.base + path, b"1" * 8_000_000, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url, timeout=30)
    assert error.value.code in (404, 405)


def test_a_chunked_body_is_bounded_as_well(server: Server) -> None:
    """It names no length beforehand; what fits is answered, what does not is a 413, and the connection goes on."""
    body = json.dumps(GOOD).encode()
    chunked = "transfer-encoding: chunked"
    good = request(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), chunked)
    chunk = b"100000\r\n" + b"1" * 0x100000 + b"\r\n"
    heard = answers(raw(server, request(b"", chunked, close=False), *[chunk] * 20, b"0\r\n\r\n", good))
    check_error(heard[0], 413, "max_body_bytes")
    assert heard[1].status == 200


def test_expect_continue_is_answered_before_the_body(server: Server) -> None:
    """100 for a body that will be read, 413 at once for one that will not."""
    body = json.dumps(GOOD).encode()
    heard = answers(raw(server, request(b"", "expect: 100-continue", f"content-length: {len(body)}"), body))
    assert [a.status for a in heard] == [100, 200]
    refused = raw(server, request(b"", "expect: 100-continue", "content-length: 20000000", close=False))
    (answer,) = answers(refused)
    check_error(answer, 413, "max_body_bytes")


def test_a_connection_goes_on_after_an_error_and_answers_in_order(server: Server) -> None:
    """Three requests in one piece, the first two of them wrong."""
    heard = raw(server, sized({"instances": SECRET}, False) + request(close=False) + sized(GOOD))
    wrong, empty, good = answers(heard)
    check_error(wrong, 400)
    check_error(empty, 400, "empty")
    assert json.loads(good.body)["predictions"] == [0]


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        request(b"", "content-length: -5"),
        request(b"", "content-length: five"),
        request(b"", "content-length: 5", "transfer-encoding: chunked"),
        request(b"zz\r\n", "transfer-encoding: chunked"),
    ],
    ids=[
        "tls",
        "nonsense",
        "unknown verb",
        "long target",
        "negative length",
        "length in words",
        "two lengths",
        "chunk",
    ],
)
def test_what_is_no_http_is_a_400_in_the_same_shape(server: Server, bytes_: bytes) -> None:
    """Also where no request could be made out of it."""
    (answer,) = answers(raw(server, bytes_))
    check_error(answer, 400)


def test_a_client_that_leaves_in_the_middle_harms_nobody(server: Server) -> None:
    """Half a header, half a body, and a reset."""
    for piece in (b"POST /v1/mod", request(b'{"inst', "content-length: 100")):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(piece)
    check_alive(server)


def test_a_websocket_is_answered_as_plain_http(server: Server) -> None:
    """There is none here, and the question does not hang."""
    asked = (b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n"
             b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n")  # fmt: skip
    check_error(answers(raw(server, asked))[0], 404, "no such route")
