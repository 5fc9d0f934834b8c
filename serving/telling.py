"""Says in the log why a server is not ready: the kubelet drops what a readiness probe answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import islice

from serving.manager import ModelManager

log = logging.getLogger("headway.server")
LOOK_SECONDS = 1.0
MOST_NAMES, LONGEST_REASON = 10, 500


class Telling:
    """One line whenever the reasons are others than before, and one when there are none any more."""

    def __init__(self, holders: Callable[[], Iterable[ModelManager]]) -> None:
        self._holders, self._told = holders, dict[str, str]()

    async def run(self) -> None:
        """Looks until it is cancelled; what is settled within the first moment is not worth a line."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Tells what has changed since the last look."""
        waiting = (m for m in self._holders() if m.required and m.current is None)
        reasons = {m.name: m.why()[:LONGEST_REASON] for m in islice(waiting, MOST_NAMES)}
        if reasons and reasons != self._told:
            log.warning("not ready", extra={"reasons": reasons})
        elif self._told and not reasons:
            log.info("ready")
        self._told = reasons
