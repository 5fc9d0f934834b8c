"""Loads that hang: a thread cannot be stopped, so they are counted, and no version may have many."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from registry.errors import InvalidModel
from registry.versions import ModelVersion
from serving.threads import in_thread

T = TypeVar("T")
#: So many loads of one version may hang in their threads; while they do, it is not tried again.
MOST_HUNG = 3


class Attempts:
    """The blocking work of the versions of one model while they come."""

    def __init__(self) -> None:
        self._hung: list[tuple[ModelVersion, threading.Event]] = []

    def check(self, version: ModelVersion) -> None:
        """Raises InvalidModel if too many loads of the version hang."""
        self._hung = [(whose, ended) for whose, ended in self._hung if not ended.is_set()]
        if sum(whose == version for whose, _ in self._hung) >= MOST_HUNG:
            raise InvalidModel(f"{MOST_HUNG} loads of it hang; it is tried again when one of them ends")

    async def run(
        self, version: ModelVersion, call: Callable[[], T], discard: Callable[[T], None] = lambda value: None
    ) -> T:
        """What `in_thread` does; a caller that is cancelled leaves the thread behind, and it is counted."""
        ended = threading.Event()

        def work() -> T:
            try:
                return call()
            finally:
                ended.set()

        try:
            return await in_thread(work, discard)
        except asyncio.CancelledError:
            self._hung.append((version, ended))
            raise
