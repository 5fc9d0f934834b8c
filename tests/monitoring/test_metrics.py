"""The names are the contract's to the letter, and a version that is gone leaves nothing behind."""

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from monitoring.metrics import Metrics

PAIR = ("m", "3")
CONTRACT = {
    "model_predictions_total": {"model_name", "model_version"},
    "model_prediction_latency_seconds_bucket": {"model_name", "model_version", "le"},
    "model_prediction_errors_total": {"model_name", "model_version", "error_type"},
    "model_loaded": {"model_name", "model_version"},
    "inference_request_latency_seconds_bucket": {"model_name", "model_version", "le"},
    "inference_batch_size_bucket": {"model_name", "model_version", "le"},
    "inference_batch_latency_seconds_bucket": {"model_name", "model_version", "le"},
    "inference_queue_depth": {"model_name", "model_version"},
    "inference_queue_rejections_total": {"model_name", "model_version"},
    "inference_request_timeouts_total": {"model_name", "model_version"},
    "headway_rows_total": {"model_name", "model_version"},
}


def samples(metrics: Metrics) -> dict[str, list[dict[str, str]]]:
    """Labels of every sample, by the name it has on the wire."""
    found: dict[str, list[dict[str, str]]] = {}
    for family in text_string_to_metric_families(b"".join(metrics.exposition()).decode()):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.labels)
    return found


@pytest.fixture
def metrics() -> Metrics:
    """Every series of one version, and some of another that stays."""
    metrics = Metrics(CollectorRegistry(), ["deadline", "internal"], ["READY", "FAILED"])
    for pair in (PAIR, ("m", "4")):
        bound = metrics.bound(*pair)
        bound.predictions.inc()
        for histogram in (bound.latency, bound.request_latency, bound.batch_size, bound.batch_latency):
            histogram.observe(1)
        bound.rows.inc()
        metrics.loaded.labels(*pair).set(1)
        metrics.queue_depth.labels(*pair).set(0)
        metrics.target_rows.labels(*pair).set(32)
        metrics.rejections.labels(*pair).inc()
        metrics.timeouts.labels(*pair).inc()
        metrics.failed(*pair, "deadline")
        metrics.states.labels(*pair, "READY").inc()
        metrics.lookups.labels(*pair, "ok").inc()
        metrics.lookup_latency.labels(*pair).observe(1)
        metrics.cache_requests.labels(*pair, "hit").inc()
        metrics.cache_evictions.labels(*pair, "room").inc()
        metrics.cache_bytes.labels(*pair).set(1)
    return metrics


def versions(metrics: Metrics) -> set[str]:
    return {
        labels["model_version"] for group in samples(metrics).values() for labels in group if "model_version" in labels
    }


@pytest.mark.parametrize("name", CONTRACT)
def test_a_series_has_the_name_and_the_labels_of_the_contract(metrics: Metrics, name: str) -> None:
    """Alerts and dashboards rely on both."""
    assert all(set(labels) == CONTRACT[name] for labels in samples(metrics)[name])


def test_everything_else_is_under_headways_own_name(metrics: Metrics) -> None:
    """So that nothing collides with a team's own series."""
    known = {name.removesuffix("_bucket") for name in CONTRACT}
    for name in samples(metrics):
        plain = name.removesuffix("_created").removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")
        assert name.startswith("headway_") or plain in known or f"{plain}_total" in known


def test_the_gauges_of_an_unloaded_version_go_at_once(metrics: Metrics) -> None:
    """Its counters stay, so that the last scrape sees them."""
    metrics.unloaded(*PAIR)
    for gauge in ("model_loaded", "inference_queue_depth", "headway_batch_target_rows", "headway_response_cache_bytes"):
        assert [labels["model_version"] for labels in samples(metrics)[gauge]] == ["4"]
    assert {"model_name": "m", "model_version": "3"} in samples(metrics)["model_predictions_total"]


def test_a_forgotten_version_leaves_no_series(metrics: Metrics) -> None:
    """The other version's stay, and if it comes back its counters begin at zero."""
    metrics.unloaded(*PAIR)
    metrics.forget(*PAIR)
    assert versions(metrics) == {"4"}
    metrics.bound(*PAIR).predictions.inc()
    text = b"".join(metrics.exposition()).decode()
    assert 'model_predictions_total{model_name="m",model_version="3"} 1.0' in text


def test_forgetting_what_never_was_is_no_error(metrics: Metrics) -> None:
    """A version may fail before it had any series."""
    before = samples(metrics)
    metrics.unloaded("m", "77")
    metrics.forget("m", "77")
    assert samples(metrics) == before
