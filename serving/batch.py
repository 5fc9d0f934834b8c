"""One batch: the rows of several requests through the runtime in one call, and each request's own rows out of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from serving.errors import DeadlineExceeded, ModelFailed, RowsRefused, ServingError
from serving.refusals import about_rows
from serving.runtimes.base import Outputs, Runtime, Want

log = logging.getLogger("headway.batching")

Arrays = tuple[np.ndarray, ...]
TOO_LATE = "The request's deadline passed before the model answered."
REFUSED = "The model refuses these rows: at least one value is outside of what it can compute."
#: Hears what became of a request: its outputs or why there are none, and the seconds its batch took in the runtime.
Done = Callable[["Outputs | Exception", float], None]
#: Something that grows with the time of this thread that counts, in seconds.
Meter = Callable[[], float]


@dataclass(slots=True, eq=False)
class Item:
    """One request in the queue: its rows, what it wants to know, and who is told, exactly once, when it is done."""

    arrays: Arrays
    rows: int
    want: Want
    deadline: float | None
    enqueued: float
    done: Done | None
    priority: IntEnum
    taken: int = 0
    answered: int = 0
    parts: list[tuple[int, Outputs]] = field(default_factory=list)

    def join(self, start: int, outputs: Outputs) -> Outputs | None:
        """Adds the outputs of some rows, from `start`; all of them once they are complete, in whatever order they came."""
        self.parts.append((start, outputs))
        self.answered += outputs.rows
        if self.answered < self.rows:
            return None
        return Outputs.join([part for _, part in sorted(self.parts, key=lambda part: part[0])])

    def cut(self, start: int, stop: int) -> Arrays:
        """The rows from `start` to before `stop`."""
        return tuple(a[start:stop] for a in self.arrays)


@dataclass(slots=True)
class Slice:
    """The rows of one item that go into one batch."""

    item: Item
    start: int
    stop: int

    @property
    def arrays(self) -> Arrays:
        """These rows."""
        item = self.item
        return item.arrays if self.stop - self.start == item.rows else item.cut(self.start, self.stop)


class Misfit(Exception):
    """The model answered something else than one row for each."""


def rows_of(slices: Sequence[Slice]) -> int:
    """How many rows they are together."""
    return sum([piece.stop - piece.start for piece in slices])


def compute(
    runtime: Runtime, slices: Sequence[Slice], meter: Meter | None = None
) -> tuple[list[Outputs | Exception], float, float]:
    """Runs one batch; returns one result per slice, the seconds that it took, and those that `meter` counted, if fewer."""
    before = 0.0 if meter is None else meter()
    began = time.perf_counter()
    results = _attempt(runtime, slices)
    seconds = time.perf_counter() - began
    return results, seconds, seconds if meter is None else min(seconds, meter() - before)


def _attempt(runtime: Runtime, slices: Sequence[Slice]) -> list[Outputs | Exception]:
    """One call for all; if it raises, or does not answer row for row, each half on its own, so that a poison row fails alone
    (about 2·log2 calls)."""
    found = _call(runtime, slices)
    if isinstance(found, BaseException):
        return _failed(runtime, slices, found)
    return [found] if len(slices) == 1 else _split(found, slices)


def _failed(runtime: Runtime, slices: Sequence[Slice], error: BaseException) -> list[Outputs | Exception]:
    """What becomes of a batch that failed as a whole."""
    if isinstance(error, ServingError):  # no row is to blame: the version's process is gone
        log.error("batch failed: %s", error)
        return [error] * len(slices)
    if len(slices) > 1:
        return _attempt_parts(runtime, slices)
    if not about_rows(error) or not _awaited(slices[0].item, time.monotonic()):
        return [_because(ModelFailed(f"the model raised {type(error).__name__}"), error)]
    again = _call(runtime, slices)
    if not isinstance(again, BaseException):
        return [again]
    if type(again) is type(error) and about_rows(again):  # a library that says the same of them twice means them
        return [_because(RowsRefused(REFUSED), again)]
    return [_because(ModelFailed(f"the model raised {type(again).__name__}"), again)]


def _because(failed: ServingError, error: BaseException) -> ServingError:
    failed.__cause__ = error  # whoever answers the request logs both, under the request's id
    return failed


def _call(runtime: Runtime, slices: Sequence[Slice]) -> Outputs | BaseException:
    """What the model answers, or raised."""
    rows, want = rows_of(slices), slices[0].item.want
    for piece in slices:
        if piece.item.want is not want:  # joining flags is dear
            want |= piece.item.want
    try:
        outputs = runtime.predict(_merge(slices), rows, want)
        if outputs.rows != rows or not outputs.consistent():
            raise Misfit(f"the model did not answer one row for each of {rows}")
    except BaseException as error:  # noqa: BLE001  the batch: a model may raise anything, exit() and KeyboardInterrupt too
        return error
    return outputs


def _awaited(item: Item, now: float) -> bool:
    return item.done is not None and (item.deadline is None or item.deadline > now)


def _attempt_parts(runtime: Runtime, slices: Sequence[Slice]) -> list[Outputs | Exception]:
    """What cannot stand in one array goes apart, else a half each. Who has gone meanwhile does not: so deadlines bound it."""
    now = time.monotonic()
    groups: dict[object, list[int]] = {}
    for at, piece in enumerate(slices):
        if _awaited(piece.item, now):
            groups.setdefault(tuple(a.shape[1:] for a in piece.item.arrays), []).append(at)
    if len(groups) == 1:
        (every,) = groups.values()
        half = (len(every) + 1) // 2
        groups = {0: every[:half], 1: every[half:]}
    results: list[Outputs | Exception] = [DeadlineExceeded(TOO_LATE) for _ in slices]
    for group in filter(None, groups.values()):
        for at, result in zip(group, _attempt(runtime, [slices[at] for at in group]), strict=True):
            results[at] = result
    return results


def _merge(slices: Sequence[Slice]) -> Arrays:
    if len(slices) == 1:
        return slices[0].arrays
    return tuple(map(np.concatenate, zip(*[piece.arrays for piece in slices], strict=True)))


def _split(outputs: Outputs, slices: Sequence[Slice]) -> list[Outputs | Exception]:
    results: list[Outputs | Exception] = []
    at = 0
    for piece in slices:
        stop = at + piece.stop - piece.start
        results.append(outputs.cut(at, stop))
        at = stop
    return results
