"""Which requests `inference_request_latency_seconds` has, and in which of its buckets: told on a socket, over both lanes."""

import asyncio
from itertools import pairwise

import pytest

from monitoring.metrics import SECONDS
from tests.lanes import Listening, listening, predictions, request, rows, sized

pytestmark = pytest.mark.audit("22")
LABELS = {"model_name": "echo", "model_version": "1"}


def timed(server: Listening, suffix: str, **more: str) -> float:
    """One sample of the histogram, 0 if there is none."""
    name = f"inference_request_latency_seconds_{suffix}"
    return server.metrics.registry.get_sample_value(name, {**LABELS, **more}) or 0.0


def counted(server: Listening, name: str) -> float | None:
    return server.metrics.registry.get_sample_value(name, LABELS)


async def test_what_ran_past_its_deadline_is_slower_than_any_bound(lane: str) -> None:
    """Or a version that lets its slow requests time out would look fast. Its time is in the sum as it was."""
    async with listening(lane, inline=False) as server:
        server.runtime.gate.clear()
        late = sized(rows(1.0), "x-request-timeout-ms: 60", close=True)
        assert predictions(await server.say(late)) == [504]
        server.runtime.gate.set()
        assert [timed(server, "bucket", le=le) for le in ("10.0", "+Inf")] == [0, 1]
        assert timed(server, "count") == counted(server, "inference_request_timeouts_total") == 1
        assert 0.05 < timed(server, "sum") < 10


async def test_what_failed_in_the_model_or_before_it_has_its_time(lane: str) -> None:
    """It reached a version; what named a model that is not there did not."""
    async with listening(lane) as server:
        assert predictions(await server.say(sized(b"[", close=True))) == [400]
        assert predictions(await server.say(sized(rows(1.0), close=True))) == [[1.0]]
        await server.say(request(b"", "content-length: 0", path="/v1/models/none:predict", close=True))
        assert timed(server, "count") == counted(server, "model_predictions_total") == 2
        assert timed(server, "bucket", le="10.0") == 2


async def test_what_the_queue_refuses_has_none(lane: str) -> None:
    """A refusal takes microseconds, and would look like a fast answer; `inference_queue_rejections_total` has it."""
    async with listening(lane, inline=False, max_rows=1, max_queue=1) as server:
        server.runtime.gate.clear()
        batcher = server.manager.servables[0].batcher
        assert batcher is not None
        said = []
        for depth in (0, 1):
            said.append(asyncio.create_task(server.say(sized(rows(1.0), close=True))))
            await server.until(lambda depth=depth: batcher.running == 1 and batcher.depth == depth)
        assert predictions(await server.say(sized(rows(2.0), close=True))) == [503]
        assert counted(server, "inference_queue_rejections_total") == 1
        server.runtime.gate.set()
        for task in said:
            await task
        assert timed(server, "count") == 2


def test_the_bounds_tell_fast_answers_apart() -> None:
    """From a tenth of a millisecond to ten seconds, and no bound is more than 1.7 times the one before it."""
    assert (SECONDS[0], SECONDS[-1], len(SECONDS)) == (0.0001, 10.0, 31)
    assert all(1.3 < above / below < 1.7 for below, above in pairwise(SECONDS))


async def test_a_ready_version_has_its_counters_at_zero() -> None:
    """Prometheus sees no increase from nothing to one."""
    async with listening("protocol") as server:
        for name in (
            "model_predictions_total",
            "headway_rows_total",
            "inference_queue_rejections_total",
            "inference_request_timeouts_total",
        ):
            assert counted(server, name) == 0, name
