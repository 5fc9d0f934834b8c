"""Whose batch runs next on the event loop: models that run there share its time by what they cost, not by how often they ask."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections.abc import Callable
from typing import Protocol

#: A tick runs batches for about so long before the loop looks after its sockets again, or as long as it has just looked after
#: them, if that is more: else answers to those who are turned away would leave no time for those who were taken in.
TICK_SECONDS, MOST_SECONDS = 0.002, 0.020


class Member(Protocol):
    """Who takes turns. `used` is the loop's time that it had, in seconds, and belongs to `Turns` but for what it adds."""

    used: float

    def turn(self) -> None:
        """Runs at most one batch, and adds to `used` what it took."""
        ...


class Turns:
    """Runs members in the tick after they ask, whoever has used the least first. In one tick each has at most one batch that
    is not full: the sockets may have more for it. One batch always runs.

    One that comes back after a rest has no credit: it starts where those who work are (start-time fair queueing).
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._waiting: list[tuple[float, int, Member, bool]] = []
        self._order = 0
        self._level = 0.0
        self._scheduled = self._running = False
        self._ended, self._spent = math.inf, 0.0

    def ask(self, member: Member, *, full: bool = False) -> None:
        """The member wants one turn, for a batch that is `full` or not. It may ask again during it, and not before."""
        if member.used < self._level:
            member.used = self._level
        self._order += 1
        heapq.heappush(self._waiting, (member.used, self._order, member, full))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def at_once(self, member: Member) -> None:
        """Has the member's turn now, if it waits for one, nobody else does, and the tick has time left: its batch is full,
        and its rows are still in the caches of the core. Not within a turn: its answers may begin requests."""
        waiting = self._waiting
        if self._running or self._spent >= MOST_SECONDS or len(waiting) != 1 or waiting[0][2] is not member:
            return
        began = self._clock()
        self._turn()
        self._spent += self._clock() - began

    def _turn(self) -> Member:
        self._level, _, member, _ = heapq.heappop(self._waiting)
        self._running = True
        try:
            member.turn()
        finally:
            self._running = False
        return member

    def _run(self) -> None:
        waiting = self._waiting
        try:
            if len(waiting) == 1 and not waiting[0][3]:  # as nearly always
                self._turn()
            else:
                self._share()
        finally:
            self._scheduled = bool(waiting)
            self._ended, self._spent = math.inf, 0.0
            if waiting:
                self._ended = self._clock()
                asyncio.get_running_loop().call_soon(self._run)

    def _share(self) -> None:
        waiting, now = self._waiting, self._clock()
        sockets = now - self._ended - self._spent
        until = now + min(max(TICK_SECONDS, sockets), MOST_SECONDS)
        had: set[Member] = set()
        while waiting and (waiting[0][3] or waiting[0][2] not in had) and (not had or self._clock() < until):
            had.add(self._turn())
