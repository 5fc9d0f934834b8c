"""One worker as the supervisor holds it: forked, heard, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.process import BaseProcess
from typing import Any

import psutil

from serving.workers.link import Link, LinkLost, Refused

log = logging.getLogger("headway.workers")
#: Forks a worker, given its number and its end of the link.
Start = Callable[[int, socket.socket], BaseProcess]
Hear = Callable[["Member", str, Any], Awaitable[Any]]
#: What multiprocessing says of a process whose fork server has died.
ORPHANED = 255


class Fate(StrEnum):
    """Why a worker is gone: by a signal, with an exit code, because it did not answer, or before it had begun."""

    CRASHED = "crashed"
    EXITED = "exited"
    HUNG = "hung"
    START = "start"


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds. What workers are forked from comes up within `warm`. For a worker that says nothing for `hush` others accept
    connections; one that says nothing and does nothing for `still` is killed, one that computes after `heartbeat`, one that
    has not said hello after `hello`. Pauses before the next start grow from `first_pause` to `longest_pause`, and begin anew
    for one that lived for `steady`."""

    warm: float = 300.0
    hush: float = 0.25
    still: float = 5.0
    heartbeat: float = 30.0
    hello: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 30.0
    steady: float = 60.0


#: What a process computes of a core at least, if it does anything.
IDLE = 0.05


class Member:
    """A worker: its process, its link, and what it said of itself last. `number` is its place, `id` is its own."""

    def __init__(self, number: int, id: int, *, early: bool) -> None:
        """`early`: it listens before it is ready, and counts from the start: nobody else answers yet."""
        self.number, self.id, self.early = number, id, early
        self.ready = self.listens = self.said_farewell = self.retired = False
        #: It has left a question unanswered for a while.
        self.silent = False
        self.link: Link | None = None
        self.fate: Fate | None = None
        self.process: BaseProcess | None = None
        self._hello = asyncio.Event()
        self._told: dict[str, Any] | None = None

    async def live(self, start: Start, hear: Hear, changed: Callable[[], None], bounds: Bounds) -> int:
        """Forks the worker, and returns its exit code when it has ended. `hear` answers it; `changed` is told when it falls
        silent, and when it speaks again.

        Raises OSError or EOFError if there is nothing to fork from.
        """
        ours, theirs = socket.socketpair()
        self.link = await Link.over(ours, lambda what, facts: hear(self, what, facts))
        reading = asyncio.create_task(self.link.run())
        watching = asyncio.create_task(self._watch(bounds, changed))
        try:
            with theirs:
                self.process = start(self.number, theirs)
            return await self._ended(self.process, reading)
        finally:
            self.process = None
            for task in (reading, watching):
                task.cancel()
            self.link.close()
            self.link = None

    def said_hello(self) -> None:
        """The worker is up, and answers from now on."""
        self._hello.set()

    def say(self, *, ready: bool, listens: bool) -> None:
        """What the worker says of itself."""
        if self.listens and not listens:
            self.early = False  # it ends, and the next one listens when it is ready
        self.ready, self.listens = ready, listens

    def end(self) -> None:
        """The worker is gone, or never was."""
        self.ready = self.listens = self.early = self.silent = False

    @property
    def absent(self) -> bool:
        """Whether nobody accepts in this place, though somebody did and will again."""
        return not (self.listens or self.early)

    @property
    def speaks(self) -> bool:
        """Whether it can be asked."""
        return self.link is not None and self._hello.is_set()

    def tell(self, what: str, facts: Any) -> None:
        """Tells the worker, if it is there."""
        if self.link is not None:
            self.link.tell(what, facts)

    def tell_crew(self, said: dict[str, Any]) -> None:
        """The state of all, if it is another than it was told."""
        if self.speaks and said != self._told:
            self._told = said
            self.tell("crew", said)

    async def ask(self, what: str, facts: Any = None, *, seconds: float) -> Any:
        """What `Link.ask` returns and raises."""
        if self.link is None:
            raise LinkLost("the worker is gone")
        return await self.link.ask(what, facts, seconds=seconds)

    def signal(self, number: int) -> None:
        """Sends a signal to a worker that runs."""
        if self.process is not None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)

    async def _ended(self, process: BaseProcess, reading: asyncio.Task[None]) -> int:
        """The exit code. If what it was forked from is gone, nobody knows it, and the worker lives until it hangs up."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(process.sentinel, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(process.sentinel)
        code = process.exitcode or 0
        if code == ORPHANED:
            await reading
            code = 0 if self.said_farewell else -signal.SIGKILL
        if self.fate is None:
            self.fate = Fate.CRASHED if code < 0 else Fate.EXITED
        return code

    async def _watch(self, bounds: Bounds, changed: Callable[[], None]) -> None:
        """Kills a worker that does not say hello, or has fallen silent for good."""
        try:
            async with asyncio.timeout(bounds.hello):
                await self._hello.wait()
            while True:
                if not await self._lives(bounds, changed):
                    break
                await asyncio.sleep(bounds.hush)
        except TimeoutError:
            pass
        except LinkLost:
            return  # it ends by itself, having lost us
        self.fate = Fate.HUNG
        self.signal(signal.SIGKILL)

    async def _lives(self, bounds: Bounds, changed: Callable[[], None]) -> bool:
        """Whether the worker answers, however late, as long as it does something meanwhile."""
        began, computed = time.monotonic(), self._computed()
        while True:
            # Two questions: if this process stood still, the answer to the first may lie unread when its time is over.
            for share in (0.8, 0.2):
                if await self._speaks_up(share * min(bounds.still, bounds.heartbeat), bounds.hush, changed):
                    return True
            silence = time.monotonic() - began
            if silence >= bounds.heartbeat or self._computed() - computed < IDLE * silence:
                return False

    async def _speaks_up(self, seconds: float, hush: float, changed: Callable[[], None]) -> bool:
        """Whether one question is answered in that time; after `hush` the worker counts as silent until it is."""
        fallen = asyncio.get_running_loop().call_later(hush, self._mark, True, changed)
        try:
            answered = await self._answers(seconds)
        finally:
            fallen.cancel()
        if answered:
            self._mark(False, changed)
        return answered

    def _mark(self, silent: bool, changed: Callable[[], None]) -> None:
        if self.silent != silent:
            self.silent = silent
            changed()

    def _computed(self) -> float:
        """Seconds of a core that the worker has used."""
        if self.process is None or self.process.pid is None:
            return 0.0
        try:
            used = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return 0.0  # it has just ended
        return float(used.user + used.system)

    async def _answers(self, seconds: float) -> bool:
        try:
            await self.ask("ping", seconds=seconds)
        except TimeoutError:
            return False
        except LinkLost:
            if self.link is None or self.link.lost:
                raise  # else so much is being asked that there is no room for this
        except Refused as error:
            log.error("a worker stumbles", extra={"worker": self.number, "reason": str(error)})
        return True
