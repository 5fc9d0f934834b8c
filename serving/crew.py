"""What all processes of a server answer together: readiness, metrics, loading by request, and news from the registry.

The rest of the server asks its crew, and does not know whether it is alone (`Alone`) or one of several workers
(`serving.workers.linked.Linked`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from monitoring.metrics import Metrics
from registry.policies import EVERY
from serving.doors import Doors
from serving.fleet import Fleet, Seat
from serving.lifecycle import State
from serving.slices import Shared, in_slices


class Crew(Protocol):
    """All processes that answer on the same ports, this one included."""

    #: Whether this process listens, and goes on to.
    listens: bool
    #: What it listens on for HTTP; None is its address.
    doors: Doors | None

    @property
    def ready(self) -> bool:
        """Whether every required model has a READY version, in all that listen."""
        ...

    async def join(self, stop: Callable[[], None]) -> None:
        """Returns when this process may listen. `stop` is called if it is to end."""
        ...

    async def leave(self) -> None:
        """This process ends."""
        ...

    async def exposition(self) -> bytes:
        """All series, in Prometheus's text format."""
        ...

    async def repository(self, name: str, *, load: bool) -> None:
        """Loads or unloads a model everywhere. Raises what `Fleet.summon` and `Fleet.dismiss` raise."""
        ...

    def nudge(self, name: str) -> None:
        """Has the others ask the registry for a registered model, soon."""
        ...


class Alone:
    """A process that is the whole server; in a larger crew, its own part of it."""

    def __init__(self, fleet: Fleet, metrics: Metrics) -> None:
        self._fleet, self.metrics = fleet, metrics
        self.listens = False
        self.doors: Doors | None = None
        self._page = Shared(self._write)

    @property
    def ready(self) -> bool:
        """Whether every required model has a READY version here."""
        return all(manager.current is not None for manager in self._fleet.holders if manager.required)

    async def join(self, stop: Callable[[], None]) -> None:
        """There is nobody to wait for."""

    async def leave(self) -> None:
        """There is nobody to tell."""

    async def exposition(self) -> bytes:
        """All series of this process."""
        return await self._page()

    async def _write(self) -> bytes:
        await in_slices(self._refresh())
        return b"".join(await in_slices(self.metrics.exposition()))

    async def repository(self, name: str, *, load: bool) -> None:
        """Loads or unloads a model here."""
        await (self._fleet.summon(name) if load else self._fleet.dismiss(name))

    def nudge(self, name: str) -> None:
        """There are no others."""

    def wake(self, name: str) -> int:
        """Has the pollers of a registered model look at the registry, and returns how many they are."""
        mine = [poller for poller in self._fleet.pollers if poller.policy.name in (name, EVERY)]
        for poller in mine:
            poller.wake()
        return len(mine)

    def _refresh(self) -> Iterator[None]:
        """Gauges that are facts of the moment are read when somebody asks, so that they cannot drift. Seat by seat: who
        asks may do something else between two."""
        if self._fleet.herding is not None:
            self.metrics.staleness.labels(EVERY).set(self._fleet.herding.staleness)
        for name, seat in list(self._fleet.seats.items()):
            if self._fleet.seats.get(name) is seat:  # else it has been forgotten meanwhile, with its series
                self._refresh_seat(name, seat)
            yield

    def _refresh_seat(self, name: str, seat: Seat) -> None:
        metrics, manager = self.metrics, seat.manager
        metrics.alive.labels(name).set(len(manager.alive))
        if not manager.sleeps:
            metrics.model_ready.labels(name).set(manager.current is not None)
        if seat.polling is not None:
            metrics.staleness.labels(name).set(seat.poller.staleness)
        ready = {s.version.version for s in manager.servables if s.state is State.READY}
        for servable in manager.servables:
            number = servable.version.version
            metrics.loaded.labels(name, number).set(number in ready)
            if servable.batcher is not None:
                metrics.queue_depth.labels(name, number).set(servable.batcher.depth)
                metrics.target_rows.labels(name, number).set(servable.batcher.most)
            if servable.cache is not None:
                metrics.cache_bytes.labels(name, number).set(servable.cache.bytes)
