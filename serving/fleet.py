"""The served names: which run, which sleep, and who leaves when others need the memory.

A model on demand costs nothing until its first request: nobody polls for it and nothing is loaded. The first request
starts its poller and manager, and waits for a READY version, within a bound. A request that names a version or a label
of such a model has that version loaded beside, as an extra: it counts in the memory budget and leaves like a model.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field

from registry.policies import FollowAlias, Pinned
from serving.errors import BadRequest, DeadlineExceeded, NoRoom, NotFound, NotLoadedYet, NotReady
from serving.herd import Herd
from serving.lifecycle import State
from serving.manager import COMING, ModelManager
from serving.memory import Memory
from serving.named import Finder
from serving.poller import Poller
from serving.schema import shown
from serving.servable import Servable
from serving.turns import Turns

ANY = "any"
#: A model on demand that could not be loaded is not tried again for those who do not ask: after so many seconds it sleeps.
GIVE_UP_SECONDS = 60.0


@dataclass(eq=False)
class Seat:
    """One served name: its manager and who polls for it, each with its task; `polling` is None while the model sleeps.
    `awaited` counts the requests that wait, by number, None for the model itself."""

    manager: ModelManager
    poller: Poller
    running: asyncio.Task[None] | None = None
    polling: asyncio.Task[None] | None = None
    awaited: Counter[str | None] = field(default_factory=Counter)
    doubt: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def waiting(self, version: str | None) -> Iterator[None]:
        """What somebody waits for does not leave before that one has had it."""
        self.awaited[version] += 1
        try:
            yield
        finally:
            self.awaited[version] -= 1
            if not self.awaited[version]:
                del self.awaited[version]

    @property
    def empty(self) -> bool:
        """Whether nothing is loaded and nobody waits."""
        return not (self.awaited or self.manager.servables or self.manager.leaving) and self.manager.sleeps

    @property
    def idle(self) -> bool:
        """Whether it is empty and nobody polls."""
        return self.polling is None and self.empty


class Fleet:
    """All served names. Required ones run from the start; those on demand come and go. Lives on the event loop."""

    def __init__(
        self,
        seats: dict[str, Seat],
        budget_bytes: int | None,
        wait_seconds: float,
        resident: Callable[[], int],
        finder: Finder,
        most_extras: int = 4,
        give_up: float = GIVE_UP_SECONDS,
        leave_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`resident` gives the bytes of memory that the process holds now; `most_extras` is how many versions that
        requests name one model may have at a time; `leave_seconds` is how long a load waits for others to leave."""
        self.seats, self._wait, self._finder = seats, wait_seconds, finder
        self._most_extras, self._give_up_after = most_extras, give_up
        self._memory = Memory(self, budget_bytes, resident, leave_seconds=leave_seconds, clock=clock)
        #: of the models that are cheap enough for the loop
        self.turns = Turns()
        self._herd: Herd | None = None
        #: who asks for the names of the herd
        self.herding: Poller | None = None
        self._herding: asyncio.Task[None] | None = None

    # -- names ----------------------------------------------------------------------------------------------------

    def follow(self, herd: Herd, poller: Poller, make: Callable[[str], Seat], forget: Callable[[str], None]) -> None:
        """Serves the names of a herd, too: `make` gives one its seat when it is asked for, and `forget` hears when it is
        no longer needed."""
        self._herd, self.herding, self._make, self._forget = herd, poller, make, forget
        self._own = frozenset(self.seats)

    def seat(self, name: str) -> Seat:
        """The seat of a served name. Raises NotFound, or NotReady while it is not known which names there are."""
        seat, herd = self.seats.get(name), self._herd
        if seat is not None and not self._gone(name, seat):
            return seat
        if herd is None or (herd.known and name not in herd.names):
            raise NotFound(f"There is no model {shown(name)!r} here.")
        if not herd.known:
            raise NotReady(
                f"It is not known yet which models there are: {herd.problem or 'the registry is being asked'}."
            )
        seat = self.seats[name] = self._make(name)
        return seat

    def knows(self, name: str) -> bool:
        """Whether the name is served. Asked for each request: it looks names up, and never lists them."""
        seat = self.seats.get(name)
        if seat is not None:
            return not self._gone(name, seat)
        return self._herd is not None and name in self._herd.names

    @property
    def asleep(self) -> list[str]:
        """The names that were never asked for, or not of late."""
        return [] if self._herd is None else sorted(self._herd.names - self.seats.keys())

    @property
    def names(self) -> list[str]:
        """All served names."""
        return [*(name for name, seat in self.seats.items() if not self._gone(name, seat)), *self.asleep]

    @property
    def pollers(self) -> list[Poller]:
        """Everybody who asks the registry, or would."""
        pollers = [seat.poller for seat in self.seats.values()]
        return pollers if self.herding is None else [*pollers, self.herding]

    def _gone(self, name: str, seat: Seat) -> bool:
        """Whether a name has left the herd and nothing of it is loaded."""
        herd = self._herd
        return herd is not None and name not in self._own and name not in herd.names and seat.empty

    def tidy(self) -> None:
        """Forgets the seats of those in the herd that sleep again, or have left it."""
        for name, seat in list(self.seats.items()):
            if self._gone(name, seat):
                self._rest(seat)
            if name not in self._own and seat.idle:
                if seat.running is not None:
                    seat.running.cancel()
                del self.seats[name]
                self._forget(name)

    # -- coming and going -----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts every name that does not sleep."""
        for seat in self.seats.values():
            if not seat.manager.sleeps:
                self._wake(seat)
        if self.herding is not None:
            self._herding = asyncio.create_task(self.herding.run())

    async def stop(self) -> None:
        """Ends all work in the background."""
        every = [task for seat in self.seats.values() for task in (seat.polling, seat.running)]
        tasks = [task for task in (*every, self._herding) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, seat: Seat) -> None:
        """A manager that was needed once keeps its loop, which does nothing when there is nothing to do."""
        if seat.running is None:
            seat.running = asyncio.create_task(seat.manager.run())

    def _wake(self, seat: Seat) -> None:
        self._run(seat)
        if seat.polling is None:
            seat.manager.come()
            seat.polling = asyncio.create_task(seat.poller.run())

    def _rest(self, seat: Seat, error: NotReady | None = None) -> None:
        """Has the model itself unloaded, whoever waits for that; `error` is for those who wait for the model."""
        if seat.polling is not None:
            seat.polling.cancel()
            seat.polling = None
            seat.manager.rest(error)

    async def dismiss(self, name: str) -> None:
        """Unloads a model on demand; requests that hold it finish, within the drain bound. BadRequest for others.
        A caller that gives up does not stop it, and what is still being loaded leaves when it has been."""
        seat = self.seat(name)
        manager = seat.manager
        if not manager.sleeps:
            raise BadRequest(f"Model {shown(name)!r} is not loaded on demand: it stays.")
        for version in manager.extras.versions:
            manager.extras.drop(version.version)
        self._rest(seat)
        for servable in manager.drain_unwanted():
            await servable.gone.wait()

    # -- requests -------------------------------------------------------------------------------------------------

    async def summon(
        self, name: str, *, version: str | None = None, label: str | None = None, seconds: float | None = None
    ) -> str | None:
        """Returns when the name has a READY version, or the version or label that is named is READY, and its number;
        None means the current one. Nothing happens between that and what the caller does next.

        Raises NotLoadedYet if it takes longer than the bound, DeadlineExceeded if the caller's own `seconds` end first,
        NotFound if there is no such version, NotReady if none can be loaded, NoRoom if it does not fit.
        """
        seat = self.seat(name)
        bound = self._wait if seconds is None else min(seconds, self._wait)
        try:
            async with asyncio.timeout(bound):
                with seat.waiting(ANY):
                    return await self._summon(seat, version, label)
        except TimeoutError as error:
            if bound < self._wait:
                raise DeadlineExceeded("The request's deadline passed while its model was loaded.") from error
            raise NotLoadedYet(f"Model {shown(name)!r} is being loaded; try again.", math.ceil(self._wait)) from error

    def at_hand(self, name: str, version: str | None, label: str | None) -> Servable | None:
        """The READY version that a request of a model on demand names, if it is known without a question."""
        seat = self.seats[name]
        current, policy = seat.manager.current, seat.poller.policy
        if label is not None:
            if current is not None and (label in current.version.aliases or policy == FollowAlias(policy.name, label)):
                return current
            known = self._finder.known(FollowAlias(policy.name, label))
            version = None if known is None else known.version
        return current if version is None and label is None else seat.manager.find(version)

    async def _summon(self, seat: Seat, version: str | None, label: str | None) -> str | None:
        policy = seat.poller.policy
        if label is not None and policy != FollowAlias(policy.name, label):
            version = await self._labelled(seat, label)
        with seat.waiting(version):
            await (self._main(seat) if version is None else self._extra(seat, version))
        return version

    async def _main(self, seat: Seat) -> None:
        while seat.manager.current is None:
            self._wake(seat)
            try:
                await seat.manager.turn.wait()
            except NotReady:
                self._doubt(seat)
                raise

    def _doubt(self, seat: Seat) -> None:
        """What could not be loaded is tried again for a while, lest every request begin anew, and then left alone."""
        if seat.doubt is not None:
            seat.doubt.cancel()
        if seat.manager.sleeps:
            seat.doubt = asyncio.get_running_loop().call_later(self._give_up_after, self._give_up, seat)

    def _give_up(self, seat: Seat) -> None:
        if seat.manager.current is None and not seat.awaited[None]:
            self._rest(seat)

    async def _labelled(self, seat: Seat, label: str) -> str:
        """The number that a label means: what the current version is called is known, anything else is asked for."""
        current = seat.manager.current
        if current is not None and label in current.version.aliases:
            return current.version.version
        return (await self._finder.find(FollowAlias(seat.poller.policy.name, label))).version

    async def _extra(self, seat: Seat, number: str) -> None:
        manager = seat.manager
        while manager.find(number) is None:
            version = await self._finder.find(Pinned(seat.poller.policy.name, number))
            self._run(seat)
            if version not in manager.extras and len(manager.extras) >= self._most_extras:
                self._free_extra(seat)
            await manager.extras.want(version).wait()

    def _free_extra(self, seat: Seat) -> None:
        idle = [s for s in seat.manager.servables if s.version in seat.manager.extras and _may_go(seat, s)]
        if not idle:
            raise NoRoom(f"Too many versions of model {shown(seat.manager.name)!r} are in use; ask again.", 1)
        seat.manager.extras.drop(min(idle, key=lambda s: s.used).version.version)

    # -- who leaves (what the memory budget asks: `serving.memory.Residents`) -----------------------------------------

    @contextlib.asynccontextmanager
    async def room(self, servable: Servable) -> AsyncIterator[None]:
        """Loads one version within the budget. A model that finds no room sleeps on, rather than try again and again
        and push others out. Raises NoRoom."""
        try:
            async with self._memory.room(servable):
                yield
        except NoRoom as error:
            seat = self.seats[servable.model]
            if seat.manager.sleeps and seat.manager.current is None and servable.version in seat.manager.aspired:
                self._rest(seat, error)
            raise

    @property
    def used(self) -> int:
        """Bytes that all versions hold, as the budget counts them."""
        return self._memory.used

    @property
    def holders(self) -> Iterable[ModelManager]:
        """All managers."""
        return (seat.manager for seat in self.seats.values())

    def holder(self, servable: Servable) -> ModelManager:
        """Whose it is."""
        return self.seats[servable.model].manager

    def idle(self, coming: Servable) -> Servable | None:
        """The least recently used version that may leave, answers nobody now and is not on the move."""
        free = [s for seat in self.seats.values() for s in seat.manager.servables if _may_go(seat, s, coming)]
        return min(free, key=lambda s: s.used, default=None)

    def leave(self, servable: Servable) -> None:
        """Has a version unloaded, and with it the model if it is the one that answers for it."""
        seat = self.seats[servable.model]
        seat.manager.extras.drop(servable.version.version)
        if servable is seat.manager.current or servable.version in seat.manager.aspired:
            self._rest(seat)
        seat.manager.drain_unwanted()


def _may_go(seat: Seat, servable: Servable, coming: Servable | None = None) -> bool:
    manager = seat.manager
    if servable.state is not State.READY or servable.leases or seat.awaited[servable.version.version]:
        return False
    if servable is not manager.current and servable.version not in manager.aspired:
        return True
    replaced = coming is not None and coming.model == manager.name and coming.version in manager.aspired
    mine = [s for s in manager.own if s.state not in COMING or s.version in manager.aspired]
    settled = all(s.state is State.READY for s in mine)
    return manager.sleeps and settled and not replaced and not seat.awaited[None]
