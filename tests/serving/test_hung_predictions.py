"""A call that does not return loses its thread, and a version that has too many of them its place."""

import asyncio
import json
import threading

import numpy as np
import pytest

from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.lifecycle import State
from serving.predicting import LOST, MOST_HUNG, MOST_LOST
from serving.runtimes.base import Engine, Outputs, Want
from tests.lanes import Listening, answers, listening, predictions, request, rows, sized

HANGS = -1.0


class Tar:
    """Answers each row with itself; a negative one keeps the call until `gate` is opened."""

    classes = None
    engine = Engine("tar")

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.stuck = 0

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        column = arrays[0][:, 0].copy()
        if (column < 0).any():
            self.stuck += 1
            self.gate.wait(60)
        return Outputs(rows, column)

    def close(self) -> None:
        pass


async def ask(b: Batcher, value: float) -> float:
    outputs, _ = await b.predict((np.array([[value]]),), 1, Want.LABELS, None)
    assert outputs.labels is not None
    return float(outputs.labels[0])


@pytest.mark.audit("29")
async def test_another_thread_takes_the_place_of_one_that_hangs() -> None:
    """Who comes later is answered; so is who still waits, should the call return."""
    runtime = Tar()
    b = Batcher(runtime, BatchingLimits(), 10.0, lambda *_: None, hang_seconds=0.02)
    stuck = asyncio.create_task(ask(b, HANGS))
    async with asyncio.timeout(10):
        while not runtime.stuck:
            await asyncio.sleep(0.001)
        assert [await ask(b, float(i)) for i in range(3)] == [0.0, 1.0, 2.0]
        assert not stuck.done()
        runtime.gate.set()
        assert await stuck == HANGS
        assert await ask(b, 4.0) == 4.0
    assert b.running == 0
    b.close()


@pytest.mark.audit("29")
async def test_no_more_threads_are_lost_than_the_bound() -> None:
    """Then the version is given up on, once, with a reason; what returned meanwhile does not count."""
    runtime, reasons = Tar(), list[str]()
    b = Batcher(runtime, BatchingLimits(max_rows=1), 10.0, lambda *_: None, hang_seconds=0.02, given_up=reasons.append)
    first = [asyncio.create_task(ask(b, HANGS)) for _ in range(MOST_HUNG - 1)]
    async with asyncio.timeout(10):
        assert await ask(b, 1.0) == 1.0
        runtime.gate.set()
        await asyncio.gather(*first)
        runtime.gate.clear()
        rest = [asyncio.create_task(ask(b, HANGS)) for _ in range(MOST_HUNG)]
        while not reasons:
            await asyncio.sleep(0.002)
    assert runtime.stuck == MOST_HUNG - 1 + MOST_HUNG
    (reason,) = reasons
    assert "3 of its predictions hang" in reason
    assert "hang_seconds (0.02)" in reason
    runtime.gate.set()
    await asyncio.gather(*rest)
    b.close()


async def hang(server: Listening, count: int) -> None:
    """So many requests hang, one after the other, and are late."""
    for _ in range(count):
        heard = await server.say(sized(rows(HANGS), "x-request-timeout-ms: 30", close=True))
        assert answers(heard)[0][0] == 504


@pytest.mark.audit("29")
async def test_a_version_whose_predictions_hang_is_replaced_and_then_not_ready() -> None:
    """It answers between two that hang; after three it is FAILED and loaded again; after three more no thread is risked, and
    readiness says so, as long as they hang."""
    runtime = Tar()
    async with listening("protocol", runtime=runtime, inline=False, hang_seconds=0.05) as server:
        manager = server.manager
        for _ in range(2):
            before = manager.servables[0]
            for _ in range(MOST_HUNG - 1):
                await hang(server, 1)
                assert predictions(await server.say(sized(rows(2.0), close=True))) == [[2.0]]
            await hang(server, 1)
            await server.until(lambda before=before: before.state is State.FAILED)
            if LOST.count("echo", "1") < MOST_LOST:
                await server.until(lambda: manager.current is not None)
        await server.until(lambda: "hold their threads" in str(manager.servables[0].reason))
        heard = await server.say(request(path="/ready", method="GET", close=True))
        assert answers(heard)[0][0] == 503
        ((status, _, body),) = answers(await server.say(sized(rows(2.0), close=True)))
        assert (status, "isolation: process" in json.loads(body)["error"]) == (503, True)
        assert runtime.stuck == MOST_LOST
        runtime.gate.set()
        await server.until(lambda: LOST.count("echo", "1") == 0)
        LOST.check("echo", "1")
