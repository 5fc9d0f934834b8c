"""How a lookup ended, as it is counted."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry

from features.breaker import Breaker
from features.coalescing import Store
from features.errors import FeaturesUnavailable
from features.lookup import FeastLookup, Need
from features.service import Service
from features.threads import Threads
from monitoring.metrics import Metrics
from serving.completing import look_up
from tests.features.test_coalescing import VIEW, Held


@pytest.mark.audit("21")
async def test_a_client_that_hangs_up_is_no_error_of_the_store() -> None:
    """Its lookup was cancelled, and an alert on errors of the store stays silent; one that ended in an error counts as such."""
    reader = Held()
    service = Service("service", (VIEW,), {"value": (VIEW, "value")}, {})
    lookup = FeastLookup(Store(reader, Breaker(), 20), service, {"value": ("double", True)}, (), Threads(1, "unused"))
    metrics = Metrics(CollectorRegistry(), (), ())

    def outcomes() -> dict[str, float]:
        (family,) = metrics.lookups.collect()
        return {s.labels["outcome"]: s.value for s in family.samples if s.name.endswith("_total")}

    need = Need(("value",), 1, {"id": [1]}, 20.0)
    asked = asyncio.create_task(look_up(lookup, need, metrics, ("m", "1")))
    while not reader.asked:
        await asyncio.sleep(0)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    assert outcomes() == {"cancelled": 1}
    reader.error = OSError("gone")
    reader.gate.set()
    with pytest.raises(FeaturesUnavailable):
        await look_up(lookup, need, metrics, ("m", "1"))
    assert outcomes() == {"cancelled": 1, "error": 1}
