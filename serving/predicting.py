"""The threads that call one version's model, and what becomes of a call that does not return."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from registry.errors import InvalidModel
from serving.batch import Slice, compute
from serving.errors import NotReady
from serving.runtimes.base import Outputs, Runtime

#: So many calls of one version may hang at once: each has lost its thread, and the next one would too.
MOST_HUNG = 3
#: While so many hang, whatever was loaded since, the version is not loaded again: what hangs holds a thread and a model each.
MOST_LOST = 2 * MOST_HUNG

Results = list["Outputs | Exception"]
#: Hears the results of a batch, the seconds that it took, and how many of them its thread computed.
Told = Callable[[Results, float, float], None]


class Run:
    """One batch in a thread. `told` is None when nobody waits for it any more; `over` when the model has returned; `freed`
    is None once another batch may take its place."""

    __slots__ = ("alarm", "freed", "over", "slices", "told")

    def __init__(self, slices: Sequence[Slice], told: Told, freed: Callable[[], None]) -> None:
        self.slices, self.over = slices, False
        self.told: Told | None = told
        self.freed: Callable[[], None] | None = freed
        self.alarm: asyncio.TimerHandle | None = None


class Lost:
    """The runs of all versions that hang now: a thread cannot be ended, and what it holds stays in memory."""

    def __init__(self) -> None:
        self._runs: list[tuple[tuple[str, str], Run]] = []

    def add(self, model: str, version: str, run: Run) -> None:
        """One more."""
        self._runs.append(((model, version), run))

    def count(self, model: str, version: str) -> int:
        """How many of a version's still hang."""
        self._runs = [(whose, run) for whose, run in self._runs if not run.over]
        return sum(whose == (model, version) for whose, _ in self._runs)

    def check(self, model: str, version: str) -> None:
        """Raises InvalidModel for a version that must not be loaded again as long as it is so."""
        if (count := self.count(model, version)) >= MOST_LOST:
            raise InvalidModel(
                f"{count} of its predictions hang and hold their threads: run it in a process of its own "
                "(isolation: process), or promote another version; a restart lets the threads go"
            )


LOST = Lost()


class Threads:
    """Runs the batches of one version, at most `count` at once. All methods belong to the event loop's thread.

    A call cannot be stopped. One that runs for `hang_seconds` is left alone, and another thread takes its place; should it
    end after all, who still waits for it is answered. `overdue` hears how long it has run, `lost` which it is, and `given_up`
    why no other thread is tried, once MOST_HUNG hang. Without `hang_seconds` somebody else sees to it that calls end.
    """

    def __init__(
        self,
        count: int,
        hang_seconds: float | None,
        overdue: Callable[[float], None],
        lost: Callable[[Run], None],
        given_up: Callable[[str], None],
    ) -> None:
        self._count, self._hang_seconds = count, hang_seconds
        self._overdue, self._lost, self._given_up = overdue, lost, given_up
        self._pool: ThreadPoolExecutor | None = None
        self._runs: set[Run] = set()

    def start(self, runtime: Runtime, slices: Sequence[Slice], told: Told, freed: Callable[[], None]) -> None:
        """Runs one batch. On the loop, unless the threads are closed, `told` hears how it went, and `freed` when another may
        be started: then, or when it hangs."""
        run, loop = Run(slices, told, freed), asyncio.get_running_loop()
        self._runs.add(run)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._count, "headway-predict")
        if self._hang_seconds is not None:
            run.alarm = loop.call_later(self._hang_seconds, self._hang, run, self._hang_seconds)
        try:
            self._pool.submit(self._work, loop, runtime, run)
        except RuntimeError:  # the machine has no thread to give
            none: Results = [NotReady("The server has no thread for the model; ask again.") for _ in slices]
            loop.call_soon(self._ended, run, none, 0.0, 0.0)

    def close(self) -> None:
        """Batches that run end unheard."""
        for run in self._runs:
            run.told = run.freed = None
            _silence(run)
        self._runs.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def _work(self, loop: asyncio.AbstractEventLoop, runtime: Runtime, run: Run) -> None:
        if run.told is None:
            return
        results, seconds, own = compute(runtime, run.slices, time.thread_time)
        run.over = True
        with contextlib.suppress(RuntimeError):  # the loop has closed
            loop.call_soon_threadsafe(self._ended, run, results, seconds, own)

    def _ended(self, run: Run, results: Results, seconds: float, own: float) -> None:
        _silence(run)
        self._runs.discard(run)
        told, run.told = run.told, None
        try:
            if told is not None:
                told(results, seconds, own)
        finally:
            _free(run)

    def _hang(self, run: Run, seconds: float) -> None:
        self._overdue(seconds)
        self._lost(run)
        if self._pool is not None:
            self._pool.shutdown(wait=False)  # what else runs there goes on; the next batch has threads of its own
            self._pool = None
        _free(run)
        hung = sum(each.freed is None and not each.over for each in self._runs)
        if hung >= MOST_HUNG:
            self._given_up(f"{hung} of its predictions hang, for longer than hang_seconds ({seconds:g})")


def _silence(run: Run) -> None:
    if run.alarm is not None:
        run.alarm.cancel()
        run.alarm = None


def _free(run: Run) -> None:
    freed, run.freed = run.freed, None
    if freed is not None:
        freed()
