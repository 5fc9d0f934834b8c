"""Where a version's batches run: tables of what they took, and a loop that a slow row must not hold twice."""

import asyncio
import threading
import time

import numpy as np
import pytest

from serving.placing import OUTLIER, PROOF_BATCHES, PROOF_SECONDS, Place, strain
from serving.runtimes.base import Outputs, Want
from serving.turns import MOST_SECONDS
from tests.lanes import Echo, answers, listening, predictions, rows, sized

BOUND = 0.001
SLOW = max(OUTLIER * BOUND, MOST_SECONDS) + 0.001


def place_after(*took: float, now: float = 0.0) -> Place:
    place = Place(BOUND)
    for seconds in took:
        place.ran(seconds, seconds, now, True)
    return place


@pytest.mark.audit("9b")
@pytest.mark.parametrize(
    ("took", "on_loop"),
    [
        ([], True), ([0.0005] * 100, True), ([SLOW], False), ([0.0001] * 1000 + [SLOW], False),
        ([0.019], True), ([0.019] * 2, False), ([0.0019] * 1000, True), ([0.0021] * 1000, False),
    ],
)  # fmt: skip
def test_one_that_stands_out_is_the_last_on_the_loop(took: list[float], on_loop: bool) -> None:
    """Longer than a tick may take and three times the bound; what is less counts on average."""
    assert place_after(*took).on_loop is on_loop


@pytest.mark.audit("9b")
def test_it_comes_back_after_long_proof() -> None:
    """A minute and a thousand batches without another that stands out: neither alone will do."""
    place = place_after(SLOW)
    assert not any(place.ran(0.0, 0.0, PROOF_SECONDS - 1, True) for _ in range(2 * PROOF_BATCHES))
    assert place.ran(0.0, 0.0, PROOF_SECONDS, True)
    place = place_after(SLOW)
    assert not any(place.ran(0.0, 0.0, 10 * PROOF_SECONDS, True) for _ in range(PROOF_BATCHES - 1))
    place.ran(SLOW, SLOW, 10 * PROOF_SECONDS, True)
    assert not any(place.ran(0.0, 0.0, 10.5 * PROOF_SECONDS, True) for _ in range(2 * PROOF_BATCHES))


@pytest.mark.audit("15")
def test_what_failed_proves_nothing_but_that_it_took_long() -> None:
    """Failures are quick: a version must not come back by them; one that held the loop leaves all the same."""
    place = place_after(SLOW)
    assert not any(place.ran(0.0, 0.0, 10 * PROOF_SECONDS, False) for _ in range(2 * PROOF_BATCHES))
    assert not Place(BOUND).ran(SLOW, SLOW, 0.0, False)


@pytest.mark.audit("9b")
def test_a_pause_of_the_machine_is_not_the_model() -> None:
    """Not to run is no strain, unless the thread itself waited; what computes is."""
    place = place_after(SLOW)
    assert place.meter is strain
    assert place.ran(SLOW, 0.0001, 0.0, True) is False  # in a thread: it does not begin the proof anew
    assert any(place.ran(0.0, 0.0, PROOF_SECONDS, True) for _ in range(PROOF_BATCHES))
    assert place.ran(SLOW, 0.0001, PROOF_SECONDS, True)
    assert not place.ran(SLOW, SLOW, PROOF_SECONDS, True)
    before = strain()
    time.sleep(0.001)
    assert strain() - before > SLOW
    began = time.thread_time()
    while time.thread_time() - began < 0.002:
        pass
    assert strain() - before > 0.0015


class Sly(Echo):
    """Quick, but for rows above 100, which take 150 ms; it remembers its threads."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: list[str] = []

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        self.threads.append(threading.current_thread().name)
        if (arrays[0] > 100).any():
            time.sleep(0.15)
        return super().predict(arrays, rows, want)


@pytest.mark.audit("9b")
@pytest.mark.parametrize("cache_bytes", [0, 100_000])
@pytest.mark.parametrize("lane", ["protocol", "asgi"])
async def test_a_slow_row_holds_the_loop_once(lane: str, cache_bytes: int) -> None:
    """It is late and hears so, as in a thread; 200 quick requests do not bring the version back."""
    runtime = Sly()
    async with listening(lane, runtime=runtime, cache_bytes=cache_bytes, inline_below_ms=1.0) as server:
        assert predictions(await server.say(sized(rows(1.0), close=True))) == [[1.0]]
        assert runtime.threads[-1] == threading.current_thread().name
        slow = sized(rows(101.0), "x-request-timeout-ms: 50", close=True)
        assert answers(await server.say(slow))[0][0] == 504
        asked = b"".join(sized(rows(float(i % 97) + i / 1000)) for i in range(200))
        await server.say(asked + sized(rows(3.0), close=True))
        before = len(runtime.threads)
        late = asyncio.create_task(server.say(sized(rows(102.0), "x-request-timeout-ms: 50", close=True)))
        assert answers(await late)[0][0] == 504
        await server.until(lambda: len(runtime.threads) > before)
        assert threading.current_thread().name not in runtime.threads[before:]


@pytest.mark.audit("9b")
async def test_each_who_waits_for_the_same_rows_has_its_own_deadline() -> None:
    """Of two that wait for one computation on the loop, the one whose time is over hears so; the other has its answer."""
    async with listening("protocol", runtime=Sly(), cache_bytes=100_000) as server:
        hasty = sized(rows(101.0), "x-request-timeout-ms: 100", close=True)
        heard = await asyncio.gather(server.say(hasty), server.say(sized(rows(101.0), close=True)))
        assert [predictions(each) for each in heard] == [[504], [[101.0]]]
