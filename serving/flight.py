"""One request on its way through the stages: lease → decode and check → features → batch → encode.

Only a model that has to be loaded, and features that have to be looked up, take a task; everything else happens where
the request came in, and where its batch ended. A task and a future per request cost more than all the rest together.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Generic

from monitoring.logs import request_id
from monitoring.metrics import Bound
from serving.batch import Arrays, Item
from serving.batching import Batcher
from serving.calls import Answer, Call, Decoded, Out, Reply, Request
from serving.decode_pool import LARGE_BYTES
from serving.errors import BadRequest
from serving.loading import Loaded
from serving.manager import ModelManager
from serving.response_cache import Wait
from serving.runtimes.base import Outputs, Want
from serving.servable import Servable
from serving.waiting import HIGH, NORMAL

if TYPE_CHECKING:
    from serving.dataplane import DataPlane

_clock = time.perf_counter
_AUTO = Want.LABELS | Want.PROBABILITIES
_WANT = {"auto": Want.LABELS, "labels": Want.LABELS, "probabilities": Want.PROBABILITIES, "raw": Want.RAW}


class Flight(Generic[Out]):
    """Answers one request of a model that exists. `done` hears the end, once; after `cancel`, never."""

    __slots__ = ("_at_features", "_at_predict", "_batcher", "_began", "_bound", "_call", "_deadline", "_decoded", "_done",
                 "_found", "_item", "_loaded", "_manager", "_note", "_output", "_plane", "_request", "_servable", "_task",
                 "_wait")  # fmt: skip

    _loaded: Loaded
    _batcher: Batcher
    _began: float
    _bound: Bound
    _at_features: float
    _at_predict: float
    _decoded: Decoded
    _deadline: float | None
    _output: str

    def __init__(
        self,
        plane: DataPlane,
        manager: ModelManager,
        call: Call,
        request: Request[Out],
        done: Callable[[Reply[Out] | Exception], None],
    ) -> None:
        self._plane, self._manager, self._call, self._request = plane, manager, call, request
        self._done: Callable[[Reply[Out] | Exception], None] | None = done
        self._servable: Servable | None = None
        self._item: Item | None = None
        self._wait: Wait | None = None
        self._task: asyncio.Task[None] | None = None
        self._note = self._found = ""

    def begin(self) -> None:
        """Takes the request as far as it goes at once. Raises nothing."""
        manager, call = self._manager, self._call
        if manager.on_demand and (manager.current is None or call.version is not None or call.label is not None):
            ready = self._plane.at_hand(call)
            if ready is None:
                self._apart(self._summon)
                return
            self._call = ready
        try:
            self._board()
        except Exception as error:  # noqa: BLE001  the request boundary: every error becomes an answer
            self._fail(error)

    def cancel(self) -> None:
        """Nobody wants the answer any more: what is not computed yet never will be."""
        if self._done is None:
            return
        self._done = None
        if self._task is not None:
            self._task.cancel()
        if self._item is not None:
            self._batcher.cancel(self._item)
        if self._wait is not None:
            self._wait.cache.cancel(self._wait)
        self._plane.metrics.failed(self._call.model, self._release(), "cancelled")

    def _apart(self, step: Callable[[], Awaitable[None]]) -> None:
        self._task = asyncio.get_running_loop().create_task(self._guard(step))

    async def _guard(self, step: Callable[[], Awaitable[None]]) -> None:
        request_id.set(self._call.request_id)
        try:
            await step()
        except Exception as error:  # noqa: BLE001  the request boundary, as in begin
            self._fail(error)

    async def _summon(self) -> None:
        self._call = await self._plane.summon(self._manager, self._call)
        self._board()

    def _board(self) -> None:
        """Leases a version, decodes for it, and queues what is complete."""
        call = self._call
        self._servable = servable = self._manager.hold(call.version, call.label)
        self._bound = self._plane.metrics.bound(call.model, servable.version.version)
        self._bound.predictions.inc()
        self._loaded, self._batcher = servable.ready
        self._began = _clock()
        self._deadline = deadline_of(call, self._loaded)
        if self._batcher.crowded and servable.cache is None and not self._hurries:
            self._batcher.knock(self._deadline)
        if self._request.size > LARGE_BYTES:
            self._unpack()
        else:
            self._depart(self._request.decode(self._loaded))

    def _unpack(self) -> None:
        """What takes long to decode is decoded beside the loop."""
        decoded = self._request.decode_at_once(self._loaded)
        if decoded is None:
            self._apart(self._decode)
        else:
            self._depart(decoded)

    async def _decode(self) -> None:
        request, loaded = self._request, self._loaded
        work = self._plane.decoding.run(lambda pace: request.decode_slices(loaded, pace), self._deadline)
        self._depart(await work)

    def _depart(self, decoded: Decoded) -> None:
        servable = self._servable
        assert servable is not None
        self._decoded = decoded
        self._output = decoded.output or self._loaded.configuration.output
        want = wanted(self._output, self._loaded)
        self._at_features = self._at_predict = _clock()
        if decoded.partial.arrays is None:
            self._apart(lambda: self._complete(servable, want))
        else:
            self._queue(decoded.partial.arrays, want)

    @property
    def _hurries(self) -> bool:
        """Whether it may be that the request is taken in before those of normal priority."""
        return self._loaded.configuration.limits.client_priority and self._request.may_hurry

    async def _complete(self, servable: Servable, want: Want) -> None:
        partial = self._decoded.partial
        arrays, self._note = await self._plane.complete(partial, self._loaded, servable, self._deadline)
        self._at_predict = _clock()
        self._queue(arrays, want)

    def _queue(self, arrays: Arrays, want: Want) -> None:
        assert self._servable is not None
        cache, decoded = self._servable.cache, self._decoded
        rows, priority = decoded.partial.rows, decoded.priority
        if priority is HIGH and not self._loaded.configuration.limits.client_priority:
            priority = NORMAL
        if cache is None:
            self._item = self._batcher.submit(arrays, rows, want, self._deadline, self._computed, priority)
            return
        asked = cache.ask(arrays, rows, want, self._deadline, self._computed, priority)
        if isinstance(asked, Outputs):
            self._found = "hit"
            self._computed(asked, None)
        else:
            self._found, self._wait = asked.outcome, asked

    def _computed(self, result: Outputs | Exception, seconds: float | None) -> None:
        """`seconds` is None for what no batch had to compute."""
        self._item = self._wait = None
        if isinstance(result, Exception):
            self._fail(result)
            return
        try:
            reply = self._encode(result, seconds)
        except Exception as error:  # noqa: BLE001  the request boundary, as in begin
            self._fail(error)
            return
        self._end(reply)

    def _encode(self, outputs: Outputs, seconds: float | None) -> Reply[Out]:
        servable, call, decoded = self._servable, self._call, self._decoded
        assert servable is not None
        at_encode = _clock()
        loaded = self._loaded
        per_instance = loaded.configuration.per_instance if decoded.per_instance is None else decoded.per_instance
        answer = Answer(call.model, servable.version, loaded, outputs, self._output, per_instance)
        payload = self._request.encode(answer)
        bound = self._bound
        if seconds is not None:
            bound.latency.observe(seconds)
        bound.rows.inc(outputs.rows)
        bound.request_latency.observe(time.monotonic() - call.received)
        stages = (
            self._at_features - self._began,
            self._at_predict - self._at_features,
            at_encode - self._at_predict,
            _clock() - at_encode,
        )
        return Reply(payload, servable.version.version, stages, self._note, self._found)

    def _fail(self, error: Exception) -> None:
        version = self._servable.version.version if self._servable is not None else ""
        self._plane.count(self._call, version, error)
        self._end(error)

    def _end(self, result: Reply[Out] | Exception) -> None:
        done, self._done = self._done, None
        self._release()
        if done is not None:
            done(result)

    def _release(self) -> str:
        """Gives the lease back; the version that was held, or nothing."""
        servable, self._servable = self._servable, None
        if servable is None:
            return ""
        self._manager.release(servable)
        return servable.version.version


def wanted(output: str, loaded: Loaded) -> Want:
    """What the runtime must compute for an output mode. Raises BadRequest for probabilities of a model without."""
    classifier = loaded.runtime.classes is not None
    if output == "probabilities" and not classifier:
        raise BadRequest("This model has no probabilities: it is no classifier.")
    return _AUTO if output == "auto" and classifier else _WANT[output]


def deadline_of(call: Call, loaded: Loaded) -> float | None:
    """When the answer is worth nothing any more: the operator's time, or less if the client says so."""
    seconds, wish = loaded.configuration.timeout, call.timeout
    if seconds is None or (wish is not None and wish < seconds):
        seconds = wish
    return None if seconds is None else call.received + seconds
