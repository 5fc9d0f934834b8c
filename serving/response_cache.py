"""The response cache of one version: what it answered to the same rows before, and one computation for all who ask now.

It stands between a request and the batcher and belongs to the servable: it comes empty with a version and leaves with it,
so that the key need not say which version, files or configuration it is of. All of it belongs to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import marshal
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from serving.batch import TOO_LATE, Arrays, Done, Item
from serving.batching import LATE_SECONDS, Batcher
from serving.errors import DeadlineExceeded, QueueFull
from serving.runtimes.base import Outputs, Want
from serving.waiting import NORMAL, Priority

#: An answer that takes more than this part of the budget is not kept: it would push out too many others.
LARGEST_SHARE = 8
#: Rows that take more than this have no key: it is made on the event loop, where everybody waits for it.
MOST_KEYED_BYTES = 2**20
_ENTRY_BYTES = 512  # the key, the entry and its objects; more than they take
_DIGEST_BYTES = 16
_PLAIN = frozenset({str, bytes, bool, int, float, type(None)})
_UNSHARED = 2  # marshal's newest version that writes equal values alike, however often one object stands in a list


@dataclass(frozen=True, slots=True)
class CacheLimits:
    """Bytes that the answers of one version may take, 0 for no cache; how long one may be given, in seconds."""

    max_bytes: int = 0
    ttl_seconds: float | None = None


def key_of(arrays: Arrays, want: Want) -> bytes | None:
    """A digest of all that an answer depends on; None for values that are too many, or whose likeness cannot be told."""
    left = MOST_KEYED_BYTES - sum(array.nbytes for array in arrays)
    if left < 0:
        return None
    digest = hashlib.blake2b(b"%d" % want.value, digest_size=_DIGEST_BYTES)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        if array.dtype.hasobject:
            values = array.ravel().tolist()
            if not _PLAIN.issuperset(map(type, values)):
                return None
            written = marshal.dumps(values, _UNSHARED)
            left -= len(written)
            if left < 0:
                return None
            digest.update(written)
        else:
            digest.update(array.tobytes())
    return digest.digest()


def owned(outputs: Outputs, want: Want) -> Outputs:
    """What is wanted of the outputs, in arrays of its own: a slice would keep the whole batch alive."""
    return Outputs(
        outputs.rows,
        _copy(outputs.labels) if Want.LABELS in want else None,
        _copy(outputs.probabilities) if Want.PROBABILITIES in want else None,
        _copy(outputs.raw) if Want.RAW in want else None,
        None if outputs.named is None else {name: _own(array) for name, array in outputs.named.items()},
    )


def _copy(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else _own(array)


def _own(array: np.ndarray) -> np.ndarray:
    copied = np.array(array, order="C")
    copied.setflags(write=False)
    return copied


def size_of(outputs: Outputs) -> int | None:
    """Bytes of memory that an entry with these arrays takes; None if that is not known."""
    size = _ENTRY_BYTES
    named = outputs.named or {}
    size += sum([_ENTRY_BYTES + 4 * len(name) for name in named])
    for array in (outputs.labels, outputs.probabilities, outputs.raw, *named.values()):
        if array is None:
            continue
        size += sys.getsizeof(array)
        if array.dtype.hasobject:
            values = array.ravel().tolist()
            if not _PLAIN.issuperset(map(type, values)):
                return None
            size += sum(map(sys.getsizeof, values))
    return size


class Store:
    """Answers by key, at most `max_bytes` of them; the least recently used leave first. `now` is monotonic seconds."""

    def __init__(self, limits: CacheLimits, evicted: Callable[[str], None]) -> None:
        """`evicted` hears why an answer left: `room` for others, or its `age`."""
        self._limits, self._evicted = limits, evicted
        self._entries: OrderedDict[bytes, tuple[Outputs, int, float]] = OrderedDict()
        self.bytes = 0

    def get(self, key: bytes, now: float) -> Outputs | None:
        """The answer, unless it is too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        outputs, _, kept = entry
        if self._limits.ttl_seconds is not None and now - kept >= self._limits.ttl_seconds:
            self._drop(key, "age")
            return None
        self._entries.move_to_end(key)
        return outputs

    def keep(self, key: bytes, outputs: Outputs, now: float) -> None:
        """Keeps an answer that is not there yet, if it is not too large."""
        size = size_of(outputs)
        if key in self._entries or size is None or size > self._limits.max_bytes // LARGEST_SHARE:
            return
        self._entries[key] = (outputs, size, now)
        self.bytes += size
        while self.bytes > self._limits.max_bytes:
            self._drop(next(iter(self._entries)), "room")

    def _drop(self, key: bytes, reason: str) -> None:
        self.bytes -= self._entries.pop(key)[1]
        self._evicted(reason)


@dataclass(slots=True, eq=False)
class Wait:
    """A request that waits for a computation: its own (`miss`), or one that was under way (`hit`)."""

    cache: ResponseCache
    work: Work
    rows: int
    outcome: str
    done: Done | None
    deadline: float | None = None
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True, eq=False)
class Work:
    """A computation, and who waits for it. It goes on as long as there is anybody."""

    key: bytes | None
    want: Want
    item: Item | None = None
    waits: dict[Wait, None] = field(default_factory=dict)


class ResponseCache:
    """Answers from memory, or through `batcher`. As many rows as `max_waiting` may wait for what others have begun.

    `asked` hears `hit` or `miss` once per request, `evicted` what it hears from `Store`.
    """

    def __init__(
        self,
        batcher: Batcher,
        limits: CacheLimits,
        max_waiting: int,
        asked: Callable[[str], None],
        evicted: Callable[[str], None],
    ) -> None:
        self._batcher, self._max_waiting, self._asked = batcher, max_waiting, asked
        self._store = Store(limits, evicted)
        self._under_way: dict[bytes, Work] = {}
        self._waiting = 0

    @property
    def bytes(self) -> int:
        """What the answers take now."""
        return self._store.bytes

    def ask(
        self, arrays: Arrays, rows: int, want: Want, deadline: float | None, done: Done, priority: Priority = NORMAL
    ) -> Outputs | Wait:
        """The outputs, if they are known; else `done` hears them, or why there are none, as from `Batcher.submit`.

        Raises QueueFull, DeadlineExceeded or NotReady, and calls nobody then.
        """
        now = time.monotonic()
        if deadline is not None and deadline <= now:
            raise DeadlineExceeded("The request's deadline had passed before the model could run.")
        key = key_of(arrays, want)
        outputs = None if key is None else self._store.get(key, now)
        if outputs is not None:
            self._asked("hit")
            return outputs
        work = None if key is None else self._under_way.get(key)
        if work is not None:
            self._join(work, rows, deadline)
            return self._wait(Wait(self, work, rows, "hit", done), deadline, now)
        work = self._begin(Work(key, want), arrays, rows, deadline, priority)
        return self._wait(Wait(self, work, rows, "miss", done), deadline, now)

    def cancel(self, wait: Wait) -> None:
        """The request waits no more. What nobody waits for holds no place, and will not be computed."""
        work, wait.done = wait.work, None
        if wait.timer is not None:
            wait.timer.cancel()
        if wait.outcome == "hit":
            self._waiting -= wait.rows
        del work.waits[wait]
        if not work.waits:
            self._end(work)

    def _begin(self, work: Work, arrays: Arrays, rows: int, deadline: float | None, priority: Priority) -> Work:
        def computed(result: Outputs | Exception, seconds: float) -> None:
            self._computed(work, result, seconds)

        work.item = self._batcher.submit(arrays, rows, work.want, deadline, computed, priority)
        if work.key is not None:
            self._under_way[work.key] = work
        return work

    def _join(self, work: Work, rows: int, deadline: float | None) -> None:
        if self._waiting and self._waiting + rows > self._max_waiting:
            raise QueueFull("Too many requests wait for the model's answer to the same rows; try again later.", 1)
        assert work.item is not None
        self._batcher.extend(work.item, deadline)

    def _wait(self, wait: Wait, deadline: float | None, now: float) -> Wait:
        """Each waits until its own deadline: the item's is the latest of them."""
        if deadline is not None:
            delay = deadline - now + LATE_SECONDS
            wait.timer = asyncio.get_running_loop().call_later(delay, self._expire, wait)
            wait.deadline = deadline
        wait.work.waits[wait] = None
        if wait.outcome == "hit":
            self._waiting += wait.rows
        self._asked(wait.outcome)
        return wait

    def _expire(self, wait: Wait) -> None:
        self._tell(wait, DeadlineExceeded(TOO_LATE), 0.0)

    def _computed(self, work: Work, result: Outputs | Exception, seconds: float) -> None:
        """Everybody is told the same. What failed is told, and forgotten."""
        self._end(work)
        if isinstance(result, Outputs) and work.key is not None:
            result = owned(result, work.want)
            self._store.keep(work.key, result, time.monotonic())
        now = time.monotonic()
        for wait in list(work.waits):
            late = wait.deadline is not None and wait.deadline <= now  # no timer rings while the loop itself computes
            self._tell(wait, DeadlineExceeded(TOO_LATE) if late else result, seconds)

    def _tell(self, wait: Wait, result: Outputs | Exception, seconds: float) -> None:
        done = wait.done
        if done is not None:  # else it was cancelled while others were told
            self.cancel(wait)
            done(result, seconds)

    def _end(self, work: Work) -> None:
        """Nobody joins the computation any more, and what is not computed yet never will be."""
        if work.key is not None and self._under_way.get(work.key) is work:
            del self._under_way[work.key]
        assert work.item is not None
        self._batcher.cancel(work.item)
