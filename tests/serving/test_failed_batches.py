"""What a model raises, refuses or answers wrongly is its request's alone, and nothing is learned from it."""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from registry.mlmodel import Column, Signature
from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.errors import FIXED, BadRequest, ModelFailed, NotReady
from serving.failures import MOST_KINDS, TRACE_SECONDS, Failures
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import compile_schema
from tests.lanes import answers, listening, predictions, rows, sized

LANES = pytest.mark.parametrize("lane", ["protocol", "asgi"])
THREADED, INLINE = 10.0, 0.0
BAD = -1.0


class Moody:
    """Doubles its rows; a batch with a negative row has what `bad` returns, or raises."""

    classes = None
    engine = Engine("moody")

    def __init__(self, bad: Callable[[int], Outputs]) -> None:
        self.bad = bad
        self.batches: list[int] = []

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        self.batches.append(rows)
        column = arrays[0][:, 0]
        return self.bad(rows) if (column < 0).any() else Outputs(rows, column * 2)

    def close(self) -> None:
        pass


def raising(error: BaseException) -> Callable[[int], Outputs]:
    def bad(rows: int) -> Outputs:
        raise error

    return bad


async def ask(b: Batcher, value: float) -> Any:
    outputs, _ = await b.predict((np.array([[value]]),), 1, Want.LABELS, None)
    assert outputs.labels is not None
    return outputs.labels.tolist()


def batcher(runtime: Any, cost_ms: float = INLINE, **limits: Any) -> Batcher:
    return Batcher(runtime, BatchingLimits(**limits), cost_ms, lambda *_: None)


WRONG = {
    "too few": lambda rows: Outputs(rows, np.zeros(rows - 1)),
    "too many": lambda rows: Outputs(rows, np.zeros(rows + 1)),
    "a scalar": lambda rows: Outputs(rows, np.asarray(3.0)),
    "nothing": lambda rows: Outputs(rows, np.asarray(None)),
    "exit": raising(SystemExit(3)),
    "Ctrl-C": raising(KeyboardInterrupt()),
    "cancelled": raising(asyncio.CancelledError()),
    "closed": raising(GeneratorExit()),
}


@pytest.mark.audit("28")
@pytest.mark.audit("30")
@pytest.mark.parametrize("cost_ms", [THREADED, INLINE])
@pytest.mark.parametrize("wrong", WRONG)
async def test_one_bad_row_fails_alone_whatever_the_model_does_with_it(wrong: str, cost_ms: float) -> None:
    """Its neighbours in the batch are answered, with their own rows; so are those who come later."""
    b = batcher(Moody(WRONG[wrong]), cost_ms)
    wishes = [float(i) for i in range(16)] + [BAD]
    found = await asyncio.gather(*(ask(b, value) for value in wishes), return_exceptions=True)
    assert found[:-1] == [[2 * value] for value in wishes[:-1]]
    assert isinstance(found[-1], ModelFailed)
    assert await ask(b, 5.0) == [10.0]
    b.close()


@LANES
@pytest.mark.audit("28")
@pytest.mark.parametrize("inline", [True, False])
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_what_would_end_the_process_is_a_500(lane: str, inline: bool, error: BaseException) -> None:
    """On the event loop and in a thread; the server goes on."""
    async with listening(lane, inline=inline, runtime=Moody(raising(error))) as server:
        ((status, _, body),) = answers(await server.say(sized(rows(BAD), close=True)))
        assert (status, json.loads(body)["error"]) == (500, FIXED)
        assert predictions(await server.say(sized(rows(4.0), close=True))) == [[8.0]]


def scaled() -> SklearnRuntime:
    """A pipeline that makes an infinity of large doubles, which its second step refuses."""
    model = make_pipeline(StandardScaler(), LinearRegression()).fit([[0.0], [1e-30]], [0.0, 1.0])
    return SklearnRuntime(model, compile_schema(Signature((Column("x", "double"),), ())))


@LANES
@pytest.mark.audit("8")
@pytest.mark.filterwarnings("ignore:overflow")
async def test_values_that_the_library_refuses_are_a_400(lane: str, caplog: pytest.LogCaptureFixture) -> None:
    """Its text is ours and echoes nothing, it counts as the caller's, and the log has one trace for all of them."""
    async with listening(lane, runtime=scaled()) as server:
        with caplog.at_level(logging.WARNING, "headway.requests"):
            for _ in range(3):
                ((status, _, body),) = answers(await server.say(sized(rows(1e288), close=True)))
                assert (status, b"refuses these rows" in body, b"288" in body) == (400, True, False)
        assert server.failed("bad_request") == 3
        assert predictions(await server.say(sized(rows(0.0), close=True)))[0] != 400
    assert caplog.text.count("Input X contains infinity") == 1


@pytest.mark.audit("8")
@pytest.mark.filterwarnings("ignore:overflow")
async def test_refused_rows_harm_no_neighbour() -> None:
    """Those that the library can compute are answered; the others are tried once more, alone."""
    b = batcher(scaled())
    found = await asyncio.gather(*(ask(b, value) for value in (0.0, 1e288, 1e-30)), return_exceptions=True)
    assert isinstance(found[1], BadRequest)
    assert [type(each) for each in found] == [list, type(found[1]), list]
    b.close()


@pytest.mark.audit("8")
@pytest.mark.filterwarnings("ignore:overflow")
async def test_what_a_library_does_not_say_again_is_answered() -> None:
    """It was not about the rows: the second try has its answer."""
    refusal, tries = scaled(), list[int]()

    def flaky(count: int) -> Outputs:
        tries.append(count)
        if len(tries) == 1:
            refusal.predict((np.array([[1e288]]),), 1, Want.LABELS)
        return Outputs(count, np.zeros(count))

    b = batcher(Moody(flaky))
    assert await ask(b, BAD) == [0.0]
    assert tries == [1, 1]
    b.close()


@pytest.mark.audit("8")
async def test_what_the_versions_own_code_raises_is_a_500() -> None:
    """Of whatever class: only a library is believed to speak of the rows, and nothing is computed twice for it."""
    runtime = Moody(raising(ValueError("my own trouble")))
    b = batcher(runtime)
    with pytest.raises(ModelFailed):
        await ask(b, BAD)
    assert runtime.batches == [1]
    b.close()


def failed(error: BaseException) -> ModelFailed:
    made = ModelFailed("the model raised")
    made.__cause__ = error
    return made


@pytest.mark.audit("8")
def test_there_is_one_trace_per_version_kind_and_minute(caplog: pytest.LogCaptureFixture) -> None:
    """Every request has its line and its id; the next trace says how many had none."""
    now = [0.0]
    failures = Failures(lambda: now[0])
    told = [("1", ValueError()), ("1", ValueError()), ("1", KeyError()), ("2", ValueError()), ("1", ValueError())]
    for version, error in told:
        failures.tell("m", version, "model_failed", "id", failed(error))
    now[0] = TRACE_SECONDS
    failures.tell("m", "1", "model_failed", "last", failed(ValueError()))
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, True, True, False, True]
    assert vars(caplog.records[-1])["traces_left_out"] == 2
    assert {vars(record)["request_id"] for record in caplog.records} == {"id", "last"}


def test_a_model_that_makes_up_kinds_does_not_fill_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    """What is remembered has a bound."""
    caplog.set_level(logging.CRITICAL)
    failures = Failures()
    for i in range(2 * MOST_KINDS):
        failures.tell("m", "1", "model_failed", "id", failed(type(f"E{i}", (Exception,), {})()))
    assert len(failures._said) <= MOST_KINDS


class Absent(Moody):
    """Its process is gone: it fails at once, unless it is asked for nothing bad."""

    def __init__(self) -> None:
        super().__init__(raising(NotReady("the version's process has just ended")))


@pytest.mark.audit("15")
async def test_nothing_is_learned_from_a_batch_that_answered_nobody() -> None:
    """Failing is quick: it makes no batches larger, no queue look shorter, and no version look fast."""
    observed: list[int] = []
    limits = BatchingLimits(target_latency_ms=5, max_rows=32)
    b = Batcher(Absent(), limits, 40.0, lambda n, rows, seconds: observed.append(rows))
    most = b.most
    for _ in range(200):
        with pytest.raises(NotReady):
            await ask(b, BAD)
    assert (b.most, observed) == (most, [])
    assert await ask(b, 1.0) == [2.0]
    assert observed == [1]
    b.close()
