"""The response cache: the same rows are computed once, nobody is lost when another gives up, and memory keeps its bound."""

import asyncio
import gc
import math
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.admission import BatchingLimits
from serving.batching import Batcher
from serving.errors import DeadlineExceeded, ModelFailed, NotReady, QueueFull
from serving.response_cache import (
    LARGEST_SHARE,
    MOST_KEYED_BYTES,
    CacheLimits,
    ResponseCache,
    Store,
    Wait,
    key_of,
    size_of,
)
from serving.runtimes.base import Outputs, Want
from tests.serving.test_batching import Doubler, until

MUCH = 2**20
SECRET = object()


class Asker:
    """A cache before a batcher in a thread, and what it told."""

    def __init__(self, **limits: int) -> None:
        self.runtime = Doubler()
        bounds = BatchingLimits(**limits)
        self.batcher = Batcher(self.runtime, bounds, 10.0, lambda *_: None)
        self.told: Counter[str] = Counter()
        self.cache = ResponseCache(self.batcher, CacheLimits(MUCH), bounds.max_queue, self._count, self._count)

    def _count(self, what: str) -> None:
        self.told[what] += 1

    def ask(self, *values: float, deadline: float | None = None) -> "Question":
        """Asks for rows of one column."""
        return Question(self.cache, np.array(values)[:, None], deadline)


class Question:
    """One request: `answer` is its labels or its error, once it has one."""

    def __init__(self, cache: ResponseCache, matrix: np.ndarray, deadline: float | None) -> None:
        self.heard: list[Outputs | Exception] = []
        self.cache = cache
        asked = cache.ask((matrix,), len(matrix), Want.LABELS, deadline, lambda result, _: self.heard.append(result))
        self.wait = asked if isinstance(asked, Wait) else None
        if isinstance(asked, Outputs):
            self.heard.append(asked)

    def give_up(self) -> None:
        assert self.wait is not None
        self.cache.cancel(self.wait)

    async def answer(self) -> list[float]:
        await until(lambda: bool(self.heard))
        (result,) = self.heard
        if isinstance(result, Exception):
            raise result
        assert result.labels is not None
        return result.labels.tolist()


@pytest.fixture
async def asker() -> AsyncIterator[Asker]:
    made = Asker()
    yield made
    made.runtime.gate.set()
    made.batcher.close()


async def test_the_same_rows_are_computed_once(asker: Asker) -> None:
    """A second request is answered at once, with the same numbers; NaN is as good a value as any."""
    assert await asker.ask(1.0, 2.0).answer() == [2.0, 4.0]
    again = asker.ask(1.0, 2.0)
    assert again.wait is None
    assert await again.answer() == [2.0, 4.0]
    assert asker.runtime.batches == [2]
    assert asker.told == {"miss": 1, "hit": 1}


async def test_who_asks_meanwhile_shares_the_computation(asker: Asker) -> None:
    """Ten requests for the same rows, and one for others: two rows are computed, and everyone is answered once."""
    asker.runtime.gate.clear()
    first = asker.ask(5.0)
    await until(lambda: asker.runtime.running)
    others = [asker.ask(5.0) for _ in range(9)] + [asker.ask(6.0)]
    assert asker.batcher.depth == 1
    asker.runtime.gate.set()
    assert [await q.answer() for q in (first, *others)] == [[10.0]] * 10 + [[12.0]]
    assert asker.runtime.seen == [5.0, 6.0]
    assert asker.told == {"miss": 2, "hit": 9}


@pytest.mark.parametrize("running", [True, False])
async def test_who_gives_up_takes_the_computation_from_nobody(asker: Asker, running: bool) -> None:
    """The one that began it leaves, queued or while it runs: the other is answered, and nothing is computed twice."""
    asker.runtime.gate.clear()
    ahead = asker.ask(0.0)
    await until(lambda: asker.runtime.running)
    if running:
        first, second = ahead, asker.ask(0.0)
    else:
        first, second = asker.ask(5.0), asker.ask(5.0)
    first.give_up()
    asker.runtime.gate.set()
    assert await second.answer() == [0.0 if running else 10.0]
    assert first.heard == []
    assert asker.runtime.seen == ([0.0] if running else [0.0, 5.0])


async def test_what_nobody_waits_for_is_not_computed(asker: Asker) -> None:
    """All leave a queued computation: it holds no place, is never run, and who asks then begins another."""
    asker.runtime.gate.clear()
    ahead = asker.ask(0.0)
    await until(lambda: asker.runtime.running)
    for question in [asker.ask(5.0), asker.ask(5.0)]:
        question.give_up()
    assert asker.batcher.depth == 0
    asker.runtime.gate.set()
    await ahead.answer()
    assert asker.runtime.seen == [0.0]
    assert await asker.ask(5.0).answer() == [10.0]
    assert asker.cache._waiting == 0


@pytest.mark.parametrize("patient", [None, 60.0])
async def test_each_waits_until_its_own_deadline(asker: Asker, patient: float | None) -> None:
    """The first and the last of three are in a hurry: both are told so in time, and the other is answered."""
    asker.runtime.gate.clear()
    now = time.monotonic()
    ahead = asker.ask(0.0)
    await until(lambda: asker.runtime.running)
    hasty = asker.ask(5.0, deadline=now + 0.05)
    waiting = asker.ask(5.0, deadline=None if patient is None else now + patient)
    last = asker.ask(5.0, deadline=now + 0.06)
    for question in (hasty, last):
        with pytest.raises(DeadlineExceeded):
            await question.answer()
    assert waiting.heard == []
    asker.runtime.gate.set()
    assert await waiting.answer() == [10.0]
    assert await ahead.answer() == [0.0]


async def test_a_deadline_that_has_passed_is_no_hit(asker: Asker) -> None:
    """As without a cache: who comes too late is told so."""
    await asker.ask(1.0).answer()
    with pytest.raises(DeadlineExceeded):
        asker.ask(1.0, deadline=time.monotonic() - 1)


async def test_a_failure_is_told_to_all_and_forgotten(asker: Asker) -> None:
    """Both who waited hear of it; who asks later makes the model try again."""
    asker.runtime.gate.clear()
    both = [asker.ask(np.nan), asker.ask(np.nan)]
    asker.runtime.gate.set()
    for question in both:
        with pytest.raises(ModelFailed):
            await question.answer()
    with pytest.raises(ModelFailed):
        await asker.ask(np.nan).answer()
    assert asker.runtime.batches == [1, 1]
    assert asker.cache.bytes == 0


async def test_the_end_of_a_version_is_told_to_all(asker: Asker) -> None:
    """Who shares a computation is told when it is cut off, as the one that began it."""
    asker.runtime.gate.clear()
    both = [asker.ask(1.0), asker.ask(1.0)]
    asker.batcher.close()
    for question in both:
        with pytest.raises(NotReady):
            await question.answer()


async def test_those_who_share_are_bounded_too() -> None:
    """As many rows as may queue may wait for what others began; the next is shed, and room that is left can be taken."""
    asker = Asker(max_queue=4)
    asker.runtime.gate.clear()
    waiting = [asker.ask(1.0) for _ in range(5)]
    with pytest.raises(QueueFull):
        asker.ask(1.0)
    waiting.pop(1).give_up()
    waiting.append(asker.ask(1.0))
    asker.runtime.gate.set()
    assert [await question.answer() for question in waiting] == [[2.0]] * 5
    asker.batcher.close()


async def test_nobody_can_change_what_is_kept(asker: Asker) -> None:
    """The arrays of an answer are its own, not a part of a batch, and read-only."""
    question, other = asker.ask(1.0), asker.ask(2.0)
    await asyncio.gather(question.answer(), other.answer())
    assert asker.runtime.batches == [2]
    (outputs,) = question.heard
    assert isinstance(outputs, Outputs)
    assert outputs.labels is not None
    assert outputs.labels.base is None
    assert not outputs.labels.flags.writeable


async def test_nobody_gets_anothers_answer() -> None:
    """A thousand requests of few kinds, some of which fail, in a cache that holds a few of them; a third hangs up at some
    time. Everyone who stays is answered once, with what belongs to the rows; nothing stays behind."""
    chance = random.Random(1)
    asker = Asker()
    asker.cache = ResponseCache(asker.batcher, CacheLimits(40_000), 2000, asker._count, asker._count)
    asked: list[tuple[float, Question]] = []
    for _ in range(1000):
        value = chance.choice([math.nan, *map(float, range(100))])
        asked.append((value, asker.ask(value)))
        if chance.random() < 0.1:
            await asyncio.sleep(0)
        if chance.random() < 0.3 and not (leaver := chance.choice(asked)[1]).heard:
            leaver.give_up()
            asked = [(v, q) for v, q in asked if q is not leaver]
    for value, question in asked:
        answer = (await asyncio.gather(question.answer(), return_exceptions=True))[0]
        assert isinstance(answer, ModelFailed) if math.isnan(value) else answer == [2 * value]
    assert (asker.cache._waiting, asker.cache._under_way, asker.batcher.depth) == (0, {}, 0)
    assert asker.told["hit"] + asker.told["miss"] == 1000
    assert asker.told["room"] > 0
    asker.batcher.close()


def objects(*values: object) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


LOOK_ALIKE: list[tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]] = [
    ((objects("ab", "c"),), (objects("a", "bc"),)),
    ((objects("a"), objects("b")), (objects("ab"), objects(""))),
    ((objects("a", ""),), (objects("", "a"),)),
    ((objects("a\0", "b"),), (objects("a", "\0b"),)),
    ((objects(None),), (objects("None"),)),
    ((objects(None),), (objects(""),)),
    ((objects(b"a"),), (objects("a"),)),
    ((objects(True),), (objects(1),)),
    ((objects(1),), (objects(1.0),)),
    ((objects("é"),), (objects("e\u0301"),)),
    ((np.zeros((1, 2)),), (np.zeros((2, 1)),)),
    ((np.zeros(2, np.int64),), (np.zeros(2, np.float64),)),
    ((np.array([0.0]),), (np.array([-0.0]),)),
    ((np.array([1, 2]), np.array([3, 4])), (np.array([1, 2]), np.array([4, 3]))),
    ((np.array(["2026-01-01"], "datetime64[ns]"),), (np.array(["NaT"], "datetime64[ns]"),)),
]


@pytest.mark.parametrize(("one", "other"), LOOK_ALIKE)
def test_what_only_looks_alike_has_another_key(one: tuple[np.ndarray, ...], other: tuple[np.ndarray, ...]) -> None:
    """Words that touch, values of another type, shape or dtype with the same bytes."""
    assert key_of(one, Want.LABELS) != key_of(other, Want.LABELS)


def test_another_wish_has_another_key() -> None:
    """Labels alone are no answer to who wants probabilities too."""
    keys = {key_of((np.zeros(1),), want) for want in (Want.LABELS, Want.RAW, Want.LABELS | Want.PROBABILITIES)}
    assert len(keys) == 3


@given(st.lists(st.one_of(st.none(), st.text(), st.binary(), st.floats(), st.booleans()), min_size=1))
def test_equal_values_have_the_same_key(values: list[object]) -> None:
    """However often one object stands among them, and whatever the memory's order."""
    copies = [v if v is None or isinstance(v, bool) else type(v)(v) for v in values]  # type: ignore[call-arg]
    fresh = ["".join(list(v)) if isinstance(v, str) else v for v in copies]
    assert key_of((objects(*values),), Want.LABELS) == key_of((objects(*fresh),), Want.LABELS)
    matrix = np.arange(6.0).reshape(2, 3)
    assert key_of((matrix,), Want.LABELS) == key_of((np.asfortranarray(matrix),), Want.LABELS)


async def test_values_that_cannot_be_compared_are_always_computed(asker: Asker) -> None:
    """An object whose content is unknown has no key, and neither is its answer kept."""
    assert key_of((objects(SECRET),), Want.LABELS) is None
    assert size_of(Outputs(1, objects({"a": 1}))) is None


async def test_a_request_of_very_many_values_is_always_computed() -> None:
    """Its key would hold up the event loop: the last that has one is found again, one row more is not."""
    asker = Asker(max_rows=MOST_KEYED_BYTES, max_queue=MOST_KEYED_BYTES)
    asker.cache = ResponseCache(asker.batcher, CacheLimits(100 * MUCH), 2000, asker._count, asker._count)
    most = [0.0] * (MOST_KEYED_BYTES // 8)
    for values, told in ((most, {"miss": 1, "hit": 1}), ([*most, 0.0], {"miss": 3, "hit": 1})):
        for _ in range(2):
            assert len(await asker.ask(*values).answer()) == len(values)
        assert asker.told == told
    asker.batcher.close()


def test_long_words_count_in_what_has_a_key() -> None:
    """A few long ones, in one column or in several, are as dear as many numbers."""
    half, whole = "w" * (MOST_KEYED_BYTES // 2), "w" * MOST_KEYED_BYTES
    assert key_of((objects(half),), Want.LABELS) is not None
    for arrays in ((objects(whole),), (objects(half, half),), (objects(half), objects(half))):
        assert key_of(arrays, Want.LABELS) is None


class Model:
    """What a store must be: the entries in order of use, and the sum of their sizes."""

    def __init__(self, limits: CacheLimits) -> None:
        self.left: Counter[str] = Counter()
        self.store = Store(limits, lambda reason: self.left.update([reason]))


@given(
    st.integers(0, 40_000),
    st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 600), st.booleans()), max_size=80),
)
def test_the_budget_holds_whatever_is_kept(budget: int, steps: list[tuple[bool, int, int, bool]]) -> None:
    """Numbers and words, in any order of keeping and asking: never over the budget, and the sum is that of what is there.
    What is there is what was kept."""
    model = Model(CacheLimits(budget))
    store, kept = model.store, 0
    for now, (asks, name, count, words) in enumerate(steps):
        key = b"%d" % name
        found = store.get(key, float(now))
        if not asks:
            outputs = Outputs(name, objects(*["w" * count] * 3) if words else np.zeros(count))
            store.keep(key, outputs, float(now))
            kept += store.get(key, float(now)) is outputs
            assert found is None or store.get(key, float(now)) is found  # two may have computed it
        assert found is None or found.rows == name
        assert store.bytes == sum(size for _, size, _ in store._entries.values()) <= budget
        assert all(size <= budget // LARGEST_SHARE for _, size, _ in store._entries.values())
    assert kept == len(store._entries) + model.left["room"]


def test_the_least_recently_used_leave_first() -> None:
    """One that was asked for stays longer than one that was not."""
    one = Outputs(1, np.zeros(1))
    size = size_of(one)
    assert size is not None
    store = Model(CacheLimits(LARGEST_SHARE * size)).store
    for i in range(LARGEST_SHARE):
        store.keep(b"%d" % i, one, 0.0)
    store.get(b"0", 0.0)
    store.keep(b"new", one, 0.0)
    assert [store.get(key, 0.0) is one for key in (b"0", b"1", b"2", b"new")] == [True, False, True, True]


def test_an_answer_grows_old() -> None:
    """It is given until `ttl_seconds` after it was computed, however often it is asked for; then it is gone."""
    model = Model(CacheLimits(MUCH, 10.0))
    model.store.keep(b"k", Outputs(1, np.zeros(1)), 100.0)
    assert model.store.get(b"k", 109.9) is not None
    assert model.store.get(b"k", 110.0) is None
    assert (model.store.bytes, model.left) == (0, {"age": 1})


@pytest.mark.parametrize("label", [1.5, "yes"])
def test_a_byte_of_the_budget_is_a_byte_of_memory(label: object) -> None:
    """What the interpreter says that a thousand entries take is no more than the store counts."""
    store = Model(CacheLimits(100 * MUCH)).store
    gc.collect()
    tracemalloc.start()
    for i in range(1000):
        labels = objects(f"{label}{i}") if isinstance(label, str) else np.array([label])
        key = key_of((np.array([float(i)]),), Want.LABELS)
        assert key is not None
        store.keep(key, Outputs(1, labels, np.zeros((1, 2))), 0.0)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store._entries) == 1000
    assert taken <= store.bytes
