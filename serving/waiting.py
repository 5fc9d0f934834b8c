"""The requests that wait for one runtime, and the order in which their rows are taken."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from serving.batch import Item, Slice

#: Every so many batches go by arrival: whoever waits is never passed over for longer than the queue before it takes.
BY_ARRIVAL = 4

Line = deque[Item]


class Priority(IntEnum):
    """Who goes first, in Triton's numbers."""

    HIGH = 1
    NORMAL = 2
    LOW = 3


HIGH, NORMAL, LOW = Priority  # looking members up by their class is slow


class Waiting:
    """High goes before normal, normal before low, each in order of arrival; every fourth batch is by arrival alone.

    A request of more than `chunk` rows stands in its line with so many of them, and goes to its end whenever it has had a
    batch of its own: whoever waits has one long request's batch before it, not all of them. `depth` is the number of rows in
    the lines, `beyond` that of the rows that wait outside. `late` is told of each request whose deadline has passed when its
    turn has come.
    """

    __slots__ = ("_chunk", "_first", "_high", "_late", "_low", "_mixed", "_normal", "beyond", "depth")

    def __init__(self, late: Callable[[Item], None], chunk: int) -> None:
        self._high, self._normal, self._low = Line(), Line(), Line()
        self._late, self._chunk = late, chunk
        self._mixed = 0
        self.depth = self.beyond = 0
        self._first: Item | None = None

    @property
    def outside(self) -> int:
        """The rows that wait outside, without those of the long request that nobody was before: it takes no room from others."""
        first = self._first
        return self.beyond - (0 if first is None else max(0, first.rows - first.taken - self._chunk))

    def add(self, item: Item) -> None:
        """The last in its line."""
        rows = item.rows
        if rows > self._chunk:
            if self.depth == 0:
                self._first = item
            self.beyond += rows - self._chunk
            rows = self._chunk
        self.depth += rows
        if item.priority is NORMAL:
            self._normal.append(item)
        else:
            (self._high if item.priority is HIGH else self._low).append(item)

    def drop(self, item: Item) -> None:
        """What has not been taken of the item never will be. Where nobody is left, nothing is kept of those who went."""
        if item.taken < item.rows:
            self._count(item, item.rows - item.taken)
            if self.depth == 0:
                for line in (self._high, self._normal, self._low):
                    line.clear()

    def _count(self, item: Item, rows: int) -> None:
        """So many rows of the item wait no more: first those outside, which others of it have moved up for."""
        beyond = item.rows - item.taken - self._chunk
        item.taken += rows
        if beyond > 0:
            moved = min(rows, beyond)
            self.beyond -= moved
            rows -= moved
        self.depth -= rows
        if item is self._first and item.taken == item.rows:
            self._first = None

    def first(self) -> float:
        """When the first of those who wait arrived, in monotonic seconds."""
        return min(line[0].enqueued for line in (self._high, self._normal, self._low) if line)

    def take(self, room: int, now: float) -> list[Slice]:
        """At most `room` rows for one batch."""
        slices: list[Slice] = []
        if not self._high and not self._low:
            self._pull(self._normal, slices, room, now)
            return slices
        lines = (self._high, self._normal, self._low)
        self._mixed += 1
        if self._mixed % BY_ARRIVAL:
            for line in lines:
                room = self._pull(line, slices, room, now)
        else:
            while room > 0 and (some := [line for line in lines if line]):
                earliest = min(some, key=lambda line: line[0].enqueued)
                room = self._pull(earliest, slices, room, now, most=1)
        return slices

    def _pull(self, line: Line, slices: list[Slice], room: int, now: float, most: int = -1) -> int:
        """Rows of at most `most` requests of a line, -1 for any number; returns how much room is left. Whoever has gone
        is skipped."""
        while line and room > 0 and most != 0:
            item = line[0]
            count = item.rows - item.taken
            if count == 0:
                line.popleft()
                continue
            if item.deadline is not None and item.deadline <= now:
                self._late(item)
                continue
            if count > room:
                count = room
            slices.append(Slice(item, item.taken, item.taken + count))
            room -= count
            most -= 1
            if item.rows > self._chunk:
                self._count(item, count)
            else:
                item.taken += count
                self.depth -= count
            if item.taken == item.rows:
                line.popleft()
            elif item.rows > self._chunk and len(slices) == 1:
                line.rotate(-1)
        return room
