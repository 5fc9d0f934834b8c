"""The metrics of several processes as those of one: pure functions over snapshots of their registries.

prometheus_client's own multiprocess mode keeps its numbers in files, and cannot remove a series; here every process
keeps a plain registry, and what they hold is added up when somebody asks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest

Key = tuple[str, tuple[tuple[str, str], ...]]
Rule = Callable[[float, float], float]
CUMULATIVE = ("counter", "histogram", "summary")
#: How two processes' values of a gauge become one. What stands here is a sum unless that would say nothing.
GAUGES: dict[str, Rule] = {
    "model_loaded": min,
    "inference_queue_depth": operator.add,
    "headway_batch_target_rows": min,
    "headway_servables_alive": operator.add,
    "headway_registry_staleness_seconds": max,
    "headway_feature_circuit": max,
    "headway_response_cache_bytes": operator.add,
    "process_virtual_memory_bytes": operator.add,
    "process_resident_memory_bytes": operator.add,
    "process_open_fds": operator.add,
    "process_max_fds": min,
    "process_start_time_seconds": min,
    "python_info": max,
}


class Collector(Protocol):
    """A registry, or anything else that gives families."""

    def collect(self) -> Iterable[Metric]:
        """The families, each with its samples."""
        ...


@dataclass(slots=True)
class Family:
    """One metric, and the value of each of its samples by name and labels."""

    name: str
    documentation: str
    type: str
    samples: dict[Key, float] = field(default_factory=dict)


Snapshot = dict[str, Family]


def snapshot(registry: Collector) -> Snapshot:
    """What a registry holds now."""
    return {metric.name: _family(metric) for metric in registry.collect()}


def _family(metric: Metric) -> Family:
    samples = {(s.name, tuple(s.labels.items())): float(s.value) for s in metric.samples}
    return Family(metric.name, metric.documentation, metric.type, samples)


def to_json(held: Snapshot) -> list[Any]:
    """A snapshot as plain lists, for another process."""
    return [
        [f.name, f.documentation, f.type, [[*key, value] for key, value in f.samples.items()]] for f in held.values()
    ]


def from_json(said: list[Any]) -> Snapshot:
    """What `to_json` made of a snapshot."""
    return {name: Family(name, text, kind, dict(map(_sample, samples))) for name, text, kind, samples in said}


def _sample(said: Sequence[Any]) -> tuple[Key, float]:
    name, labels, value = said
    return (name, tuple((label, word) for label, word in labels)), value


def rule_of(family: Family, sample: str) -> Rule:
    """How two values of a sample become one."""
    if family.type not in CUMULATIVE:
        return GAUGES.get(family.name, operator.add)
    return min if sample.endswith("_created") else operator.add


def add(total: Snapshot, held: Snapshot) -> None:
    """Merges one more snapshot into a total."""
    for name, family in held.items():
        whole = total.setdefault(name, Family(name, family.documentation, family.type))
        for key, value in family.samples.items():
            before = whole.samples.get(key)
            whole.samples[key] = value if before is None else rule_of(family, key[0])(before, value)


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """All of them as one."""
    total: Snapshot = {}
    for held in snapshots:
        add(total, held)
    return total


class _Held:
    def __init__(self, held: Snapshot) -> None:
        self._held = held

    def collect(self) -> Iterator[Metric]:
        for family in self._held.values():
            metric = Metric(family.name, family.documentation, family.type)
            for (name, labels), value in family.samples.items():
                metric.add_sample(name, dict(labels), value)
            yield metric


def exposition(held: Snapshot) -> bytes:
    """A snapshot in Prometheus's text format."""
    return generate_latest(_Held(held))
