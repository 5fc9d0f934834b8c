"""The answers of one batch leave together.

A write wakes the client's side. One in the middle of each answer's encoding wakes it again and again; those of a batch,
written one after the other, find it awake.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType

log = logging.getLogger("headway.batching")
MOST = 64  # the first of a large batch do not wait for the encoding of the last


class Outbox:
    """While it is open, as a context, it keeps what is to be sent; leaving it sends all of that. One within
    another, of a request that an answer began, only sends sooner."""

    def __init__(self) -> None:
        self._open = False
        self._kept: list[tuple[Callable[[bytes], None], bytes]] = []

    def __enter__(self) -> None:
        self._open = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._send()

    def put(self, send: Callable[[bytes], None], data: bytes) -> None:
        """Calls `send` with the data, now or when the batch has ended."""
        if not self._open:
            send(data)
            return
        self._kept.append((send, data))
        if len(self._kept) == MOST:
            self._send()

    def _send(self) -> None:
        kept, self._kept = self._kept, []
        for send, data in kept:
            try:
                send(data)
            except Exception as error:
                log.error("an answer could not be sent", exc_info=error)  # and its neighbours still get theirs


#: There is one loop per process that answers requests.
OUTBOX = Outbox()
