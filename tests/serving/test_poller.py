"""When the poller looks: at the end of its period, or when it is woken, and how often at most."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from registry.errors import RegistryUnavailable, VersionNotFound
from registry.policies import Catalogue, FollowAlias, Policy
from registry.versions import ModelVersion
from serving.lifecycle import State
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.poller import Poller

GAP = 0.05
FOREVER = 3600.0


class Registry:
    """Answers when it is let, and counts the questions."""

    def __init__(self) -> None:
        self.asked, self.down = 0, False
        self.bug: Exception | None = None
        self.may_answer = threading.Event()
        self.may_answer.set()

    def catalogue(self, policy: Policy) -> Catalogue:
        self.asked += 1
        assert self.may_answer.wait(10)
        if self.bug is not None:
            raise self.bug
        if self.down:
            raise RegistryUnavailable("down")
        return (ModelVersion(policy.name, str(self.asked), aliases=("champion",)),)


class Idle:
    """Loader and watcher of a manager that is told what to aspire to, and never run."""

    def load(self, version: ModelVersion) -> Loaded:
        raise NotImplementedError

    def state_changed(self, model: str, version: str, state: State) -> None: ...
    def overdue(self, model: str, version: str, seconds: float) -> None: ...

    def gone(self, model: str, version: str) -> None: ...

    def batch(self, model: str, version: str, requests: int, rows: int, seconds: float) -> None: ...


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def polling(
    registry: Registry, gap: float = GAP, period: float = FOREVER, *, serves: bool = False
) -> AsyncIterator[Poller]:
    """A poller that has asked once, and been answered. `serves` says that a version is READY."""
    policy = FollowAlias("fraud", "champion")
    manager = ModelManager("fraud", policy.uri, Idle(), Idle())
    manager.current = cast(Any, object()) if serves else None
    answers: list[bool] = []
    poller = Poller(registry, policy, manager, period, lambda name, ok: answers.append(ok), least_gap=gap)
    task = asyncio.create_task(poller.run())
    try:
        await until(lambda: len(answers) > 0)
        yield poller
    finally:
        registry.may_answer.set()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_wake_ends_the_period() -> None:
    """However long that is."""
    registry = Registry()
    async with polling(registry) as poller:
        poller.wake()
        await until(lambda: registry.asked == 2)


async def test_a_wake_while_the_registry_is_being_asked_is_not_lost() -> None:
    """What it answers may be older than the wake, so it is asked once more; a thousand wakes ask no oftener."""
    registry = Registry()
    async with polling(registry) as poller:
        registry.may_answer.clear()
        poller.wake()
        await until(lambda: registry.asked == 2)
        for _ in range(1000):
            poller.wake()
        registry.may_answer.set()
        await until(lambda: registry.asked == 3)
        await asyncio.sleep(5 * GAP)
        assert registry.asked == 3


async def test_wakes_never_ask_again_within_the_least_gap() -> None:
    """Under a flood the registry hears one question per gap."""
    registry = Registry()
    async with polling(registry, gap=FOREVER) as poller:
        for _ in range(20):
            poller.wake()
            await asyncio.sleep(0.005)
        assert registry.asked == 1


async def test_a_flood_of_wakes_does_not_put_off_the_period() -> None:
    """A period that is shorter than the least gap stays as it is."""
    registry = Registry()
    async with polling(registry, gap=FOREVER, period=GAP) as poller:
        for _ in range(2):
            seen = registry.asked
            poller.wake()
            await until(lambda seen=seen: registry.asked > seen)  # type: ignore[misc]


async def test_a_wake_cuts_a_back_off_short() -> None:
    """A registry that is there again need not wait to be found."""
    registry = Registry()
    registry.down = True
    async with polling(registry, serves=True) as poller:
        registry.down = False
        poller.wake()
        await until(lambda: registry.asked == 2)


async def test_while_nothing_serves_a_registry_that_is_down_is_asked_by_back_off_alone() -> None:
    """Not at the end of a long period; a version that serves can wait for it."""
    registry = Registry()
    registry.down = True
    async with polling(registry):
        await until(lambda: registry.asked == 2)  # after a second, and not after an hour
    async with polling(registry, serves=True):
        seen = registry.asked
        await asyncio.sleep(1.5)
        assert registry.asked == seen


async def test_an_error_that_nobody_foresaw_does_not_end_the_polling() -> None:
    """It counts as no answer, and its text goes to the log alone."""
    registry = Registry()
    registry.bug = ZeroDivisionError("secret")
    async with polling(registry) as poller:
        registry.bug = None
        poller.wake()
        await until(lambda: registry.asked == 2)


async def test_a_cancellation_that_meets_a_wake_ends_it() -> None:
    """A model that is promoted while it is unloaded can be unloaded."""
    policy = FollowAlias("fraud", "champion")
    answers: list[bool] = []
    manager = ModelManager("fraud", policy.uri, Idle(), Idle())
    poller = Poller(Registry(), policy, manager, FOREVER, lambda name, ok: answers.append(ok), least_gap=GAP)
    task = asyncio.create_task(poller.run())
    await until(lambda: len(answers) > 0)
    await asyncio.sleep(0)  # it rests
    poller.wake()
    task.cancel()
    await asyncio.wait({task}, timeout=10)
    assert task.cancelled()


LAST = ModelVersion("fraud", "7", "source")


@contextlib.asynccontextmanager
async def starting(source: Any, **how: Any) -> AsyncIterator[ModelManager]:
    """A manager whose poller begins to ask, and remembers version 7."""
    policy = FollowAlias("fraud", "champion")
    manager = ModelManager("fraud", policy.uri, Idle(), Idle())
    poller = Poller(source, policy, manager, GAP, lambda name, ok: None, lambda: LAST, least_gap=GAP, **how)
    task = asyncio.create_task(poller.run())
    try:
        yield manager
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.audit("40")
async def test_a_start_does_not_wait_for_a_registry_that_takes_its_time() -> None:
    """It begins with what served last, says that this may be old, and takes the answer when it comes."""
    registry = Registry()
    registry.may_answer.clear()
    async with starting(registry) as manager:
        await until(lambda: manager.aspired == (LAST,))
        assert (manager.stale, manager.problem, registry.asked) == (True, "the registry has not answered yet", 1)
        registry.may_answer.set()
        await until(lambda: manager.aspired[0].version == "1")
        assert (manager.stale, manager.problem) == (False, None)


@pytest.mark.audit("40")
async def test_what_the_registry_has_denied_is_not_begun_with() -> None:
    """Its last word was that there is nothing: what served once is no answer, however long the next one takes."""

    class Denies(Registry):
        def catalogue(self, policy: Policy) -> Catalogue:
            super().catalogue(policy)
            raise VersionNotFound("gone")

    registry, missing = Denies(), list[bool]()
    async with starting(registry, missing=lambda: missing.append(True), deadline=1.5) as manager:
        await until(lambda: missing == [True])
        registry.may_answer.clear()
        await until(lambda: manager.stale)
        assert manager.aspired == ()
        registry.may_answer.set()


@pytest.mark.audit("40")
async def test_a_question_that_hangs_for_ever_is_asked_anew() -> None:
    """A connection that drips never ends; a registry that has come back is heard all the same, and no more than three
    questions hang."""

    class Hangs(Registry):
        left = 2

        def catalogue(self, policy: Policy) -> Catalogue:
            self.left -= 1
            if self.left >= 0:
                self.may_answer.wait(10)
            self.asked += 1
            return (ModelVersion(policy.name, "9", aliases=("champion",)),)

    registry = Hangs()
    registry.may_answer.clear()
    async with starting(registry, deadline=0.05) as manager:
        await until(lambda: manager.aspired != () and manager.aspired[0].version == "9")
        assert registry.asked >= 1
        registry.may_answer.set()


@pytest.mark.audit("12")
@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (VersionNotFound("gone"), True),
        ((), True),
        ((ModelVersion("fraud", "1", aliases=("champion",), usable=False),), False),
        (RegistryUnavailable("down"), False),
    ],
)
async def test_what_counts_as_nothing_to_serve(answer: Catalogue | Exception, ends: bool) -> None:
    """The registry's word that there is nothing does; an outage, and a version that is still being registered, do not."""

    class Says(Registry):
        def catalogue(self, policy: Policy) -> Catalogue:
            self.asked += 1
            if isinstance(answer, Exception):
                raise answer
            return answer

    registry, missing = Says(), list[bool]()
    async with starting(registry, missing=lambda: missing.append(True)):
        await until(lambda: registry.asked >= 2)
        assert bool(missing) is ends
