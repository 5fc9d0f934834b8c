"""The pages of several processes as that of one: pure functions over Prometheus's text format.

prometheus_client's own multiprocess mode keeps its numbers in files, and cannot remove a series; here every process
keeps a plain registry, and what their pages say is added up when somebody asks, line by line.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.utils import floatToGoString

Rule = Callable[[float, float], float]
#: What goes on to count when its process is gone. When a series was `created` stands in a gauge of its own on the page.
CUMULATIVE = ("counter", "histogram", "summary", "created")
#: How two processes' values of a gauge become one. What stands here is a sum unless that would say nothing.
GAUGES: dict[str, Rule] = {
    "model_loaded": min,
    "headway_model_ready": min,
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


@dataclass(slots=True)
class Family:
    """One metric: the two lines above it, and the value of each of its samples by what stands before it in its line."""

    name: str
    head: str
    type: str
    samples: dict[str, float] = field(default_factory=dict)


Snapshot = dict[str, Family]


def parse(page: bytes) -> Snapshot:
    """What a page says: one that prometheus_client wrote, without timestamps."""
    held: Snapshot = {}
    text = ""
    for line in page.decode().split("\n"):
        if line.startswith("# HELP "):
            text = line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            family = held[name] = Family(name, f"{text}\n{line}\n", _type_of(name, kind, held))
        elif line:
            key, _, value = line.rpartition(" ")
            family.samples[key] = float(value)
    return held


def _type_of(name: str, kind: str, held: Snapshot) -> str:
    base = name.removesuffix("_created")
    return "created" if base != name and (base in held or f"{base}_total" in held) else kind


def rule_of(family: Family) -> Rule:
    """How two values of a sample become one."""
    if family.type == "created":
        return min
    return operator.add if family.type in CUMULATIVE else GAUGES.get(family.name, operator.add)


def add(total: Snapshot, held: Snapshot) -> None:
    """Merges one more snapshot into a total."""
    for name, family in held.items():
        whole, rule = total.setdefault(name, Family(name, family.head, family.type)).samples, rule_of(family)
        for key, value in family.samples.items():
            before = whole.get(key)
            whole[key] = value if before is None else rule(before, value)


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """All of them as one."""
    total: Snapshot = {}
    for held in snapshots:
        add(total, held)
    return total


def page_of(held: Snapshot) -> bytes:
    """A snapshot in Prometheus's text format."""
    return "".join(_lines(held)).encode()


def _lines(held: Snapshot) -> Iterator[str]:
    for family in held.values():
        if family.type != "created" or family.samples:  # the page has no empty one
            yield family.head
        for key, value in family.samples.items():
            yield f"{key} {floatToGoString(value)}\n"  # type: ignore[no-untyped-call]
