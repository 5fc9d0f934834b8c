"""A request that asks for another protocol, which no one gets here, is a request like any other, with its body.

llhttp stops behind the head of such a request, and of CONNECT, and takes what follows for a new one. So a second parser
goes on in its place, from a head with the same framing and without the wish.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httptools

_FRAMING = (b"content-length", b"transfer-encoding")


class Dropped(list[tuple[bytes, bytes]]):
    """The headers of a request whose head has ended: trailers are no part of it."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Nothing is kept."""


DROPPED = Dropped()


def framing_of(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head that says how long the same body is, and nothing else."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] in _FRAMING]
    return b"".join([b"POST / HTTP/1.1\r\n", *lines, b"\r\n"])


def resumed(protocol: Any, framing: bytes) -> httptools.HttpRequestParser:
    """A parser behind that head; of it the protocol hears nothing, of a body that is empty its end."""
    parser = httptools.HttpRequestParser(_Hearing(protocol))
    parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
    parser.feed_data(framing)
    return parser


class _Hearing:
    """Hands on what a parser says, less the first head."""

    def __init__(self, protocol: Any) -> None:
        self._protocol, self._first = protocol, True
        self.on_body, self.on_message_complete = protocol.on_body, protocol.on_message_complete

    def on_message_begin(self) -> None:
        if not self._first:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if not self._first:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._first:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._first:
            self._first = False
        else:
            self._protocol.on_headers_complete()
