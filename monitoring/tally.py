"""Counters, gauges and histograms with a series per version: prometheus_client's, less the lock and the checks.

Only the event loop counts in them, so nothing can be lost between a read and a write; any thread may collect. What they
export is what prometheus_client's own would (ADR 64), sample by sample: who writes a page may let the loop run between two
of them (ADR 80). A series is one moment's; one that is removed meanwhile may be shown once more.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample
from prometheus_client.utils import floatToGoString

#: prometheus_client's own switch
_CREATED = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")
Child = TypeVar("Child", "Count", "Level", "Spread")
Labels = dict[str, str]


class Count:
    """One series of a counter."""

    __slots__ = ("created", "value")

    def __init__(self) -> None:
        self.value, self.created = 0.0, time.time()

    def inc(self, amount: float = 1.0) -> None:
        """Adds `amount`, which is not negative."""
        self.value += amount


class Level:
    """One series of a gauge."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0

    def set(self, value: float) -> None:
        """What it is now."""
        self.value = float(value)


class Spread:
    """One series of a histogram. `counts` is by bucket, not cumulative, and the last one is of what is over all bounds."""

    __slots__ = ("_bounds", "counts", "created", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds, self.counts = bounds, [0] * (len(bounds) + 1)
        self.sum, self.created = 0.0, time.time()

    def observe(self, amount: float) -> None:
        """Counts one observation, in the bucket of the lowest bound that is not below it."""
        self.counts[bisect_left(self._bounds, amount)] += 1
        self.sum += amount

    def exceed(self, amount: float) -> None:
        """Counts one observation as over all bounds; its amount is in the sum as it is."""
        self.counts[-1] += 1
        self.sum += amount


class _Samples(Iterable[Sample]):
    """The samples of a family, made one by one as somebody reads them, each time anew."""

    def __init__(self, made: Callable[[], Iterator[Sample]]) -> None:
        self._made = made

    def __iter__(self) -> Iterator[Sample]:
        return self._made()


class _Tallies(Collector, Generic[Child]):
    _type: str

    def __init__(
        self,
        make: Callable[[], Child],
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        registry: CollectorRegistry,
    ) -> None:
        self._make: Callable[[], Child] = make
        self._name, self._documentation, self._labelnames = name, documentation, tuple(labelnames)
        self._children: dict[tuple[str, ...], Child] = {}
        registry.register(self)

    def labels(self, *values: str) -> Child:
        """The series of these labels, made when it is first asked for."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def remove(self, *values: str) -> None:
        """Drops a series; one that never existed is no error."""
        self._children.pop(values, None)

    def describe(self) -> Iterator[Metric]:
        """The family without samples: the registry sees to it that no other takes its name."""
        yield Metric(self._name, self._documentation, self._type)

    def collect(self) -> Iterator[Metric]:
        """The family; its samples are made as they are read."""
        (family,) = self.describe()
        family.samples = _Samples(self._samples)  # type: ignore[assignment]  # whoever reads it goes through it once
        yield family

    def _samples(self) -> Iterator[Sample]:
        for values, child in list(self._children.items()):
            yield from self._of(child, dict(zip(self._labelnames, values, strict=True)))

    def _of(self, child: Child, labels: Labels) -> Iterator[Sample]:
        raise NotImplementedError

    def _created(self, created: float, labels: Labels) -> Iterator[Sample]:
        if _CREATED:
            yield Sample(f"{self._name}_created", labels, created)


class Counts(_Tallies[Count]):
    """A counter with labels."""

    _type = "counter"

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(Count, name, documentation, labelnames, registry)

    def _of(self, child: Count, labels: Labels) -> Iterator[Sample]:
        yield Sample(f"{self._name}_total", labels, child.value)
        yield from self._created(child.created, labels)


class Levels(_Tallies[Level]):
    """A gauge with labels."""

    _type = "gauge"

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(Level, name, documentation, labelnames, registry)

    def _of(self, child: Level, labels: Labels) -> Iterator[Sample]:
        yield Sample(self._name, labels, child.value)


class Spreads(_Tallies[Spread]):
    """A histogram with labels."""

    _type = "histogram"

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str],
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        bounds = tuple(buckets)
        self._shown = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
        super().__init__(partial(Spread, bounds), name, documentation, labelnames, registry)

    def _of(self, child: Spread, labels: Labels) -> Iterator[Sample]:
        counts, total = list(accumulate(child.counts)), child.sum  # before anybody counts between two samples
        for shown, count in zip(self._shown, counts, strict=True):
            yield Sample(f"{self._name}_bucket", {**labels, "le": shown}, count)
        yield Sample(f"{self._name}_count", labels, counts[-1])
        yield Sample(f"{self._name}_sum", labels, total)
        yield from self._created(child.created, labels)
