"""Asks the registry what each served model aspires to, again and again.

On an error the last aspiration stays, the poller backs off, and the error is counted and shown. The registry's client
blocks, so every call runs in a thread; one that hangs delays only its own model. A webhook wakes the poller, which then
looks at once, but never twice within a second.
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
    ) -> None:
        """`recall` gives the version that served last; it blocks, and is asked if the registry is down at start.
        `changed` is called when the registry says something else than before."""
        self.policy = policy
        self._source, self._manager, self._period = source, manager, period
        self._counted, self._recall, self._changed, self._least_gap = counted, recall, changed, least_gap
        self._failures = 0
        self._asking: asyncio.Task[Catalogue] | None = None
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
        delay = self._period if not self._failures else max(self._period, backoff(self._failures))
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it loses a cancellation that meets the event.
            async with asyncio.timeout(delay * random.uniform(0.9, 1.1)):  # noqa: S311
                await self._wake.wait()
            await asyncio.sleep(min(self._least_gap, delay) - (loop.time() - began))

    async def poll(self) -> None:
        """One look at the registry."""
        try:
            catalogue = await self._ask()
        except VersionNotFound as error:
            self._answered((), str(error))
        except RegistryUnavailable as error:
            await self._unavailable(error)
        except Exception as error:
            log.error("polling stumbled", extra={"model": self._manager.name}, exc_info=error)
            await self._unavailable(RegistryUnavailable(f"{self.policy.uri} could not be asked for"))
        else:
            aspired = self.policy.aspire(catalogue)
            self._answered(aspired, None if aspired else f"{self.policy.uri} names no usable version")

    async def _ask(self) -> Catalogue:
        """One question at a time: one that hangs in its thread is waited for again, not asked again."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(in_thread(lambda: self._source.catalogue(self.policy)))
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                return await asyncio.shield(self._asking)
        except TimeoutError as error:
            raise RegistryUnavailable(f"the registry did not answer for {self.policy.uri} in time") from error

    def _answered(self, aspired: Catalogue, problem: str | None) -> None:
        if self._failures:
            log.info("registry answers again", extra={"model": self._manager.name, "failures": self._failures})
        if problem is not None and problem != self._manager.problem:
            log.warning("nothing to aspire to", extra={"model": self._manager.name, "reason": problem})
        self._failures = 0
        self._answered_at = time.monotonic()
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
        aspired = self._manager.aspired
        if not aspired and (last := await in_thread(self._recall)) is not None:
            log.warning("starting with the last good version", extra={"model": last.name, "version": last.version})
            aspired = (last,)
        self._manager.aspire(aspired, str(error), stale=True)
