"""The page in pieces is the page, whatever happens between two of them."""

import pytest
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary
from prometheus_client.exposition import generate_latest

from monitoring.metrics import Metrics
from monitoring.page import PIECE, pieces

pytestmark = pytest.mark.audit("18")


def many(versions: int) -> Metrics:
    """As many versions of a model as that, each with what a request counts."""
    metrics = Metrics(CollectorRegistry(), ["deadline"], ["READY"], ["crashed"])
    for number in map(str, range(versions)):
        bound = metrics.bound("m", number)
        bound.predictions.inc()
        for histogram in (bound.latency, bound.request_latency, bound.batch_size, bound.batch_latency):
            histogram.observe(0.001)
        metrics.failed("m", number, "deadline")
        metrics.states.labels("m", number, "READY").inc()
        metrics.loaded.labels("m", number).set(1)
        metrics.restarts.labels("m", number, "crashed").inc()
    return metrics


def of_the_library() -> CollectorRegistry:
    """Every kind that it has, with and without labels, with nothing in it and with more than one piece takes."""
    registry = CollectorRegistry()
    Counter("none", "Never\nasked \\ for", ("a",), registry=registry)
    Info("build", "What it is", registry=registry).info({"version": '1 "\\\n'})
    Enum("state", "Where it is", states=["on", "off"], registry=registry)
    for cls in (Counter, Gauge, Summary, Histogram):
        name = cls.__name__.lower()
        cls(f"plain_{name}", "Without labels", registry=registry)
        labelled = cls(f"many_{name}", "With labels", ("b", "a"), registry=registry)
        for i in range(3 * PIECE + 1):
            labelled.labels("ü", str(i))
    return registry


@pytest.mark.parametrize("registry", [of_the_library(), many(3 * PIECE + 1).registry], ids=["library", "ours"])
def test_the_pieces_are_the_page(registry: CollectorRegistry) -> None:
    """To the byte, and none of them is long, however many versions there are."""
    made = list(pieces(registry))
    assert b"".join(made) == generate_latest(registry)
    assert max(piece.count(b"\n") for piece in made) <= PIECE + 2


def test_a_version_that_is_forgotten_meanwhile_breaks_nothing() -> None:
    """The others are whole."""
    metrics, written = many(200), []
    for at, piece in enumerate(pieces(metrics.registry)):
        written.append(piece)
        if at < 150:
            metrics.unloaded("m", str(at))
            metrics.forget("m", str(at))
            metrics.bound("m", str(1000 + at)).predictions.inc()
    text = b"".join(written).decode()
    for suffix in ("bucket", "count", "sum", "created"):
        assert f"inference_batch_latency_seconds_{suffix}{{" in text
    assert 'inference_batch_latency_seconds_count{model_name="m",model_version="199"} 1.0' in text
