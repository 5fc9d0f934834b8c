"""The metrics of several processes as those of one, and what is remembered of those that are gone."""

import math

import pytest
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)
from prometheus_client.exposition import generate_latest

from monitoring.ledger import Ledger
from monitoring.merge import CUMULATIVE, GAUGES, Snapshot, merge, page_of, parse
from monitoring.metrics import Metrics


class Process:
    """One process's registry with one metric of each kind."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.count = Counter("asked", "Questions", ("model",), registry=self.registry)
        self.time = Histogram("took_seconds", "Time", ("model",), buckets=(1, 2), registry=self.registry)
        self.gauges = {name: Gauge(name, "A gauge", registry=self.registry) for name in GAUGES}

    @property
    def held(self) -> Snapshot:
        """What it would send."""
        return parse(generate_latest(self.registry))


def value(held: Snapshot, name: str, **labels: str) -> float | None:
    """One sample, or None."""
    key = name + ("{" + ",".join(f'{k}="{v}"' for k, v in sorted(labels.items())) + "}" if labels else "")
    return next((family.samples[key] for family in held.values() if key in family.samples), None)


def test_one_process_is_shown_as_it_shows_itself() -> None:
    """To the byte, in the text format."""
    process = Process()
    process.count.labels('a "b} 1\n\\').inc(3)
    process.time.labels("ä").observe(1.5)
    assert page_of(process.held) == generate_latest(process.registry)


def test_counters_and_histograms_are_added_up() -> None:
    """Series that only one process has are there too; the creation is the first one's."""
    one, two = Process(), Process()
    one.count.labels("a").inc(2)
    two.count.labels("a").inc(40)
    two.count.labels("b").inc()
    for process, seconds in ((one, 0.5), (two, 1.5), (two, 9)):
        process.time.labels("a").observe(seconds)
    held = merge([one.held, two.held])
    assert (value(held, "asked_total", model="a"), value(held, "asked_total", model="b")) == (42, 1)
    buckets = [value(held, "took_seconds_bucket", model="a", le=le) for le in ("1.0", "2.0", "+Inf")]
    assert buckets == [1, 2, 3]
    assert (value(held, "took_seconds_count", model="a"), value(held, "took_seconds_sum", model="a")) == (3, 11)
    assert value(held, "asked_created", model="a") == value(one.held, "asked_created", model="a")


@pytest.mark.parametrize(
    ("gauge", "values", "expected"),
    [
        ("model_loaded", (1, 0), 0),
        ("inference_queue_depth", (3, 4), 7),
        ("headway_servables_alive", (1, 2), 3),
        ("headway_registry_staleness_seconds", (5, 900), 900),
        ("headway_feature_circuit", (0, 1), 1),
        ("headway_response_cache_bytes", (10, 20), 30),
        ("process_resident_memory_bytes", (100, 200), 300),
        ("process_start_time_seconds", (7, 5), 5),
        ("process_max_fds", (1024, 1024), 1024),
        ("python_info", (1, 1), 1),
    ],
)
def test_a_gauge_is_what_it_means_for_all(gauge: str, values: tuple[float, float], expected: float) -> None:
    """A sum where that says something, else the worst."""
    processes = [Process(), Process()]
    for process, each in zip(processes, values, strict=True):
        process.gauges[gauge].set(each)
    assert value(merge([process.held for process in processes]), gauge) == expected


def test_it_is_said_of_every_gauge() -> None:
    """Of ours, and of those that every process of Python has."""
    registry = Metrics(CollectorRegistry(), (), ()).registry
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    for family in registry.collect():
        assert family.type in CUMULATIVE or family.name in GAUGES, family.name


def test_numbers_that_are_none_survive() -> None:
    """Infinity and NaN are numbers on a page, and so are large ones, to the last digit."""
    process = Process()
    process.gauges["model_loaded"].set(math.inf)
    process.gauges["python_info"].set(math.nan)
    assert value(process.held, "model_loaded") == math.inf
    assert math.isnan(value(process.held, "python_info") or 0)
    for number in (1e6 + 0.1, 123456789.123456, 2.0**60, 1e300, 5e-324, -12345678.9):
        process.gauges["inference_queue_depth"].set(number)
        assert value(process.held, "inference_queue_depth") == number


def counting(number: float, model: str = "a") -> Snapshot:
    process = Process()
    process.count.labels(model).inc(number)
    process.gauges["inference_queue_depth"].set(number)
    return process.held


def test_a_worker_that_is_gone_still_counts() -> None:
    """What it counted stays; its gauges go; its successor begins at zero."""
    ledger = Ledger(900)
    ledger.note(1, counting(5), 0)
    ledger.note(2, counting(7), 0)
    ledger.retire(1, 10)
    ledger.note(3, counting(1), 20)
    held = ledger.merged(20)
    assert value(held, "asked_total", model="a") == 13
    assert value(held, "inference_queue_depth") == 8
    ledger.retire(9, 20)
    assert ledger.merged(20) == held


def test_a_series_that_is_still_shown_is_never_forgotten() -> None:
    """Whenever its worker ended: a counter must not go down."""
    ledger = Ledger(900)
    ledger.note(1, counting(5), 0)
    ledger.retire(1, 0)
    ledger.note(2, counting(1), 1)
    assert value(ledger.merged(10_000), "asked_total", model="a") == 6


def test_a_series_that_nobody_shows_is_forgotten_after_a_while() -> None:
    """900 s after the end of the worker that counted it, and if it comes back it begins anew."""
    ledger = Ledger(900)
    ledger.note(1, counting(5), 0)
    ledger.retire(1, 100)
    ledger.note(2, counting(1, "b"), 100)
    assert value(ledger.merged(999), "asked_total", model="a") == 5
    assert value(ledger.merged(1001), "asked_total", model="a") is None
    ledger.note(2, counting(2), 1100)
    assert value(ledger.merged(1100), "asked_total", model="a") == 2


def test_workers_drop_a_series_one_after_the_other_and_it_never_goes_down() -> None:
    """It is whole while one still shows it, and gone with the last one: they have kept it long enough."""
    ledger = Ledger(900)
    ledger.note(1, counting(5), 0)
    ledger.note(2, counting(7), 0)
    ledger.note(1, counting(0, "b"), 10)
    assert value(ledger.merged(10), "asked_total", model="a") == 12
    ledger.note(2, counting(0, "b"), 11)
    assert value(ledger.merged(11), "asked_total", model="a") is None
