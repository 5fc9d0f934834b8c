"""The batcher: exactly one's own rows, in bounds, and nobody harmed by a neighbour."""

import asyncio
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.errors import DeadlineExceeded, ModelFailed, NotReady, QueueFull
from serving.runtimes.base import Engine, Outputs, Want
from serving.turns import Turns
from serving.waiting import Priority


class Doubler:
    """A runtime that doubles its rows, remembers its batches, fails on NaN, and waits while `gate` is closed."""

    classes = None

    def __init__(self, answers: int | None = None) -> None:
        self.running = False
        self.threads: set[str] = set()
        self.batches: list[int] = []
        self.seen: list[float] = []
        self.gate = threading.Event()
        self.gate.set()
        self.answers = answers

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        self.running = True
        self.threads.add(threading.current_thread().name)
        self.gate.wait(10)
        x = arrays[0]
        self.batches.append(len(x))
        if np.isnan(x).any():
            raise ValueError("poison")
        self.seen.extend(x[:, 0].tolist())
        labels = (x[:, 0] * 2)[: self.answers]
        return Outputs(rows, labels)

    def close(self) -> None:
        pass


THREADED, INLINE = 10.0, 0.0
observed: list[tuple[int, int]] = []


def batcher(runtime: Doubler, cost_ms: float = THREADED, **limits: float) -> Batcher:
    return Batcher(runtime, BatchingLimits(**limits), cost_ms, lambda n, rows, s: observed.append((n, rows)))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def ask(b: Batcher, values: list[float], deadline: float | None = None) -> list[float]:
    outputs, _ = await b.predict((np.array(values)[:, None],), len(values), Want.LABELS, deadline)
    assert outputs.labels is not None
    return outputs.labels.tolist()


@pytest.mark.parametrize("cost_ms", [THREADED, INLINE])
async def test_every_caller_gets_exactly_its_rows(cost_ms: float) -> None:
    """Requests of 1, 7 and 100 rows, together; long ones run in chunks and are answered whole."""
    runtime = Doubler()
    b = batcher(runtime, cost_ms)
    sizes = [1, 7, 100, 1, 33, 2, 7]
    wishes = [[float(1000 * i + j) for j in range(n)] for i, n in enumerate(sizes)]
    answers = await asyncio.gather(*(ask(b, w) for w in wishes))
    assert answers == [[2 * v for v in w] for w in wishes]
    assert max(runtime.batches) <= 32
    assert b.depth == 0
    b.close()


async def test_requests_of_one_tick_coalesce_without_a_timer() -> None:
    """The first batch starts in the same loop tick and carries everybody who was there."""
    runtime = Doubler()
    b = batcher(runtime, INLINE)
    await asyncio.gather(*(ask(b, [float(i)]) for i in range(20)))
    assert runtime.batches == [20]
    b.close()


async def test_while_a_batch_runs_the_next_one_forms() -> None:
    """Greedy: no waiting when idle, and full batches when busy."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime)
    first = asyncio.create_task(ask(b, [1.0]))
    await until(lambda: runtime.running)
    rest = [asyncio.create_task(ask(b, [float(i)])) for i in range(10)]
    await until(lambda: b.depth == 10)
    runtime.gate.set()
    await asyncio.gather(first, *rest)
    assert runtime.batches == [1, 10]
    b.close()


async def test_max_wait_holds_a_batch_that_is_not_full() -> None:
    """Two requests 5 ms apart share a batch under a window of 40 ms; a full batch does not wait."""
    runtime = Doubler()
    b = batcher(runtime, INLINE, max_wait_ms=40, max_rows=3)
    one = asyncio.create_task(ask(b, [1.0]))
    await asyncio.sleep(0.005)
    await asyncio.gather(one, ask(b, [2.0]))
    assert runtime.batches == [2]
    began = time.monotonic()
    slow = batcher(runtime, INLINE, max_wait_ms=10_000, max_rows=3)
    await asyncio.gather(ask(slow, [1.0]), ask(slow, [2.0]), ask(slow, [3.0]))
    assert time.monotonic() - began < 9
    b.close()
    slow.close()


async def test_a_cancelled_caller_harms_nobody_and_is_never_computed() -> None:
    """The cancelled row leaves the queue; its neighbours are answered."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime)
    running = asyncio.create_task(ask(b, [1.0]))
    await until(lambda: runtime.running)
    doomed, other = asyncio.create_task(ask(b, [2.0])), asyncio.create_task(ask(b, [3.0]))
    await asyncio.sleep(0)
    doomed.cancel()
    await asyncio.gather(doomed, return_exceptions=True)
    runtime.gate.set()
    assert await running == [2.0]
    assert await other == [6.0]
    assert 2.0 not in runtime.seen
    assert b.depth == 0
    b.close()


async def test_an_expired_row_is_never_computed() -> None:
    """Its caller hears of the deadline at the deadline, and the row is dropped."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime)
    running = asyncio.create_task(ask(b, [1.0]))
    await until(lambda: runtime.running)
    with pytest.raises(DeadlineExceeded):
        await ask(b, [2.0], deadline=time.monotonic() + 0.03)
    with pytest.raises(DeadlineExceeded):
        await ask(b, [4.0], deadline=time.monotonic() - 1)
    runtime.gate.set()
    await running
    assert runtime.seen == [1.0]
    assert b.depth == 0
    b.close()


async def test_over_the_watermark_a_request_is_shed_at_once() -> None:
    """Shed before the queue is full, with the seconds until it drains; a long request passes an empty queue, and no other
    like it while it waits."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime, max_queue=100, high_watermark=0.8)
    long = asyncio.create_task(ask(b, [1.0] * 300))
    await until(lambda: runtime.running)
    assert b.depth == 300 - 32
    with pytest.raises(QueueFull):
        await ask(b, [1.0] * 300)
    others = [asyncio.create_task(ask(b, [1.0])) for _ in range(80 - 32)]
    await until(lambda: b.depth == 300 - 32 + len(others))
    with pytest.raises(QueueFull) as shed:
        await ask(b, [1.0])
    assert shed.value.retry_after >= 1
    runtime.gate.set()
    assert await long == [2.0] * 300
    assert await asyncio.gather(*others) == [[2.0]] * len(others)
    assert await ask(b, [1.0]) == [2.0]
    b.close()


@pytest.mark.parametrize("cost_ms", [THREADED, INLINE])
async def test_a_poison_row_fails_alone(cost_ms: float) -> None:
    """The model raises on one request; every other request of that batch is answered."""
    runtime = Doubler()
    b = batcher(runtime, cost_ms)
    wishes = [[float(i)] for i in range(8)]
    wishes[5] = [float("nan")]
    answers = await asyncio.gather(*(ask(b, w) for w in wishes), return_exceptions=True)
    assert isinstance(answers[5], ModelFailed)
    assert [a for i, a in enumerate(answers) if i != 5] == [[2.0 * i] for i in range(8) if i != 5]
    assert await ask(b, [3.0]) == [6.0]
    b.close()


@pytest.mark.parametrize("cost_ms", [THREADED, INLINE])
async def test_a_model_that_calls_exit_ends_nothing(cost_ms: float) -> None:
    """Neither the server nor the version: it fails its request as any other error does."""

    class Leaver(Doubler):
        def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
            if arrays[0][0, 0] < 0:
                sys.exit(3)
            return super().predict(arrays, rows, want)

    b = batcher(Leaver(), cost_ms)
    with pytest.raises(ModelFailed):
        await ask(b, [-1.0])
    assert await ask(b, [1.0]) == [2.0]
    b.close()


async def test_too_few_outputs_give_nobody_the_rows_of_others() -> None:
    """Who asks for more rows than the model answers at once hears of it; who asks for one gets its own."""
    b = batcher(Doubler(answers=1), INLINE)
    answers = await asyncio.gather(ask(b, [1.0]), ask(b, [2.0, 3.0]), ask(b, [4.0]), return_exceptions=True)
    assert isinstance(answers[1], ModelFailed)
    assert [answers[0], answers[2]] == [[2.0], [8.0]]
    b.close()


async def test_close_fails_the_waiters() -> None:
    """Who waits and who is being computed hears of it; nobody hangs."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime)
    waiting = [asyncio.create_task(ask(b, [1.0])) for _ in range(3)]
    await until(lambda: runtime.running)
    waiting.append(asyncio.create_task(ask(b, [1.0])))
    await asyncio.sleep(0)
    b.close()
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert all(isinstance(a, NotReady) for a in answers)
    with pytest.raises(NotReady):
        await ask(b, [1.0])
    runtime.gate.set()


async def test_close_fails_who_is_in_a_batch_that_has_just_begun() -> None:
    """The batch is on its way to its thread: nobody is left without an answer, and nobody has two."""
    runtime, heard = Doubler(), list[object]()
    b = batcher(runtime)
    b.submit((np.array([[1.0]]),), 1, Want.LABELS, None, lambda result, _: heard.append(result))
    b.turn()
    b.close()
    assert [type(result) for result in heard] == [NotReady]
    await asyncio.sleep(0.01)
    assert len(heard) == 1


async def test_a_runtime_that_must_not_block_the_loop_never_runs_on_it() -> None:
    """However cheap it was at warm-up: the loop goes on while it waits."""
    runtime = Doubler()
    b = Batcher(runtime, BatchingLimits(), INLINE, lambda *_: None, inline=False)
    runtime.gate.clear()
    asked = asyncio.create_task(ask(b, [1.0]))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_soon(runtime.gate.set)
    assert await asked == [2.0]
    b.close()


async def test_a_batch_that_does_not_end_is_told_of() -> None:
    """Once, while it still runs."""
    runtime, told = Doubler(), asyncio.Event()
    b = Batcher(runtime, BatchingLimits(), THREADED, lambda *_: None, hang_seconds=0.01, overdue=lambda s: told.set())
    runtime.gate.clear()
    asked = asyncio.create_task(ask(b, [1.0]))
    await told.wait()
    assert not asked.done()
    runtime.gate.set()
    assert await asked == [2.0]
    b.close()


async def held(b: Batcher, runtime: Doubler, *wishes: tuple[list[float], Priority]) -> list[float]:
    """The rows in the order in which they were computed, all of them queued behind a batch of one row that runs."""
    runtime.gate.clear()
    first = asyncio.create_task(ask(b, [0.0]))
    await until(lambda: runtime.running)
    heard: list[object] = []
    for values, priority in wishes:
        b.submit((np.array(values)[:, None],), len(values), Want.LABELS, None, lambda r, _: heard.append(r), priority)
    runtime.gate.set()
    await first
    await until(lambda: len(heard) == len(wishes))
    return runtime.seen[1:]


async def test_high_priority_goes_before_normal_and_normal_before_low() -> None:
    """In order of arrival among themselves; a long request of low priority is answered whole all the same."""
    runtime = Doubler()
    b = batcher(runtime, max_rows=2)
    low, normal, high = Priority.LOW, Priority.NORMAL, Priority.HIGH
    order = await held(b, runtime, ([1.0, 2.0], low), ([3.0], normal), ([4.0], high), ([5.0], high), ([6.0], normal))
    assert order == [4.0, 5.0, 3.0, 6.0, 1.0, 2.0]
    b.close()


async def test_low_priority_never_starves() -> None:
    """Every fourth batch goes by arrival: the low one is behind three batches, however many high ones there are."""
    runtime = Doubler()
    b = batcher(runtime, max_rows=1)
    high = [([float(i)], Priority.HIGH) for i in range(2, 30)]
    order = await held(b, runtime, ([1.0], Priority.LOW), *high)
    assert order.index(1.0) == 3
    assert sorted(order) == [float(i) for i in range(1, 30)]
    b.close()


@pytest.mark.parametrize("cost_ms", [THREADED, INLINE])
async def test_who_cannot_take_an_answer_harms_nobody(cost_ms: float) -> None:
    """One of a batch raises when it is told: the others hear theirs, and the next batch runs."""
    runtime = Doubler()
    b = batcher(runtime, cost_ms)

    def broken(result: Outputs | Exception, seconds: float) -> None:
        raise RuntimeError("the connection is in a strange state")

    b.submit((np.array([[1.0]]),), 1, Want.LABELS, None, broken)
    assert await asyncio.gather(ask(b, [2.0]), ask(b, [3.0])) == [[4.0], [6.0]]
    assert await ask(b, [4.0]) == [8.0]
    assert b.depth == 0
    b.close()


class Crowd(Doubler):
    """A runtime that many threads may call: a call waits until `together` of them are inside."""

    engine = Engine("crowd", parallel=True)

    def __init__(self, together: int) -> None:
        super().__init__()
        self._barrier = threading.Barrier(together, timeout=10)

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        self._barrier.wait()
        return super().predict(arrays, rows, want)


async def test_with_concurrency_batches_run_at_once() -> None:
    """Three batches meet inside the runtime, and no fourth one is started beside them."""
    runtime = Crowd(3)
    b = batcher(runtime, max_rows=1, concurrency=3)
    answers = await asyncio.gather(*(ask(b, [float(i)]) for i in range(6)))
    assert answers == [[2.0 * i] for i in range(6)]
    assert len(runtime.threads) == 3
    b.close()


async def test_the_chunks_of_a_long_request_come_together_in_order() -> None:
    """They run at once, and end in any order; the answer has its rows in theirs, a neighbour's poison apart."""
    runtime = Doubler()
    b = batcher(runtime, max_rows=8, concurrency=4)
    long = [float(i) for i in range(301)]
    answers = await asyncio.gather(
        ask(b, long), ask(b, [float("nan")]), ask(b, long[::-1]), ask(b, [5.0]), return_exceptions=True
    )
    assert answers[0] == [2 * v for v in long]
    assert isinstance(answers[1], ModelFailed)
    assert answers[2:] == [[2 * v for v in long[::-1]], [10.0]]
    assert b.depth == 0
    b.close()


async def test_close_fails_who_is_in_any_of_the_batches() -> None:
    """Two run and others wait: all hear of it, and what ends later is heard by nobody."""
    runtime = Doubler()
    runtime.gate.clear()
    b = batcher(runtime, max_rows=1, concurrency=2)
    waiting = [asyncio.create_task(ask(b, [float(i)])) for i in range(5)]
    await until(lambda: b.depth == 3)
    waiting[0].cancel()
    await asyncio.sleep(0)
    b.close()
    answers = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
    assert isinstance(answers[0], asyncio.CancelledError)
    assert all(isinstance(a, NotReady) for a in answers[1:])
    runtime.gate.set()


class Shapes(Doubler):
    """Rows of any width, which cannot stand in one array: the answer is the sum of each."""

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        self.batches.append(rows)
        return Outputs(rows, arrays[0].sum(axis=1))


async def test_what_cannot_mix_is_grouped() -> None:
    """Tensors whose other dimensions differ share a batch of the queue, and each shape is one call of the model."""
    runtime = Shapes()
    b = batcher(runtime, INLINE)
    wide = [np.ones((1, 2 + i % 3)) for i in range(9)]
    heard = await asyncio.gather(*(b.predict((rows,), 1, Want.LABELS, None) for rows in wide))
    assert [outputs.labels.tolist() for outputs, _ in heard if outputs.labels is not None] == [
        [2.0 + i % 3] for i in range(9)
    ]
    assert runtime.batches == [3, 3, 3]
    b.close()


async def test_the_search_for_a_poison_row_ends_with_the_deadline() -> None:
    """Whose time is over while the halves run is not computed any more."""

    class Slow(Doubler):
        def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
            time.sleep(0.02)
            return super().predict(arrays, rows, want)

    runtime = Slow()
    b = batcher(runtime)
    deadline = time.monotonic() + 0.1
    poison = [ask(b, [float("nan")], deadline) for _ in range(32)]
    answers = await asyncio.gather(*poison, return_exceptions=True)
    assert all(isinstance(a, ModelFailed | DeadlineExceeded) for a in answers)
    assert await ask(b, [1.0]) == [2.0]
    assert len(runtime.batches) < 2 * 32 - 1
    b.close()


async def test_a_model_that_becomes_dear_leaves_the_loop() -> None:
    """It was cheap at warm-up; what it costs now decides whether it may stand in everybody's way."""

    class Moody(Doubler):
        seconds = 0.02

        def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
            time.sleep(self.seconds)
            return super().predict(arrays, rows, want)

    runtime = Moody()
    b = batcher(runtime, INLINE, inline_below_ms=5)
    here = threading.current_thread().name

    async def within(calls: int, where: Callable[[], bool]) -> None:
        for _ in range(calls):
            runtime.threads.clear()
            await ask(b, [1.0])
            if where():
                return
        raise AssertionError("it stayed where it was")

    await ask(b, [1.0])
    assert runtime.threads == {here}
    await within(20, lambda: here not in runtime.threads)
    b.close()


async def test_models_on_the_loop_take_turns() -> None:
    """Two batchers with work for many ticks: neither has all its batches before the other has any."""
    turns, order = Turns(), list[str]()

    def noted(name: str) -> Batcher:
        limits = BatchingLimits(max_rows=1)
        return Batcher(Doubler(), limits, INLINE, lambda *_: order.append(name), turns=turns)

    both = {name: noted(name) for name in "ab"}
    await asyncio.gather(*(ask(b, [float(i)]) for b in both.values() for i in range(50)))
    assert sorted(order) == ["a"] * 50 + ["b"] * 50
    assert len(set(order[:50])) == 2
    assert all(b.used > 0 for b in both.values())
    for b in both.values():
        b.close()


async def test_a_full_batch_does_not_wait_for_the_rest_of_its_tick() -> None:
    """On the loop it runs when the next request comes; a burst is over before the loop goes on."""
    runtime, heard = Doubler(), list[Outputs | Exception]()
    b = batcher(runtime, INLINE, max_rows=4, max_queue=6)

    def submit(value: float) -> None:
        b.submit((np.array([[value]]),), 1, Want.LABELS, None, lambda result, seconds: heard.append(result))

    for i in range(10):
        submit(float(i))
    assert runtime.batches == [4, 4]
    assert runtime.seen == [float(i) for i in range(8)]
    assert b.depth == 2
    await until(lambda: len(heard) == 10)
    assert runtime.batches == [4, 4, 2]
    b.close()


async def test_an_answer_may_ask_again_at_once() -> None:
    """Requests that follow each other on one connection begin where the one before ends, within a batch of others."""
    runtime, heard = Doubler(), list[float]()
    b = batcher(runtime, INLINE, max_rows=2)

    def submit(value: float) -> None:
        def done(result: Outputs | Exception, seconds: float) -> None:
            heard.append(value)
            if value < 30:
                submit(value + 10)

        b.submit((np.array([[value]]),), 1, Want.LABELS, None, done)

    for i in range(5):
        submit(float(i))
    await until(lambda: len(heard) == 20)
    assert sorted(heard) == [float(10 * tens + i) for tens in range(4) for i in range(5)]
    assert max(runtime.batches) == 2
    b.close()


async def test_a_target_bounds_the_rows_of_a_batch() -> None:
    """One row takes a millisecond here, and a batch should take ten: the batches of a burst get smaller than `max_rows`."""

    class Linear(Doubler):
        def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
            time.sleep(0.001 * rows)
            return super().predict(arrays, rows, want)

    runtime = Linear()
    b = batcher(runtime, 64.0, max_rows=64, target_latency_ms=10)
    assert b.most == 10
    await asyncio.gather(*(ask(b, [float(i)]) for i in range(200)))
    assert max(runtime.batches) < 20
    b.close()
