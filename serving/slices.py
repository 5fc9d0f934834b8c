"""Long work on the event loop, in slices: requests are answered between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
#: A slice ends with the first piece that ends after it: pieces take a third of a millisecond.
SLICE_SECONDS = 0.0005


async def in_slices(work: Iterator[T]) -> list[T]:
    """All that the iterator gives; the loop runs whenever a slice is over."""
    found: list[T] = []
    over = time.perf_counter() + SLICE_SECONDS
    for piece in work:
        found.append(piece)
        if time.perf_counter() >= over:
            await asyncio.sleep(0)
            over = time.perf_counter() + SLICE_SECONDS
    return found


class Shared(Generic[T]):
    """Work that is done once at a time. Who asks while it is under way gets what comes next, with all others who do:
    what they get was begun after they asked. So one is under way and one waits, however many ask."""

    def __init__(self, make: Callable[[], Awaitable[T]]) -> None:
        self._make = make
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def __call__(self) -> T:
        """What the work gives or raises. A caller who goes takes it from nobody."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_task(self._after(self._running))
        return await asyncio.shield(self._next)

    async def _after(self, before: asyncio.Task[T] | None) -> T:
        if before is not None:
            await asyncio.wait((before,))
        self._running, self._next = self._next, None
        try:
            return await self._make()
        finally:
            self._running = None
