"""Whose batch runs next on the event loop: models that run there share its time by what they cost, not by how often they ask."""

from __future__ import annotations

import asyncio
import heapq
import time
from typing import Protocol

#: A tick runs batches for about so long before the loop looks after its sockets again; one always runs.
TICK_SECONDS = 0.002


class Member(Protocol):
    """Who takes turns. `used` is the loop's time that it had, in seconds, and belongs to `Turns` but for what it adds."""

    used: float

    def turn(self) -> None:
        """Runs at most one batch, and adds to `used` what it took."""
        ...


class Turns:
    """Runs members in the tick after they ask, each at most once per tick, whoever has used the least first.

    One that comes back after a rest has no credit: it starts where those who work are (start-time fair queueing).
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Member]] = []
        self._order = 0
        self._level = 0.0
        self._scheduled = False

    def ask(self, member: Member) -> None:
        """The member wants one turn. It may ask again during it, and not before."""
        if member.used < self._level:
            member.used = self._level
        self._order += 1
        heapq.heappush(self._waiting, (member.used, self._order, member))
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        waiting = self._waiting
        try:
            if len(waiting) == 1:  # as nearly always
                self._level, _, member = waiting.pop()
                member.turn()
            else:
                self._share()
        finally:
            self._scheduled = bool(waiting)
            if waiting:
                asyncio.get_running_loop().call_soon(self._run)

    def _share(self) -> None:
        waiting, until = self._waiting, time.perf_counter() + TICK_SECONDS
        had: list[Member] = []
        while waiting and waiting[0][2] not in had and (not had or time.perf_counter() < until):
            self._level, _, member = heapq.heappop(waiting)
            had.append(member)
            member.turn()
