"""What the headers of a request say of it and of its body. Shared by both lanes."""

from __future__ import annotations

import itertools
import os
import secrets
from collections.abc import Mapping
from functools import lru_cache

from serving.errors import BadRequest, BodyTooLarge, UnsupportedMediaType
from serving.transport.inflating import Inflating

JSON, OCTETS = (b"content-type", b"application/json"), (b"content-type", b"application/octet-stream")
PLAIN = (JSON,)
LONGEST_ID = 128
_MEDIA = (b"application/json", b"application/octet-stream")
_process, _count = "", itertools.count()


class Head:
    """The headers of one request, by name in small letters; `limit` is of its body, in bytes."""

    __slots__ = ("headers", "limit", "request_id")
    limited_by = "server.max_body_bytes"

    def __init__(self, headers: Mapping[bytes, bytes], limit: int) -> None:
        self.headers, self.limit = headers, limit
        given = headers.get(b"x-request-id")
        self.request_id = new_identity() if given is None else _identity(given)

    def check_content(self) -> None:
        """Raises UnsupportedMediaType unless the body is JSON or binary tensors, gzipped or as it is."""
        given = self.headers.get(b"content-type")
        if given is not None and given != _MEDIA[0]:
            media = given.split(b";", 1)[0].strip().lower()
            if media and media not in _MEDIA:
                raise UnsupportedMediaType("The content type must be application/json.")
        coding = self.headers.get(b"content-encoding")
        if coding is not None and coding.lower() not in (b"gzip", b"identity"):
            raise UnsupportedMediaType("The content encoding must be gzip, or none.")

    def check_length(self) -> None:
        """Raises BodyTooLarge if the length that was announced is over the limit."""
        length = self.headers.get(b"content-length")
        if length is not None and length.isdigit() and int(length[:19]) > self.limit:
            raise self.too_large()

    def too_large(self) -> BodyTooLarge:
        """The error of a body over the limit."""
        return BodyTooLarge(f"The body is longer than {self.limited_by} ({self.limit}).")

    def inflating(self) -> Inflating | None:
        """What unpacks the body, if it is gzipped."""
        coding = self.headers.get(b"content-encoding")
        if coding is None or coding.lower() != b"gzip":
            return None
        return Inflating(self.limit, self.too_large)

    def timeout(self) -> float | None:
        """The client's own deadline in seconds, from `x-request-timeout-ms`."""
        text = self.headers.get(b"x-request-timeout-ms")
        if text is None:
            return None
        if not text.isdigit() or int(text[:12]) == 0:
            raise BadRequest("The header x-request-timeout-ms must be a positive number of milliseconds.")
        return int(text[:12]) / 1000

    @property
    def is_cloud_event(self) -> bool:
        """Binary mode has `ce-specversion`; structured mode has its own media type."""
        headers = self.headers
        media = headers.get(b"content-type", b"")
        return b"ce-specversion" in headers or media.startswith(b"application/cloudevents+json")


def plain(text: bytes) -> bytes:
    """A header's name or value without what would end it: line breaks and NUL."""
    return text.translate(None, b"\r\n\0")


@lru_cache(maxsize=1024)
def plain_word(text: str) -> bytes:
    """A word that many answers carry, such as a version's id, as a header's value; those are checked where they come from,
    and here again."""
    return plain(text.encode())


def _identity(given: bytes) -> str:
    """The client's own id, if that can stand in a header and in a log; else one of ours."""
    text = given.decode("latin-1")
    usable = text and len(text) <= LONGEST_ID and text.isprintable()
    return text if usable else new_identity()


def new_identity() -> str:
    """An id for a request that brings none: 32 hexadecimal digits, unlike any other's."""
    return f"{_process}{next(_count):016x}"


def _begin() -> None:
    global _process, _count
    _process, _count = secrets.token_hex(8), itertools.count(secrets.randbits(32))


_begin()
os.register_at_fork(after_in_child=_begin)  # workers are forked from one process that has imported this
