"""One worker of several: what it cannot say or do alone goes over the link to the supervisor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

from serving.crew import Alone
from serving.doors import Doors
from serving.errors import NotReady, ServingError
from serving.slices import Shared
from serving.workers.link import Link, LinkLost, Refused

log = logging.getLogger("headway.workers")
TICK_SECONDS = 0.1
#: The supervisor waits less for the workers that it asks: it answers with what it has before this is over.
METRICS_SECONDS = 5.0
#: Loading by request has bounds of its own in every worker; this one is for a supervisor that does not answer.
REPOSITORY_SECONDS = 900.0
HELLO_SECONDS = 30.0
REPLAY_SECONDS = 60.0


class Linked:
    """A process's crew while it is a worker: `own` is what it does itself, `end` its end of the link."""

    def __init__(self, own: Alone, end: socket.socket, doors: Doors | None = None) -> None:
        self._own, self._end, self.doors = own, end, doors
        self.listens = False
        self._link: Link | None = None
        self._all_ready = False
        self._admitted, self._own_ready = asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []
        self._page = Shared(self._everybodys)

    # -- the port -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """What the supervisor said last: asking it would make a probe wait for the slowest worker."""
        return self._all_ready

    async def join(self, stop: Callable[[], None]) -> None:
        """Returns when this worker may listen: at once if it is told so, else when it has what the others have."""
        self._link = await Link.over(self._end, self._answer)
        self._tasks.append(asyncio.create_task(self._follow(self._link, stop)))
        told = await self._link.ask("hello", seconds=HELLO_SECONDS)
        self._tasks.append(asyncio.create_task(self._report(self._link)))
        catching_up = asyncio.create_task(self._catch_up(told["loaded"]))
        self._tasks.append(catching_up)
        admitted = asyncio.create_task(self._admitted.wait())
        await asyncio.wait((admitted, catching_up), return_when=asyncio.FIRST_COMPLETED)
        admitted.cancel()

    async def leave(self) -> None:
        """Hands over what was counted here, and hangs up."""
        try:
            await self._ask("farewell", await self._own.exposition(), METRICS_SECONDS)
        except (TimeoutError, LinkLost, Refused):
            log.warning("what this worker counted of late is lost")
        for task in self._tasks:
            task.cancel()

    async def exposition(self) -> bytes:
        """All series of all workers; of this one alone, if the supervisor does not answer."""
        return await self._page()

    async def _everybodys(self) -> bytes:
        try:
            return bytes(await self._ask("metrics", None, METRICS_SECONDS))
        except (TimeoutError, LinkLost, Refused) as error:
            log.error("the metrics shown are those of one worker alone", extra={"reason": str(error)})
            return await self._own.exposition()

    async def repository(self, name: str, *, load: bool) -> None:
        """Loads or unloads a model in all workers. The first error counts."""
        try:
            await self._ask("repository", {"name": name, "load": load}, REPOSITORY_SECONDS)
        except (TimeoutError, LinkLost) as error:
            raise NotReady("The other workers could not be reached; ask again.") from error
        except Refused as error:
            raise _rebuilt(error) from error

    def nudge(self, name: str) -> None:
        """The supervisor passes it on."""
        if self._link is not None:
            self._link.tell("nudge", name)

    # -- what the supervisor says -----------------------------------------------------------------------------------

    async def _answer(self, what: str, facts: Any) -> Any:
        match what:
            case "ping":
                return None
            case "crew":
                self._all_ready = facts["ready"]
                if self.doors is not None:
                    self.doors.ending = facts["ending"]
                    self.doors.stand_in(facts["doors"])
                if facts["listen"]:
                    self._admitted.set()
            case "page":
                return await self._own.exposition()
            case "repository":
                await self._own.repository(facts["name"], load=facts["load"])
            case "wake":
                self._own.wake(facts)
        return None

    # -- in the background ------------------------------------------------------------------------------------------

    async def _follow(self, link: Link, stop: Callable[[], None]) -> None:
        await link.run()
        log.error("the supervisor is gone")
        if self.doors is not None:
            self.doors.ending = True
        stop()

    async def _report(self, link: Link) -> None:
        told = None
        while True:
            state = {"ready": self._own.ready, "listens": self.listens}
            if state != told:
                link.tell("state", state)
            if state["ready"]:
                self._own_ready.set()
            told = state
            await asyncio.sleep(TICK_SECONDS)

    async def _catch_up(self, loaded: list[str]) -> None:
        """Returns when this worker has what the others have: every required model, and what was loaded by request."""
        await self._own_ready.wait()
        await asyncio.gather(*map(self._replay, loaded))

    async def _replay(self, name: str) -> None:
        """Loads what was loaded by request before this worker was there; what cannot be loaded keeps nobody waiting."""
        try:
            async with asyncio.timeout(REPLAY_SECONDS):
                await self._load(name)
        except (TimeoutError, ServingError) as error:
            log.warning(
                "a model was loaded by request, and cannot be loaded here", extra={"model": name}, exc_info=error
            )

    async def _load(self, name: str) -> None:
        while True:
            try:
                return await self._own.repository(name, load=True)
            except NotReady:  # it is not known yet which models there are, for one
                await asyncio.sleep(TICK_SECONDS)

    async def _ask(self, what: str, facts: Any, seconds: float) -> Any:
        if self._link is None:
            raise LinkLost("the supervisor has not been reached yet")
        return await self._link.ask(what, facts, seconds=seconds)


def _rebuilt(refused: Refused) -> Exception:
    """What a worker raised, as the class that it was; what the contract does not know is none of the caller's business."""
    cls = {cls.__name__: cls for cls in _family(ServingError)}.get(refused.kind, ServingError)
    return cls(str(refused)) if refused.retry_after is None else cls(str(refused), refused.retry_after)


def _family(cls: type[Exception]) -> Iterator[type[Exception]]:
    yield cls
    for below in cls.__subclasses__():
        yield from _family(below)
