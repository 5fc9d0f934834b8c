"""The series of the supervisor itself: how many workers answer, and why some had to be started again."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge


class CrewMetrics:
    """Registered once in `registry`. `reasons` is the closed set of why workers end."""

    def __init__(self, registry: CollectorRegistry, reasons: Sequence[str]) -> None:
        self.workers = Gauge("headway_workers", "Workers that listen", registry=registry)
        self.restarts = Counter(
            "headway_worker_restarts", "Workers that ended and are started again", ("reason",), registry=registry
        )
        for reason in reasons:
            self.restarts.labels(reason)
