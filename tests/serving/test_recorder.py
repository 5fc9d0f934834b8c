"""What the recorder remembers of versions and models that are gone: nothing, after a while."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from serving.errors import REASONS
from serving.lifecycle import State
from serving.recorder import Recorder

pytestmark = pytest.mark.audit("14")
KEEP = 0.05


@pytest_asyncio.fixture
async def metrics() -> AsyncIterator[Metrics]:
    yield Metrics(CollectorRegistry(), REASONS, [state.value for state in State])


def errors(metrics: Metrics, model: str, version: str) -> float | None:
    labels = {"model_name": model, "model_version": version, "error_type": "not_ready"}
    return metrics.registry.get_sample_value("model_prediction_errors_total", labels)


async def until_forgotten(metrics: Metrics, model: str, version: str) -> None:
    async with asyncio.timeout(10):
        while errors(metrics, model, version) is not None:
            await asyncio.sleep(0.005)


async def test_a_thousand_versions_that_came_and_went_leave_nothing(metrics: Metrics) -> None:
    """Neither a series nor an entry of the recorder's own."""
    recorder = Recorder(metrics, KEEP)
    for number in map(str, range(1000)):
        recorder.state_changed("m", number, State.READY)
        metrics.failed("m", number, "not_ready")
        recorder.gone("m", number)
    await until_forgotten(metrics, "m", "999")
    held = [o for o in gc.get_referents(recorder.__dict__) if isinstance(o, dict)]
    assert [len(each) for each in held] == [0]


async def test_what_reached_no_version_of_a_model_is_forgotten_with_the_model(metrics: Metrics) -> None:
    """One of ten thousand names that was asked for once must not stay on the page for ever."""
    recorder = Recorder(metrics, KEEP)
    metrics.failed("m", "", "not_ready")
    recorder.model_gone("m")
    assert errors(metrics, "m", "") == 1
    await until_forgotten(metrics, "m", "")


async def test_a_model_that_comes_back_keeps_its_counts(metrics: Metrics) -> None:
    """A counter that went down would be read as a restart."""
    recorder = Recorder(metrics, KEEP)
    metrics.failed("m", "", "not_ready")
    metrics.failed("other", "", "not_ready")
    recorder.model_gone("m")
    recorder.model_gone("other")
    recorder.model_came("m")
    await until_forgotten(metrics, "other", "")
    assert errors(metrics, "m", "") == 1
