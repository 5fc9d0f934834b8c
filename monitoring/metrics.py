"""Every metric in one place: name, labels, buckets, help.

Label sets are closed: model names are the configured ones (anything else is counted as `model_name=""`), reasons come
from the error table. When a version is unloaded its gauges go at once; `forget` drops the rest later.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitoring.page import pieces
from monitoring.tally import Counts, Levels, Spreads

VERSION = ("model_name", "model_version")
#: From a tenth of a millisecond: cheap models answer in less than half of one. Neighbours are so near that what is half as
#: slow again can be told.
SECONDS = (
    0.0001, 0.00015, 0.0002, 0.0003, 0.0005, 0.0007,
    0.001, 0.0015, 0.002, 0.003, 0.005, 0.007,
    0.01, 0.015, 0.02, 0.03, 0.05, 0.07,
    0.1, 0.15, 0.2, 0.3, 0.5, 0.7,
    1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0,
)  # fmt: skip
#: What can be amiss with a looked-up value, and what is done about it.
CAUSES = ("missing", "null", "stale", "outage")
ACTIONS = ("error", "null", "default", "last_good")
#: What becomes of a feature lookup; nobody waits any more for one that was cancelled.
LOOKUPS = ("ok", "error", "cancelled")
#: What the response cache says to a request, and why an answer leaves it.
FOUND = ("hit", "miss")
EVICTIONS = ("room", "age")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Bound:
    """The children of one version's metrics, looked up once: nothing is allocated per request."""

    def __init__(self, metrics: Metrics, model: str, version: str) -> None:
        self.predictions = metrics.predictions.labels(model, version)
        self.latency = metrics.latency.labels(model, version)
        self.request_latency = metrics.request_latency.labels(model, version)
        self.rows = metrics.rows.labels(model, version)
        self.batch_size = metrics.batch_size.labels(model, version)
        self.batch_latency = metrics.batch_latency.labels(model, version)


class Metrics:
    """All of Headway's series, registered once in `registry`."""

    def __init__(
        self, registry: CollectorRegistry, reasons: Sequence[str], states: Sequence[str], endings: Sequence[str] = ()
    ) -> None:
        self.registry, self._reasons, self._states = registry, tuple(reasons), tuple(states)
        self._endings = tuple(endings)
        r = registry
        self.predictions = Counts(
            "model_predictions", "Requests that reached a model, failed ones included", VERSION, registry=r
        )
        self.latency = Spreads(
            "model_prediction_latency_seconds",
            "Runtime of the batch that carried the request",
            VERSION,
            buckets=SECONDS,
            registry=r,
        )
        self.errors = Counts(
            "model_prediction_errors", "Requests that failed, by reason", (*VERSION, "error_type"), registry=r
        )
        self.loaded = Levels("model_loaded", "1 READY, 0 aspired but not READY", VERSION, registry=r)
        self.request_latency = Spreads(
            "inference_request_latency_seconds", "Last byte in to first byte out", VERSION, buckets=SECONDS, registry=r
        )
        self.batch_size = Spreads("inference_batch_size", "Rows per batch", VERSION, buckets=ROWS, registry=r)
        self.batch_latency = Spreads(
            "inference_batch_latency_seconds", "Runtime of a batch", VERSION, buckets=SECONDS, registry=r
        )
        self.queue_depth = Levels("inference_queue_depth", "Rows that wait for the runtime", VERSION, registry=r)
        self.target_rows = Levels("headway_batch_target_rows", "Rows that a batch may have now", VERSION, registry=r)
        self.rejections = Counts("inference_queue_rejections", "Requests shed at the watermark", VERSION, registry=r)
        self.timeouts = Counts("inference_request_timeouts", "Requests past their deadline", VERSION, registry=r)
        self.rows = Counts("headway_rows", "Rows answered", VERSION, registry=r)
        self.states = Counts("headway_state_changes", "Servables that entered a state", (*VERSION, "state"), registry=r)
        self.restarts = Counter(  # counted from any thread
            "headway_process_restarts",
            "Processes of a version that ended and are started again, by reason",
            (*VERSION, "reason"),
            registry=r,
        )
        self.overdue = Counts(
            "headway_predictions_overdue", "Batches in this process that ran past hang_seconds", VERSION, registry=r
        )
        self.alive = Levels(
            "headway_servables_alive",
            "Servables in memory, unloaded ones that are still referenced included",
            ("model_name",),
            registry=r,
        )
        self.model_ready = Levels(
            "headway_model_ready", "1 while a version answers for the model, else 0", ("model_name",), registry=r
        )
        self.staleness = Levels(
            "headway_registry_staleness_seconds", "Since the registry last answered", ("model_name",), registry=r
        )
        self.polls = Counts(
            "headway_registry_polls", "Questions to the registry, by outcome", ("model_name", "outcome"), registry=r
        )
        self.refusals = Counter(
            "headway_http_refusals",
            "Requests that HTTP turned away before a model was asked, by reason",
            ("reason",),
            registry=r,
        )
        self.webhooks = Counter("headway_webhooks", "Deliveries of the webhook, by outcome", ("outcome",), registry=r)
        self.lookups = Counts(
            "headway_feature_lookups", "Feature lookups, by outcome", (*VERSION, "outcome"), registry=r
        )
        self.feature_rows = Counts(
            "headway_feature_rows",
            "Values that a policy had to decide on, by cause and action",
            (*VERSION, "cause", "action"),
            registry=r,
        )
        self.reads = Counter("headway_feature_reads", "Reads of the online store, by outcome", ("outcome",), registry=r)
        self.read_latency = Histogram(
            "headway_feature_read_seconds", "Time of one read of the online store", buckets=SECONDS, registry=r
        )
        self.read_entities = Histogram(
            "headway_feature_read_entities", "Entities per read of the online store", buckets=ROWS, registry=r
        )
        self.circuit = Gauge(
            "headway_feature_circuit", "1 for the state that the online store's breaker is in", ("state",), registry=r
        )
        self.circuit_changes = Counter(
            "headway_feature_circuit_changes", "Changes of the online store's breaker", ("state",), registry=r
        )
        self.cache_requests = Counts(
            "headway_response_cache_requests",
            "Requests that asked the response cache, by what it said",
            (*VERSION, "outcome"),
            registry=r,
        )
        self.cache_evictions = Counts(
            "headway_response_cache_evictions",
            "Answers that left the response cache, by reason",
            (*VERSION, "reason"),
            registry=r,
        )
        self.cache_bytes = Levels(
            "headway_response_cache_bytes", "What the answers in the response cache take", VERSION, registry=r
        )
        self.lookup_latency = Spreads(
            "headway_feature_lookup_seconds", "Time of one feature lookup", VERSION, buckets=SECONDS, registry=r
        )
        self.bound = lru_cache(maxsize=1024)(lambda model, version: Bound(self, model, version))

    def failed(self, model: str, version: str, reason: str) -> None:
        """Counts a request that failed; what never reached a version has `version=""`."""
        self.errors.labels(model, version, reason).inc()

    def begin(self, model: str, version: str) -> None:
        """Has the counters of a version that may be asked stand at zero: a rate needs a first value, and what scales or
        alerts by one needs a number where nothing has happened."""
        for metric in (self.predictions, self.rows, self.rejections, self.timeouts, self.overdue):
            metric.labels(model, version)
        for reason in self._reasons:
            self.errors.labels(model, version, reason)

    def unloaded(self, model: str, version: str) -> None:
        """Drops the gauges of a version that is gone."""
        for gauge in (self.loaded, self.queue_depth, self.target_rows, self.cache_bytes):
            _remove(gauge, (model, version))

    def forget_model(self, model: str) -> None:
        """Drops what is known of a model whatever its versions."""
        for gauge in (self.alive, self.staleness, self.model_ready):
            _remove(gauge, (model,))
        for outcome in ("ok", "error"):
            _remove(self.polls, (model, outcome))

    def forget(self, model: str, version: str) -> None:
        """Drops every series of a version; its counters restart at zero if it ever comes back."""
        pair = (model, version)
        for metric in (
            self.predictions, self.latency, self.request_latency, self.batch_size, self.batch_latency,
            self.rejections, self.timeouts, self.rows, self.lookup_latency, self.overdue,
        ):  # fmt: skip
            _remove(metric, pair)
        for reason in self._reasons:
            _remove(self.errors, (*pair, reason))
        for state in self._states:
            _remove(self.states, (*pair, state))
        for ending in self._endings:
            _remove(self.restarts, (*pair, ending))
        for outcome in LOOKUPS:
            _remove(self.lookups, (*pair, outcome))
        for labels in product(CAUSES, ACTIONS):
            _remove(self.feature_rows, (*pair, *labels))
        for outcome in FOUND:
            _remove(self.cache_requests, (*pair, outcome))
        for reason in EVICTIONS:
            _remove(self.cache_evictions, (*pair, reason))
        self.bound.cache_clear()

    def exposition(self) -> Iterator[bytes]:
        """All series in Prometheus's text format, in pieces that take a fraction of a millisecond each."""
        return pieces(self.registry)


def _remove(metric: Counter | Counts | Levels | Spreads, labels: tuple[str, ...]) -> None:
    """Removes a child; one that never existed is no error."""
    metric.remove(*labels)
