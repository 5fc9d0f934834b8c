"""What is counted of versions: the manager's `Watcher`, spoken to by managers, batchers, caches and processes."""

from __future__ import annotations

import asyncio
import logging

from monitoring.metrics import Metrics
from serving.lifecycle import State
from serving.runtimes.spawn import Ending

log = logging.getLogger("headway.server")
KEEP_SERIES_SECONDS = 900


class Recorder:
    """Turns state changes and batches into metrics (the manager's `Watcher`)."""

    def __init__(self, metrics: Metrics, keep_seconds: float = KEEP_SERIES_SECONDS) -> None:
        """What was counted of a version is forgotten `keep_seconds` after it is gone."""
        self._metrics, self._keep_seconds = metrics, keep_seconds
        self._forgetting: dict[tuple[str, str], asyncio.TimerHandle] = {}

    def state_changed(self, model: str, version: str, state: State) -> None:
        """Counts states; a version that comes back keeps its series."""
        self._metrics.states.labels(model, version, state).inc()
        self._keep(model, version)
        if state is State.READY:
            self._metrics.begin(model, version)

    def gone(self, model: str, version: str) -> None:
        """Drops a version's gauges at once, and its counters and histograms 900 s later."""
        self._metrics.unloaded(model, version)
        self._forget_later(model, version)

    def model_came(self, model: str) -> None:
        """A model that comes back keeps what was counted of no version of it."""
        self._keep(model, "")

    def model_gone(self, model: str) -> None:
        """Nobody holds a model any more: what was counted of no version of it goes as a version's counters do."""
        self._metrics.forget_model(model)
        self._forget_later(model, "")

    def _keep(self, model: str, version: str) -> None:
        if timer := self._forgetting.pop((model, version), None):
            timer.cancel()

    def _forget_later(self, model: str, version: str) -> None:
        self._keep(model, version)
        loop = asyncio.get_running_loop()
        self._forgetting[model, version] = loop.call_later(self._keep_seconds, self._forget, model, version)

    def _forget(self, model: str, version: str) -> None:
        del self._forgetting[model, version]
        self._metrics.forget(model, version)

    def batch(self, model: str, version: str, requests: int, rows: int, seconds: float) -> None:
        """One batch ran."""
        bound = self._metrics.bound(model, version)
        bound.batch_size.observe(rows)
        bound.batch_latency.observe(seconds)

    def overdue(self, model: str, version: str, seconds: float) -> None:
        """One batch runs in this process and cannot be stopped."""
        self._metrics.overdue.labels(model, version).inc()
        log.error("a prediction hangs", extra={"model": model, "version": version, "seconds": seconds})

    def asked(self, model: str, version: str, outcome: str) -> None:
        """A request asked the response cache."""
        self._metrics.cache_requests.labels(model, version, outcome).inc()

    def evicted(self, model: str, version: str, reason: str) -> None:
        """An answer left the response cache."""
        self._metrics.cache_evictions.labels(model, version, reason).inc()

    def lost(self, model: str, version: str, ending: Ending) -> None:
        """A version's process has to be started again. Called from any thread."""
        self._metrics.restarts.labels(model, version, ending).inc()
