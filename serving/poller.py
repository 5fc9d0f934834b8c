"""Asks the registry what each served model aspires to, again and again.

On an error the last aspiration stays, the poller backs off, and the error is counted and shown. The registry's client
blocks, so every call runs in a thread; one that hangs delays only its own model. A start does not wait for a registry
that takes its time: after a second it begins with what served last. A webhook wakes the poller, which then looks at
once, but never twice within a second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable
from typing import Protocol

from registry.errors import RegistryUnavailable, VersionNotFound
from registry.policies import Catalogue, Policy
from registry.versions import ModelVersion
from serving.lifecycle import backoff
from serving.threads import in_thread

log = logging.getLogger("headway.registry")
#: Longer than the registry's own patience: what is left then is a connection that drips.
DEADLINE_SECONDS = 30.0
#: A question that hangs is asked anew until so many do: each keeps a thread and a connection.
MOST_HANGING = 3
#: What served last is begun with when the first answer takes longer.
RECALL_SECONDS = 1.0
UNANSWERED = "the registry has not answered yet"
#: Seconds between the beginnings of two polls that a wake asks for.
LEAST_GAP = 1.0


class VersionSource(Protocol):
    """What lists a catalogue: the MLflow registry, or a fake of it."""

    def catalogue(self, policy: Policy) -> Catalogue:
        """The versions that the policy has to choose from. Blocks."""
        ...


class Aspirant(Protocol):
    """Who is told what the registry says: the manager of a model, or the herd of all that carry an alias."""

    name: str
    aspired: Catalogue
    problem: str | None

    @property
    def serves(self) -> bool:
        """Whether requests are answered by what the registry said before."""
        ...

    def aspire(self, versions: Catalogue, problem: str | None = None, *, stale: bool = False) -> None:
        """The full set of versions that should be served."""
        ...


class Poller:
    """Polls for one model, or for one list of them. `counted(ok)` is called after every poll."""

    def __init__(
        self,
        source: VersionSource,
        policy: Policy,
        manager: Aspirant,
        period: float,
        counted: Callable[[str, bool], None],
        recall: Callable[[], ModelVersion | None] = lambda: None,
        changed: Callable[[], None] = lambda: None,
        least_gap: float = LEAST_GAP,
        missing: Callable[[], None] = lambda: None,
        deadline: float = DEADLINE_SECONDS,
    ) -> None:
        """`recall` gives the version that served last; it blocks, and is asked if the registry is slow or down at start.
        `changed` is called when the registry says something else than before, `missing` when it says that there is
        nothing to serve. `deadline` is seconds for one look."""
        self.policy = policy
        self._source, self._manager, self._period = source, manager, period
        self._counted, self._recall, self._changed, self._least_gap = counted, recall, changed, least_gap
        self._missing, self._deadline = missing, deadline
        self._failures = 0
        self._denied = False
        self._asking: list[asyncio.Task[Catalogue]] = []
        self._asked_at = 0.0
        self._wake = asyncio.Event()
        self._answered_at = time.monotonic()

    @property
    def staleness(self) -> float:
        """Seconds since the registry last answered, or since the start."""
        return time.monotonic() - self._answered_at

    def wake(self) -> None:
        """Look soon instead of at the end of the period or back-off; any number of calls ask for one look."""
        self._wake.set()

    async def run(self) -> None:
        """Polls until cancelled, with a jitter of a tenth so that many pods do not ask in step."""
        loop = asyncio.get_running_loop()
        while True:
            # Cleared before the question: whoever wakes while it is being asked wants another answer.
            self._wake.clear()
            began = loop.time()
            await self.poll()
            await self._rest(began)

    async def _rest(self, began: float) -> None:
        """Waits for the end of the period, or for a wake and what is left of the least gap since `began`."""
        loop = asyncio.get_running_loop()
        delay = self._delay()
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it loses a cancellation that meets the event.
            async with asyncio.timeout(delay * random.uniform(0.9, 1.1)):  # noqa: S311
                await self._wake.wait()
            await asyncio.sleep(min(self._least_gap, delay) - (loop.time() - began))

    def _delay(self) -> float:
        """Seconds until the next look. While nothing serves, a registry that does not answer is asked by back-off alone."""
        if not self._failures:
            return self._period
        return max(self._period if self._manager.serves else 0.0, backoff(self._failures))

    async def poll(self) -> None:
        """One look at the registry."""
        reminder = asyncio.create_task(self._remind())
        try:
            await self._look()
        finally:
            reminder.cancel()

    async def _remind(self) -> None:
        await asyncio.sleep(RECALL_SECONDS)
        if not self._manager.aspired:
            await self._begin_with_last(UNANSWERED)

    async def _look(self) -> None:
        try:
            catalogue = await self._ask()
        except VersionNotFound as error:
            self._answered((), str(error))
            self._missing()
        except RegistryUnavailable as error:
            await self._unavailable(error)
        except Exception as error:
            log.error("polling stumbled", extra={"model": self._manager.name}, exc_info=error)
            await self._unavailable(RegistryUnavailable(f"{self.policy.uri} could not be asked for"))
        else:
            aspired = self.policy.aspire(catalogue)
            self._answered(aspired, None if aspired else f"{self.policy.uri} names no usable version")
            if not aspired and all(version.usable for version in catalogue):
                self._missing()  # what is still being registered may yet come

    async def _ask(self) -> Catalogue:
        try:
            async with asyncio.timeout(self._deadline):
                return await asyncio.shield(self._question())
        except TimeoutError as error:
            raise RegistryUnavailable(f"the registry did not answer for {self.policy.uri} in time") from error

    def _question(self) -> asyncio.Task[Catalogue]:
        """The question that is being asked; another one if it hangs in its thread, within a bound."""
        now = time.monotonic()
        self._asking = [task for task in self._asking if not task.done()]
        hangs = bool(self._asking) and now - self._asked_at >= self._deadline
        if not self._asking or (hangs and len(self._asking) < MOST_HANGING):
            task = asyncio.create_task(in_thread(lambda: self._source.catalogue(self.policy)))
            task.add_done_callback(_heard)
            self._asking.append(task)
            self._asked_at = now
        return self._asking[-1]

    def _answered(self, aspired: Catalogue, problem: str | None) -> None:
        if self._failures:
            log.info("registry answers again", extra={"model": self._manager.name, "failures": self._failures})
        if problem is not None and problem != self._manager.problem:
            log.warning("nothing to aspire to", extra={"model": self._manager.name, "reason": problem})
        self._failures = 0
        self._answered_at = time.monotonic()
        self._denied = not aspired
        self._counted(self._manager.name, True)
        changed = aspired != self._manager.aspired
        self._manager.aspire(aspired, problem)
        if changed:
            self._changed()

    async def _unavailable(self, error: RegistryUnavailable) -> None:
        self._failures += 1
        self._counted(self._manager.name, False)
        if self._failures == 1:
            log.error(
                "registry does not answer",
                extra={"model": self._manager.name, "reason": str(error), "cause": str(error.__cause__)[:500]},
            )
        if self._manager.aspired or not await self._begin_with_last(str(error)):
            self._manager.aspire(self._manager.aspired, str(error), stale=True)

    async def _begin_with_last(self, problem: str) -> bool:
        """Aspires to what served last, unless the registry's last word was that there is nothing."""
        last = None if self._denied else await in_thread(self._recall)
        if last is None or self._manager.aspired:
            return False
        log.warning("starting with the last good version", extra={"model": last.name, "version": last.version})
        self._manager.aspire((last,), problem, stale=True)
        return True


def _heard(task: asyncio.Task[Catalogue]) -> None:
    """Whoever waited has heard of an error; there may be nobody left."""
    if not task.cancelled():
        task.exception()
