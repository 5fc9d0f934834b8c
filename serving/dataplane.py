"""The data plane: one path of a request, free of any transport.

lease → decode and check → features → batch → encode. Transports hand in a `Request` that knows its protocol's
shapes; errors leave as exceptions that `serving.errors` translates for every transport alike.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

import numpy as np

from monitoring.metrics import Metrics
from registry.versions import ModelVersion
from serving.completing import Gaps, check_present, fill_gaps, find_gaps
from serving.decoding import Arrays, Partial, complete
from serving.errors import BadRequest, DeadlineExceeded, Forbidden, NotFound, outcome_of
from serving.fleet import Fleet
from serving.loading import Loaded
from serving.manager import ModelManager, Servable
from serving.runtimes.base import Outputs, Want
from serving.schema import shown

log = logging.getLogger("headway.requests")
Out_co = TypeVar("Out_co", covariant=True)
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Call:
    """Who is asked, until when. `received` is monotonic seconds at the last byte in; `timeout` the client's wish."""

    model: str
    version: str | None = None
    label: str | None = None
    request_id: str = ""
    received: float = 0.0
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """A request's rows, and what it wants to know of them; None means the model's own setting."""

    partial: Partial
    output: str | None = None
    per_instance: bool | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What was computed, by whom, and how it is to be shown."""

    model: str
    version: ModelVersion
    loaded: Loaded
    outputs: Outputs
    output: str
    per_instance: bool

    @property
    def predictions(self) -> np.ndarray:
        """The array that the answer calls `predictions`."""
        chosen = {"probabilities": self.outputs.probabilities, "raw": self.outputs.raw}.get(
            self.output, self.outputs.labels
        )
        assert chosen is not None
        return chosen

    @property
    def probabilities(self) -> np.ndarray | None:
        """The array that stands beside the labels: under `auto`, for classifiers only."""
        return self.outputs.probabilities if self.output == "auto" else None


class Request(Protocol[Out_co]):
    """One request of one protocol."""

    def decode(self, loaded: Loaded) -> Decoded:
        """Checks the request against the version's schema. Raises BadRequest."""
        ...

    def encode(self, answer: Answer) -> Out_co:
        """The answer in the protocol's shape."""
        ...


@dataclass(frozen=True, slots=True)
class Reply(Generic[Out]):
    """An encoded answer, the version that gave it, and the milliseconds of each stage."""

    payload: Out
    version: str
    stages: tuple[tuple[str, float], ...]


class DataPlane:
    """Routes a call to its model and walks it through the stages. Lives on the event loop."""

    def __init__(
        self, fleet: Fleet, metrics: Metrics, feature_threads: int = 4, *, repository_api: bool = False
    ) -> None:
        self._fleet, self._repository_api = fleet, repository_api
        self.managers = {name: seat.manager for name, seat in fleet.seats.items()}
        self._metrics = metrics
        self._feature_threads = ThreadPoolExecutor(feature_threads, "headway-features")
        self.draining = False

    @property
    def ready(self) -> bool:
        """Whether every required model has a READY version and the server is not draining."""
        return not self.draining and all(m.current is not None for m in self.managers.values() if m.required)

    def manager(self, name: str) -> ModelManager:
        """The manager of a served name. Raises NotFound."""
        try:
            return self.managers[name]
        except KeyError:
            raise NotFound(f"There is no model {shown(name)!r} here.") from None

    def close(self, error: Exception | None = None) -> None:
        """Fails whoever still waits."""
        for manager in self.managers.values():
            manager.close(error)
        self._feature_threads.shutdown(wait=False, cancel_futures=True)

    async def infer(self, call: Call, request: Request[Out]) -> Reply[Out]:
        """Answers one request. Raises what `serving.errors.TABLE` knows; the lease is given back in any case."""
        name, version = call.model, ""
        try:
            manager = self.manager(name)
            if manager.on_demand:
                call = await self._summon(manager, call)
            with manager.lease(call.version, call.label) as servable:
                version = servable.version.version
                self._metrics.bound(name, version).predictions.inc()
                return await self._answer(call, request, servable)
        except BaseException as error:
            self._count(name if name in self.managers else "", version, error)
            raise

    async def _summon(self, manager: ModelManager, call: Call) -> Call:
        """Loads a model that sleeps. That time is not the model's: its deadline begins when it is there."""
        manager.used = began = time.monotonic()
        if manager.current is not None:
            return call
        await self._fleet.summon(manager.name, call.timeout)
        waited = time.monotonic() - began
        left = None if call.timeout is None else call.timeout - waited
        return replace(call, received=time.monotonic(), timeout=left)

    async def repository(self, name: str, *, load: bool) -> None:
        """Loads or unloads a model by request. Raises Forbidden unless the operator allows that."""
        if not self._repository_api:
            raise Forbidden("Loading and unloading by request is switched off (security.repository_api).")
        self.manager(name)
        await (self._fleet.summon(name) if load else self._fleet.dismiss(name))

    async def _answer(self, call: Call, request: Request[Out], servable: Servable) -> Reply[Out]:
        loaded, batcher = servable.ready
        clock = time.perf_counter
        began = clock()
        decoded = request.decode(loaded)
        output = decoded.output or loaded.configuration.output
        want = wanted(output, loaded)
        deadline = _deadline(call, loaded)
        at_features = clock()
        arrays = decoded.partial.arrays
        if arrays is None:
            arrays = await self._complete(decoded.partial, loaded, servable, deadline)
        at_predict = clock()
        outputs, seconds = await batcher.predict(arrays, decoded.partial.rows, want, deadline)
        at_encode = clock()
        per_instance = loaded.configuration.per_instance if decoded.per_instance is None else decoded.per_instance
        answer = Answer(call.model, servable.version, loaded, outputs, output, per_instance)
        payload = request.encode(answer)
        ended = clock()
        bound = self._metrics.bound(call.model, servable.version.version)
        bound.latency.observe(seconds)
        bound.rows.inc(outputs.rows)
        bound.request_latency.observe(time.monotonic() - call.received)
        stages = (
            ("decode", at_features - began),
            ("features", at_predict - at_features),
            ("predict", at_encode - at_predict),
            ("encode", ended - at_encode),
        )
        return Reply(payload, servable.version.version, stages)

    async def _complete(self, partial: Partial, loaded: Loaded, servable: Servable, deadline: float | None) -> Arrays:
        """Looks up what the request did not bring, in one call for all its rows; values that it did bring win."""
        gaps = find_gaps(loaded, partial)
        if gaps is not None:
            model, version = servable.model, servable.version.version
            began = time.perf_counter()
            try:
                found = await self._look_up(loaded, gaps, deadline)
            except BaseException:
                self._metrics.lookups.labels(model, version, "error").inc()
                raise
            self._metrics.lookups.labels(model, version, "ok").inc()
            self._metrics.lookup_latency.labels(model, version).observe(time.perf_counter() - began)
            fill_gaps(loaded, partial, gaps, found)
        check_present(loaded.schema, partial)
        return complete(loaded.schema, partial)

    async def _look_up(self, loaded: Loaded, gaps: Gaps, deadline: float | None) -> dict[str, np.ndarray]:
        assert loaded.lookup is not None
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        when = None if deadline is None else loop.time() + deadline - time.monotonic()
        try:
            async with asyncio.timeout_at(when):
                return await loop.run_in_executor(
                    self._feature_threads, context.run, loaded.lookup, gaps.keys, gaps.names
                )
        except TimeoutError as error:
            raise DeadlineExceeded("The request's deadline passed while its features were looked up.") from error

    def _count(self, model: str, version: str, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError):
            self._metrics.failed(model, version, "cancelled")
            return
        outcome = outcome_of(error)
        self._metrics.failed(model, version, outcome.reason)
        if outcome.reason == "queue_full":
            self._metrics.rejections.labels(model, version).inc()
        if outcome.reason == "deadline":
            self._metrics.timeouts.labels(model, version).inc()
        if outcome.http == 500:
            log.error(
                "request failed", extra={"model": model, "version": version, "reason": outcome.reason}, exc_info=error
            )


def wanted(output: str, loaded: Loaded) -> Want:
    """What the runtime must compute for an output mode. Raises BadRequest for probabilities of a model without."""
    classifier = loaded.runtime.classes is not None
    if output == "probabilities" and not classifier:
        raise BadRequest("This model has no probabilities: it is no classifier.")
    if output == "auto":
        return Want.LABELS | Want.PROBABILITIES if classifier else Want.LABELS
    return {"labels": Want.LABELS, "probabilities": Want.PROBABILITIES, "raw": Want.RAW}[output]


def _deadline(call: Call, loaded: Loaded) -> float | None:
    own = loaded.configuration.timeout
    seconds = min((t for t in (own, call.timeout) if t is not None), default=None)
    return None if seconds is None else call.received + seconds
