"""Bodies that come gzipped. What is short is unpacked at once, the rest in a thread: the loop waits for none of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from serving.errors import BadRequest, BodyTooLarge

#: Bytes that come out of a gzip in less than a tenth of a millisecond.
SHORT = 65_536
POOL = ThreadPoolExecutor(2, "headway-inflate")
_GZIP = 16 + zlib.MAX_WBITS


class Inflating:
    """The unpacking of one body to at most `limit` bytes. Raises BodyTooLarge if it is more, BadRequest if it is no gzip."""

    __slots__ = ("_limit", "_member", "_too_large", "_unpacked")

    def __init__(self, limit: int, too_large: Callable[[], BodyTooLarge]) -> None:
        self._limit, self._too_large = limit, too_large
        self._member = zlib.decompressobj(_GZIP)
        self._unpacked = b""

    def begin(self, body: bytes) -> bytes | None:
        """The whole of it, if it is short."""
        self._unpacked = self._more(body, min(SHORT, self._limit + 1))
        more = len(self._unpacked) == SHORT <= self._limit and not self._member.eof
        return None if more else self._whole()

    def finish(self) -> bytes:
        """The whole of it. Blocks, without the interpreter's lock: call it in a thread."""
        left = self._limit + 1 - len(self._unpacked)
        self._unpacked += self._more(self._member.unconsumed_tail, left)
        return self._whole()

    def _more(self, data: bytes, most: int) -> bytes:
        try:
            return self._member.decompress(data, most)
        except zlib.error:
            raise BadRequest("The body is not valid gzip.") from None

    def _whole(self) -> bytes:
        if len(self._unpacked) > self._limit:
            raise self._too_large()
        if not self._member.eof or self._member.unused_data:
            raise BadRequest("The body is not one whole gzip.")
        return self._unpacked
