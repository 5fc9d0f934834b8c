"""Counters and histograms of what happens in every request: prometheus_client's, less the lock and the checks.

Only the event loop counts in them, so nothing can be lost between a read and a write; any thread may collect. What they
export is what prometheus_client's own would (ADR 64).
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

#: prometheus_client's own switch
_CREATED = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")
Child = TypeVar("Child", "Count", "Spread")


class Count:
    """One series of a counter."""

    __slots__ = ("created", "value")

    def __init__(self) -> None:
        self.value, self.created = 0.0, time.time()

    def inc(self, amount: float = 1.0) -> None:
        """Adds `amount`, which is not negative."""
        self.value += amount


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


class _Tallies(Collector, Generic[Child]):
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


class Counts(_Tallies[Count]):
    """A counter with labels."""

    def __init__(self, name: str, documentation: str, labelnames: Sequence[str], registry: CollectorRegistry) -> None:
        super().__init__(Count, name, documentation, labelnames, registry)

    def describe(self) -> Iterator[CounterMetricFamily]:
        """The family without samples: the registry sees to it that no other takes its name."""
        yield CounterMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterator[Metric]:
        """The family, with a sample for each series."""
        (family,) = self.describe()
        for values, child in list(self._children.items()):
            family.add_metric(values, child.value, created=child.created if _CREATED else None)
        yield family


class Spreads(_Tallies[Spread]):
    """A histogram with labels."""

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

    def describe(self) -> Iterator[HistogramMetricFamily]:
        """The family without samples."""
        yield HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterator[Metric]:
        """The family, with the samples of each series."""
        (family,) = self.describe()
        for values, child in list(self._children.items()):
            buckets = list(zip(self._shown, accumulate(child.counts), strict=True))
            family.add_metric(values, buckets, child.sum)
            if _CREATED:
                labels = dict(zip(self._labelnames, values, strict=True))
                family.add_sample(f"{self._name}_created", labels, child.created)
        yield family
