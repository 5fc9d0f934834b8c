"""Where large bodies are decoded: beside the event loop, a slice at a time.

A thread alone would not do: whoever holds the GIL holds the loop. Between slices `Pace` lets the loop have it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.errors import DeadlineExceeded, NotReady, QueueFull

T = TypeVar("T")
#: What is longer may be decoded here. At their worst so many bytes of JSON take 40 ms.
LARGE_BYTES = 262_144
THREADS, MOST_WAITING = 2, 32
#: After so long without a rest comes one: long enough for another thread to wake up and take the GIL.
WORK_SECONDS, REST_SECONDS = 0.002, 0.0002
_LATE = "The request's deadline passed while its body was decoded."


class Pace:
    """Called between slices, in the thread that decodes. Raises DeadlineExceeded, or what it was stopped with."""

    __slots__ = ("_deadline", "_error", "_since")

    def __init__(self, deadline: float | None = None) -> None:
        self._deadline, self._since = deadline, 0.0
        self._error: Exception | None = None

    def __call__(self) -> None:
        """Goes on, perhaps after a rest."""
        now = time.monotonic()
        if self._error is not None:
            raise self._error
        if self._deadline is not None and now >= self._deadline:
            raise DeadlineExceeded(_LATE)
        if now - self._since >= WORK_SECONDS:
            time.sleep(REST_SECONDS)
            self._since = time.monotonic()

    def stop(self, error: Exception) -> None:
        """The next call raises this."""
        self._error = error


class DecodePool:
    """Two threads, and a bound on who waits for them. Belongs to the event loop."""

    def __init__(self, threads: int = THREADS, most_waiting: int = MOST_WAITING) -> None:
        self._threads = ThreadPoolExecutor(threads, "headway-decode")
        self._most = threads + most_waiting
        self._inside: set[Pace] = set()

    @property
    def busy(self) -> int:
        """Requests that are being decoded, or wait for it."""
        return len(self._inside)

    async def run(self, work: Callable[[Pace], T], deadline: float | None) -> T:
        """What the work returns. Its end, the deadline (monotonic seconds) or the caller's cancellation gives the place back.

        Raises QueueFull if too many wait, DeadlineExceeded, NotReady, or what the work raises.
        """
        if len(self._inside) >= self._most:
            raise QueueFull("Too many large requests wait to be decoded.", retry_after=1)
        pace = Pace(deadline)
        self._inside.add(pace)
        try:
            working = self._start(work, pace)
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                return await working
        except TimeoutError:
            raise DeadlineExceeded(_LATE) from None
        finally:
            self._inside.discard(pace)
            pace.stop(DeadlineExceeded(_LATE))  # nobody hears it

    def _start(self, work: Callable[[Pace], T], pace: Pace) -> asyncio.Future[T]:
        try:
            return asyncio.get_running_loop().run_in_executor(self._threads, _begin, work, pace)
        except RuntimeError:  # the machine has no thread to give
            raise NotReady("The server has no thread to decode the request; ask again.") from None

    def close(self, error: Exception) -> None:
        """Fails whoever is being decoded, or waits for it, at the next slice."""
        for pace in self._inside:
            pace.stop(error)


def _begin(work: Callable[[Pace], T], pace: Pace) -> T:
    pace()
    return work(pace)
