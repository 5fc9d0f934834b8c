"""The supervisor of several workers: starts them, starts them again, and speaks for all of them.

It serves nobody and imports none of the model libraries: what it does not do cannot bring it down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from monitoring.crew import CrewMetrics
from monitoring.ledger import Ledger
from monitoring.merge import page_of, parse
from serving.lifecycle import backoff
from serving.slices import Shared
from serving.threads import in_thread
from serving.workers.link import LinkLost, Refused
from serving.workers.member import Bounds, Fate, Member, Start
from serving.workers.worker import FAILED_FAST

log = logging.getLogger("headway.workers")
KEEP_SERIES_SECONDS = 900.0
#: Less than a worker waits for the answer that is made of these.
PAGE_SECONDS = 2.0
REPOSITORY_SECONDS = 800.0


class Nursery(Protocol):
    """What workers are forked from."""

    def warm(self) -> None:
        """Returns when it is there, and has imported what all workers share; blocks, for seconds if it was not.

        Raises OSError or EOFError if it does not come up.
        """
        ...

    @property
    def start(self) -> Start:
        """Forks one."""
        ...


class Supervisor:
    """Keeps `workers` processes running, and drains them within `drain_bound` seconds."""

    def __init__(self, workers: int, nursery: Nursery, drain_bound: float, bounds: Bounds) -> None:
        self._nursery, self._drain_bound, self._bounds = nursery, drain_bound, bounds
        self._ids = count()
        self._members = [Member(number, next(self._ids), early=True) for number in range(1, workers + 1)]
        self._ending = asyncio.Event()
        self._ever_listened = False
        self._exit_code = 0
        self._registry = CollectorRegistry()
        self._metrics = CrewMetrics(self._registry, [fate.value for fate in Fate])
        self._ledger = Ledger(KEEP_SERIES_SECONDS)
        #: The ledger is long at work, in a thread: one at a time. The loop must hear workers and tell them meanwhile.
        self._counting = asyncio.Lock()
        self._page = Shared(self._write)
        self._loaded: dict[str, None] = {}
        self._one_at_a_time: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self) -> int:
        """Serves until a signal, or until a worker says that it is no use; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        keepers = [asyncio.create_task(self._keep(place)) for place in range(len(self._members))]
        try:
            ending = asyncio.create_task(self._ending.wait())
            await asyncio.wait((ending, *keepers), return_when=asyncio.FIRST_COMPLETED)
            self.stop()  # a keeper that ends by itself has failed
            await self._drain(keepers)
        finally:
            for member in self._members:
                member.signal(signal.SIGKILL)
        log.info("stopped", extra={"exit_code": self._exit_code})
        return self._exit_code

    def stop(self) -> None:
        """Has the workers drain, and `run` return."""
        self._ending.set()

    # -- workers come and go ----------------------------------------------------------------------------------------

    async def _keep(self, place: int) -> None:
        """Has a worker in this place until the end."""
        failures = 0
        while not self._ending.is_set():
            member, began = self._members[place], time.monotonic()
            code = await self._live(member)
            if self._ending.is_set():
                return
            if code == FAILED_FAST or (code > 0 and not self._ever_listened):
                self._give_up(member, code)
                return
            failures = 1 if time.monotonic() - began > self._bounds.steady else failures + 1
            pause = backoff(failures, self._bounds.first_pause, self._bounds.longest_pause)
            self._report(member, code, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._ending.wait()
                    return
            self._members[place] = Member(member.number, next(self._ids), early=False)

    async def _live(self, member: Member) -> int:
        """One life of a worker, and its exit code."""
        try:
            async with asyncio.timeout(self._bounds.warm):
                await in_thread(self._nursery.warm)
            code = (
                0
                if self._ending.is_set()
                else await member.live(self._nursery.start, self._hear, self._publish, self._bounds)
            )
        except (OSError, EOFError) as error:  # a TimeoutError is an OSError
            log.error("a worker cannot be started", extra={"worker": member.number}, exc_info=error)
            member.fate, code = Fate.START, 1
        member.end()
        self._publish()
        async with self._counting:
            member.retired = True
            self._ledger.retire(member.id, time.monotonic())
        if self._ending.is_set() and code not in (0, -signal.SIGTERM):
            self._exit_code = 1
        return code

    def _report(self, member: Member, code: int, pause: float) -> None:
        assert member.fate is not None
        self._metrics.restarts.labels(member.fate).inc()
        facts = {"worker": member.number, "reason": member.fate, "exit_code": code, "again_in_seconds": pause}
        log.error("a worker is gone", extra=facts)

    def _give_up(self, member: Member, code: int) -> None:
        """What ended this worker would end every other."""
        log.error("a worker cannot serve; the server ends", extra={"worker": member.number, "exit_code": code})
        self._exit_code = 1
        self.stop()

    async def _drain(self, keepers: list[asyncio.Task[None]]) -> None:
        """Every worker drains by itself, all at once, within the bound."""
        log.info("draining", extra={"workers": len(self._members)})
        self._publish()
        for member in self._members:
            member.signal(signal.SIGTERM)
        done, late = await asyncio.wait(keepers, timeout=self._drain_bound)
        for keeper in done:
            keeper.result()
        if late:
            log.error("workers did not end in time", extra={"workers": len(late), "seconds": self._drain_bound})
            self._exit_code = 1
            for member in self._members:
                member.signal(signal.SIGKILL)
            for keeper in late:
                keeper.cancel()
            await asyncio.wait(late)

    # -- what holds for all -----------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Tells every worker whether all that listen are ready, and whether it is to listen though it is not ready."""
        answering = [member for member in self._members if member.early or member.listens]
        ready = not self._ending.is_set() and bool(answering) and all(member.ready for member in answering)
        self._metrics.workers.set(sum(member.listens for member in self._members))
        doors, ending = self._stand_ins(), self._ending.is_set()
        for member in self._members:
            said = {"listen": member.early or not answering, "doors": doors.get(member.number, [])}
            member.tell_crew({"ready": ready, "ending": ending, **said})

    def _stand_ins(self) -> dict[int, list[int]]:
        """Who accepts for those that do not, in turn: nobody who connects waits for a worker that is stopped or gone."""
        fit = [member.number for member in self._members if member.listens and not member.silent]
        unfit = [member.number for member in self._members if member.silent or member.absent]
        return {number: unfit[at :: len(fit)] for at, number in enumerate(fit)}

    async def _hear(self, member: Member, what: str, facts: Any) -> Any:
        """Answers a worker."""
        match what:
            case "hello":
                member.said_hello()
                if self._ending.is_set():  # it was not there yet when all others were told
                    member.signal(signal.SIGTERM)
                asyncio.get_running_loop().call_soon(self._publish)
                return {"loaded": list(self._loaded)}
            case "state":
                member.say(ready=facts["ready"], listens=facts["listens"])
                self._ever_listened = self._ever_listened or member.listens
                self._publish()
            case "farewell":
                member.said_farewell = True
                await self._note(member, facts)
            case "nudge":
                for other in self._members:
                    if other is not member:
                        other.tell("wake", facts)
            case "metrics":
                return await self.exposition()
            case "repository":
                await self.repository(facts["name"], load=facts["load"])
        return None

    async def exposition(self) -> bytes:
        """All series of all workers, those that are gone included, in Prometheus's text format."""
        return await self._page()

    async def _write(self) -> bytes:
        await asyncio.gather(*(self._ask_for_page(m) for m in self._members if m.speaks and not m.silent))
        async with self._counting:
            return await in_thread(self._merged)

    def _merged(self) -> bytes:
        return page_of({**self._ledger.merged(time.monotonic()), **parse(generate_latest(self._registry))})

    async def _note(self, member: Member, said: bytes) -> None:
        async with self._counting:
            if not member.retired:
                await in_thread(lambda: self._ledger.note(member.id, parse(said), time.monotonic()))

    async def _ask_for_page(self, member: Member) -> None:
        """Of one that does not answer in time, the last one stands."""
        try:
            page = await member.ask("page", seconds=PAGE_SECONDS)
        except (TimeoutError, LinkLost, Refused) as error:
            log.warning("a worker does not say its metrics", extra={"worker": member.number, "reason": repr(error)})
        else:
            await self._note(member, page)

    async def repository(self, name: str, *, load: bool) -> None:
        """Has a model loaded or unloaded in every worker; one that comes up meanwhile hears of it when it says hello."""
        lock = self._one_at_a_time.setdefault(name, asyncio.Lock())
        async with lock:
            before = name in self._loaded
            self._remember(name, load=load)
            facts = {"name": name, "load": load}
            asked = [m.ask("repository", facts, seconds=REPOSITORY_SECONDS) for m in self._members if m.speaks]
            answers = await asyncio.gather(*asked, return_exceptions=True)
            errors = [a for a in answers if isinstance(a, Exception) and not isinstance(a, LinkLost)]
            if errors:
                self._remember(name, load=before)
        if errors:
            raise errors[0]

    def _remember(self, name: str, *, load: bool) -> None:
        if load:
            self._loaded[name] = None
        else:
            self._loaded.pop(name, None)
