"""Threads for calls that block and may hang: who waits for one stands in no executor's queue, and can leave."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Threads:
    """At most `threads` calls at once. One that hangs keeps its thread, so no more than these ever hang."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._free = asyncio.Semaphore(threads)

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """What the call returns or raises; waits for a free thread first."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()

        def release(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is gone: the process ends
                loop.call_soon_threadsafe(self._free.release)

        work = self._pool.submit(call, *args)
        work.add_done_callback(release)
        return await asyncio.wrap_future(work)

    def close(self) -> None:
        """Lets the threads end; what hangs is left behind."""
        self._pool.shutdown(wait=False, cancel_futures=True)
