"""What a request costs before it reaches its version: no task for what is READY, and nothing made of all names."""

import asyncio
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from registry.policies import EveryCarrier
from serving.calls import Answer, Call, Decoded
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS, BadRequest
from serving.herd import Herd
from serving.lifecycle import State
from serving.loading import Loaded
from serving.poller import Poller
from serving.transport.grpc_health import Health
from tests.serving.test_fleet import Hall, running, until

NAMES = 10_000


class Refused:
    """A request that gets as far as its version, and is refused there."""

    may_hurry, size = False, 1

    def decode(self, loaded: Loaded) -> Decoded:
        raise BadRequest(f"by version {loaded.runtime.predict((), 1, ...).labels[0]:g}")  # type: ignore[arg-type, index]

    def decode_at_once(self, loaded: Loaded) -> Decoded | None:
        return None

    def decode_slices(self, loaded: Loaded, pace: Callable[[], None]) -> Decoded:
        raise NotImplementedError

    def encode(self, answer: Answer) -> bytes:
        raise NotImplementedError


def plane_of(hall: Hall) -> DataPlane:
    metrics = Metrics(CollectorRegistry(), REASONS, [s.value for s in State], [])
    return DataPlane(hall.fleet, metrics, Alone(hall.fleet, metrics))


@pytest.mark.audit("17")
@pytest.mark.parametrize(
    ("named", "answers"),
    [
        ({"version": "2"}, "2"),
        ({"version": "1"}, "1"),
        ({"label": "champion"}, "1"),
        ({"label": "challenger"}, "2"),
        ({}, "1"),
    ],
)
async def test_a_version_that_is_ready_is_asked_without_a_task(named: dict[str, str], answers: str) -> None:
    """Of a model on demand, by number, by alias, or as it is: the answer is there before the call returns."""
    hall = Hall("m")
    hall.registry.add("m", challenger="2")
    async with running(hall):
        await hall.ask("m")
        await hall.ask("m", label="challenger")
        heard: list[Any] = []
        before = asyncio.all_tasks()
        plane_of(hall).start(Call("m", **named), Refused(), heard.append)
        assert [str(error) for error in heard] == [f"by version {answers}"]
        assert asyncio.all_tasks() == before


@pytest.mark.audit("17")
async def test_what_is_not_known_is_summoned() -> None:
    """A label that was not asked for yet, and a version that is not loaded, take the longer way and are answered."""
    hall = Hall("m")
    hall.registry.add("m", challenger="2")
    async with running(hall):
        await hall.ask("m")
        for named, answers in (({"label": "challenger"}, "2"), ({"version": "3"}, "3")):
            heard: list[Any] = []
            plane_of(hall).start(Call("m", **named), Refused(), heard.append)
            assert heard == []
            await until(lambda heard=heard: heard)  # type: ignore[misc]
            assert str(heard[0]) == f"by version {answers}"


@pytest.mark.audit("20")
async def test_nothing_that_a_request_needs_is_made_of_all_names() -> None:
    """With ten thousand names of a herd, finding one, knowing one, and a health check take next to no memory."""
    hall = Hall()
    herd = Herd(EveryCarrier("champion"), frozenset())
    poller = Poller(hall.registry, herd.policy, herd, 3600, lambda name, ok: None)
    hall.fleet.follow(herd, poller, hall.seat, hall.forgotten.append)
    for i in range(NAMES):
        hall.registry.add(f"m-{i}", "1", champion="1")
    herd.aspire(hall.registry.catalogue(herd.policy))
    plane = plane_of(hall)
    health = Health(plane, "inference")
    assert plane.manager("m-7").name == "m-7"
    tracemalloc.start()
    try:
        for name in ("m-7", "m-8"):
            plane.manager(name)
            assert plane.knows(name)
            await health.Check(HealthCheckRequest(service=name), None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20 * NAMES  # a set of them takes fifty bytes for each
