"""What is counted without a lock is exported as prometheus_client's own metrics would be."""

import re

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from monitoring.tally import Counts, Levels, Spreads

LABELS, BOUNDS = ("model_name", "model_version"), (0.5, 1.0, 2.5, 10.0)


def exported(counter: type[Counter | Counts], gauge: type[Gauge | Levels], histogram: type[Histogram | Spreads]) -> str:
    """Two series of each, one of them emptied again, and what the text format says; but for the times of creation."""
    registry = CollectorRegistry()
    asked = counter("asked", "Requests", LABELS, registry=registry)
    depth = gauge("depth", "Rows", LABELS, registry=registry)
    taken = histogram("taken_seconds", "Time", LABELS, buckets=BOUNDS, registry=registry)
    for version in ("1", "2", "3"):
        asked.labels("m", version).inc()
        asked.labels("m", version).inc(2)
        depth.labels("m", version).set(True)
        for seconds in (0.0, 0.4, 0.5, 0.7, 2.5, 10.0, 11.0):
            taken.labels("m", version).observe(seconds)
    taken.labels('a "name"\\', "1")
    for metric in (asked, depth, taken):
        metric.remove("m", "2")
    return re.sub(r"(_created\{.*\}) \S+", r"\1 then", generate_latest(registry).decode())


def test_the_text_is_that_of_the_library() -> None:
    """Names, labels, buckets and sums, to the letter."""
    text = exported(Counts, Levels, Spreads)
    assert text == exported(Counter, Gauge, Histogram)
    assert 'taken_seconds_bucket{le="2.5",model_name="m",model_version="1"} 5.0' in text


def test_a_name_cannot_be_taken_twice() -> None:
    """The registry knows ours as it knows the library's."""
    registry = CollectorRegistry()
    Counts("asked", "Requests", LABELS, registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Counter("asked", "Requests", LABELS, registry=registry)
    Levels("depth", "Rows", LABELS, registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Gauge("depth", "Rows", LABELS, registry=registry)
    Spreads("taken_seconds", "Time", LABELS, BOUNDS, registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Histogram("taken_seconds", "Time", LABELS, registry=registry)


def test_a_series_is_of_one_moment_though_others_count_while_it_is_read() -> None:
    """Who writes a page lets the loop run between two samples: the buckets still add up to the count."""
    taken = Spreads("taken_seconds", "Time", LABELS, BOUNDS, CollectorRegistry())
    taken.labels("m", "1").observe(0.1)
    (family,) = taken.collect()
    read = []
    for sample in family.samples:
        taken.labels("m", "1").observe(0.1)
        read.append(sample.value)
    assert read[:-1] == [1, 1, 1, 1, 1, 1, 0.1]
