"""What the log says of requests that a model failed: a line for each, and a trace now and then."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from serving.errors import RowsRefused
from serving.refusals import kind_of

log = logging.getLogger("headway.requests")
#: Of one version and one kind of error there is one trace in so many seconds.
TRACE_SECONDS = 60.0
#: Kinds that are remembered; a model can make up any number of them.
MOST_KINDS = 1000


class Failures:
    """Logs failed requests. The first of a version and kind has its trace, and those of the minute after it have none: the
    next trace says how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said: dict[tuple[str, str, str], tuple[float, int]] = {}

    def tell(self, model: str, version: str, reason: str, request_id: str, error: BaseException) -> None:
        """One request of a version that failed through no fault of its caller, or whose rows the model refused, which is
        told in traces alone."""
        kind = kind_of(error)
        left_out = self._left_out((model, version, kind))
        facts: dict[str, Any] = {
            "model": model, "version": version, "reason": reason, "request_id": request_id, "kind": kind
        }  # fmt: skip
        if left_out:
            facts["traces_left_out"] = left_out
        trace = None if left_out is None else error
        if not isinstance(error, RowsRefused):
            log.error("request failed", extra=facts, exc_info=trace)
        elif trace is not None:
            log.warning("the model refused the rows of a request", extra=facts, exc_info=trace)

    def _left_out(self, key: tuple[str, str, str]) -> int | None:
        """How many had no trace since the last one that had, if this one is to have one; else None."""
        now = self._clock()
        until, left_out = self._said.get(key, (now, 0))
        if now < until:
            self._said[key] = (until, left_out + 1)
            return None
        if len(self._said) >= MOST_KINDS:
            self._said.clear()
        self._said[key] = (now + TRACE_SECONDS, 0)
        return left_out
