"""One worker as the supervisor holds it: forked, heard, watched, ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.process import BaseProcess
from typing import Any

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
    """Seconds. What workers are forked from comes up within `warm`. A worker that says nothing for `heartbeat`, or has not
    said hello after `hello`, is killed; pauses before the next start grow from `first_pause` to `longest_pause`, and begin
    anew for one that lived for `steady`."""

    warm: float = 300.0
    heartbeat: float = 30.0
    hello: float = 120.0
    first_pause: float = 0.5
    longest_pause: float = 30.0
    steady: float = 60.0


class Member:
    """A worker: its process, its link, and what it said of itself last. `number` is its place, `id` is its own."""

    def __init__(self, number: int, id: int, *, early: bool) -> None:
        """`early`: it listens before it is ready, and counts from the start: nobody else answers yet."""
        self.number, self.id, self.early = number, id, early
        self.ready = self.listens = self.said_farewell = self.retired = False
        self.link: Link | None = None
        self.fate: Fate | None = None
        self.process: BaseProcess | None = None
        self._hello = asyncio.Event()
        self._told: dict[str, bool] | None = None

    async def live(self, start: Start, hear: Hear, bounds: Bounds) -> int:
        """Forks the worker, and returns its exit code when it has ended. `hear` answers it.

        Raises OSError or EOFError if there is nothing to fork from.
        """
        ours, theirs = socket.socketpair()
        self.link = await Link.over(ours, lambda what, facts: hear(self, what, facts))
        reading = asyncio.create_task(self.link.run())
        watching = asyncio.create_task(self._watch(bounds))
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

    @property
    def speaks(self) -> bool:
        """Whether it can be asked."""
        return self.link is not None and self._hello.is_set()

    def tell(self, what: str, facts: Any) -> None:
        """Tells the worker, if it is there."""
        if self.link is not None:
            self.link.tell(what, facts)

    def tell_crew(self, said: dict[str, bool]) -> None:
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

    async def _watch(self, bounds: Bounds) -> None:
        """Kills a worker that does not say hello, or leaves two questions in a row unanswered.

        Two: if this process stood still, the answer to the first may lie unread when its time is over.
        """
        try:
            async with asyncio.timeout(bounds.hello):
                await self._hello.wait()
            missed = 0
            while missed < 2:
                missed = 0 if await self._answers(bounds.heartbeat / 2) else missed + 1
                await asyncio.sleep(0 if missed else bounds.heartbeat / 4)
        except TimeoutError:
            pass
        except LinkLost:
            return  # it ends by itself, having lost us
        self.fate = Fate.HUNG
        self.signal(signal.SIGKILL)

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
