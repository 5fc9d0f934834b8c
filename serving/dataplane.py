"""The data plane: one path of a request, free of any transport.

lease → decode and check → features → batch → encode. Transports hand in a `Request` that knows its protocol's
shapes; errors leave as exceptions that `serving.errors` translates for every transport alike.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from monitoring.metrics import Metrics
from serving.calls import Call, Out, Reply, Request
from serving.completing import check_present, fill_gaps, find_gaps, look_up, matrix_of, share, tell
from serving.crew import Crew
from serving.decode_pool import DecodePool
from serving.decoding import Arrays, Partial, complete
from serving.errors import Forbidden, NotFound, NotReady, RowsRefused, outcome_of
from serving.failures import Failures
from serving.fleet import Fleet
from serving.flight import Flight
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.servable import Servable


class DataPlane:
    """Routes a call to its model and walks it through the stages. Lives on the event loop."""

    def __init__(self, fleet: Fleet, metrics: Metrics, crew: Crew, *, repository_api: bool = False) -> None:
        self._fleet, self._crew, self._repository_api = fleet, crew, repository_api
        self.metrics, self._failures, self.decoding = metrics, Failures(), DecodePool()
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether every required model has a READY version and the server is not draining."""
        return not self.draining and self._crew.ready

    @property
    def managers(self) -> list[ModelManager]:
        """The managers of all names, without those that sleep and were not asked for of late."""
        return list(self._fleet.holders)

    @property
    def names(self) -> list[str]:
        """All served names."""
        return self._fleet.names

    @property
    def asleep(self) -> list[str]:
        """The names that have no manager now."""
        return self._fleet.asleep

    def manager(self, name: str) -> ModelManager:
        """The manager of a served name. Raises NotFound, or NotReady while it is not known which names there are."""
        return self._fleet.seat(name).manager

    def close(self, error: Exception | None = None) -> None:
        """Fails whoever still waits."""
        self.decoding.close(error or NotReady("The server is shutting down."))
        for manager in self.managers:
            manager.close(error)

    async def infer(self, call: Call, request: Request[Out]) -> Reply[Out]:
        """Answers one request. Raises what `serving.errors.TABLE` knows; the lease is given back in any case."""
        future: asyncio.Future[Reply[Out]] = asyncio.get_running_loop().create_future()

        def done(result: Reply[Out] | Exception) -> None:
            if future.done():
                return  # the caller has just been cancelled
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        flight = self.start(call, request, done)
        try:
            return await future
        except asyncio.CancelledError:
            flight.cancel()
            raise

    def start(self, call: Call, request: Request[Out], done: Callable[[Reply[Out] | Exception], None]) -> Flight[Out]:
        """Begins to answer one request without a task of its own; `done` hears the end, once, unless it is cancelled.

        It may hear it before this returns. Raises NotFound for a model that is not served here, NotReady while it is not
        known which are, and nothing else.
        """
        try:
            manager = self.manager(call.model)
        except (NotFound, NotReady) as error:
            self.count(call, "", error)
            raise
        flight = Flight(self, manager, call, request, done)
        flight.begin()
        return flight

    async def summon(self, manager: ModelManager, call: Call) -> Call:
        """Loads what sleeps. That time is not the model's: its deadline begins when it is there."""
        began = time.monotonic()
        number = await self._fleet.summon(manager.name, version=call.version, label=call.label, seconds=call.timeout)
        waited = time.monotonic() - began
        left = None if call.timeout is None else call.timeout - waited
        return replace(call, version=number, label=None, received=call.received + waited, timeout=left)

    def knows(self, name: str) -> bool:
        """Whether the name is served."""
        return self._fleet.knows(name)

    def serves(self, name: str) -> bool:
        """Whether a name has a READY version now; one that sleeps stays asleep."""
        seat = self._fleet.seats.get(name)
        return seat is not None and seat.manager.current is not None

    def at_hand(self, call: Call) -> Call | None:
        """The call of a model on demand as it goes on, if what it names is READY; None if it has to be summoned."""
        servable = self._fleet.at_hand(call.model, call.version, call.label)
        if servable is None:
            return None
        return call if call.label is None else replace(call, version=servable.version.version, label=None)

    async def repository(self, name: str, *, load: bool) -> None:
        """Loads or unloads a model by request. Raises Forbidden unless the operator allows that."""
        if not self._repository_api:
            raise Forbidden("Loading and unloading by request is switched off (security.repository_api).")
        await self._crew.repository(name, load=load)

    async def complete(
        self, partial: Partial, loaded: Loaded, servable: Servable, deadline: float | None
    ) -> tuple[Arrays, str]:
        """Looks up what the request did not bring, and notes how; values that it did bring win."""
        assert loaded.lookup is not None
        note, gaps = "", find_gaps(loaded.schema, loaded.lookup, partial, share(deadline))
        if gaps is not None:
            pair = (servable.model, servable.version.version)
            completed = await look_up(loaded.lookup, gaps.need, self.metrics, pair)
            note = tell(gaps, completed)
            if (arrays := matrix_of(loaded.schema, partial, completed.columns)) is not None:
                return arrays, note
            fill_gaps(loaded.schema, partial, gaps, completed.columns)
        check_present(loaded.schema, partial)
        return complete(loaded.schema, partial), note

    def count(self, call: Call, version: str, error: BaseException) -> None:
        """Counts a request that failed, and logs what is no fault of its caller."""
        model = call.model if version or self._fleet.knows(call.model) else ""
        outcome = outcome_of(error)
        self.metrics.failed(model, version, outcome.reason)
        if outcome.reason == "queue_full":
            self.metrics.rejections.labels(model, version).inc()
        if outcome.reason == "deadline":
            self.metrics.timeouts.labels(model, version).inc()
        if version and outcome.reason != "queue_full":  # a refusal at the door takes no time, and would look fast
            self._time(call, version, late=outcome.reason == "deadline")
        if outcome.http == 500 or isinstance(error, RowsRefused):
            self._failures.tell(model, version, outcome.reason, call.request_id, error)

    def _time(self, call: Call, version: str, *, late: bool) -> None:
        """Times a request that failed: a version that lets its slow requests run into their deadline must not look fast."""
        seconds = time.monotonic() - call.received
        spread = self.metrics.bound(call.model, version).request_latency
        (spread.exceed if late else spread.observe)(seconds)
