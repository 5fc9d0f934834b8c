"""The manager of one served model: performs what the plan says, and lends versions to requests.

Everything here belongs to the event loop's thread; loading, warming and disposing run in threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import logging
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from features.errors import FeatureError
from registry.errors import RegistryError
from registry.versions import ModelVersion
from serving.batching import Batcher
from serving.errors import NoRoom, NotFound, NotReady
from serving.lifecycle import (
    Action,
    Drain,
    Forget,
    Load,
    Publish,
    State,
    Unload,
    View,
    advance,
    backoff,
    next_due,
    plan,
)
from serving.loading import Loaded, warm
from serving.schema import shown
from serving.threads import in_thread

log = logging.getLogger("headway.lifecycle")
_ids = itertools.count(1)
STUMBLED_SECONDS = 1.0
ASLEEP = "it is loaded when it is asked for"


class VersionLoader(Protocol):
    """Builds a version. The real one is `serving.loading.Loader`."""

    def load(self, version: ModelVersion) -> Loaded:
        """Fetches, checks and loads; blocks; raises whatever went wrong."""
        ...


class Watcher(Protocol):
    """Hears of every state change, to count it."""

    def state_changed(self, model: str, version: str, state: State) -> None:
        """A servable entered a state."""
        ...

    def gone(self, model: str, version: str) -> None:
        """The last servable of a version has left."""
        ...

    def batch(self, model: str, version: str, requests: int, rows: int, seconds: float) -> None:
        """A batch ran."""
        ...

    def overdue(self, model: str, version: str, seconds: float) -> None:
        """A batch in this process has run this long without an end."""
        ...


@dataclass(eq=False)
class Servable:
    """One version on its way through its life."""

    model: str
    version: ModelVersion
    failures: int = 0
    id: int = field(default_factory=lambda: next(_ids))
    state: State = State.NEW
    reason: str | None = None
    entered: float = field(default_factory=time.monotonic)
    since: str = ""
    due: float = 0.0
    leases: int = 0
    memory: int = 0
    loaded: Loaded | None = None
    batcher: Batcher | None = None

    def view(self, current: Servable | None) -> View:
        """What the plan may know."""
        return View(self.id, self.version, self.state, self is current, self.leases, self.entered, self.due)

    @property
    def ready(self) -> tuple[Loaded, Batcher]:
        """What a lease gives access to."""
        assert self.loaded is not None
        assert self.batcher is not None
        return self.loaded, self.batcher


Room = Callable[[Servable], contextlib.AbstractAsyncContextManager[None]]


class ModelManager:
    """Keeps one served name in the state that its registry entry aspires to."""

    def __init__(
        self,
        name: str,
        uri: str,
        loader: VersionLoader,
        watcher: Watcher,
        *,
        drain_seconds: float = 25.0,
        load_seconds: float = 600.0,
        required: bool = True,
        on_demand: bool = False,
        room: Room | None = None,
        remember: Callable[[ModelVersion], None] = lambda version: None,
    ) -> None:
        """`remember` notes the version that serves, for a start without the registry; it blocks. `room` is entered around
        each load, and may refuse it."""
        self.name, self.uri, self.required, self.on_demand = name, uri, required and not on_demand, on_demand
        self.used = 0.0
        self.turn = asyncio.Event()
        self.refused = False
        self.aspired: tuple[ModelVersion, ...] = ()
        self.current: Servable | None = None
        self.problem: str | None = ASLEEP if on_demand else "the registry has not been asked yet"
        self.stale = False
        self.first_failure: Callable[[], None] | None = None
        self.servables: list[Servable] = []
        self._loader, self._watcher, self._remember, self._room = loader, watcher, remember, room or _anywhere
        self._drain_seconds, self._load_seconds = drain_seconds, load_seconds
        self._wake = asyncio.Event()
        self._retiring = False
        self._left = asyncio.Event()
        self._loading: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self.alive: weakref.WeakSet[Servable] = weakref.WeakSet()

    # -- what the poller says -------------------------------------------------------------------------------------

    def aspire(self, versions: tuple[ModelVersion, ...], problem: str | None = None, *, stale: bool = False) -> None:
        """States the full set of versions that should be served; an empty one keeps what is READY.

        `stale` says that the registry did not answer, and that `versions` is what it said before.
        """
        if versions != self.aspired:
            log.info(
                "aspired versions changed",
                extra={"model": self.name, "aspired": [v.version for v in versions], "uri": self.uri},
            )
        self.aspired, self.problem, self.stale = versions, problem, stale
        self._refresh_facts()
        self._wake.set()
        if not versions:
            self.turn.set()

    def _refresh_facts(self) -> None:
        """Aliases and stage of a loaded version may change without its being rebuilt."""
        known = {version: version for version in self.aspired}
        for servable in self.servables:
            servable.version = known.get(servable.version, servable.version)

    # -- coming and going on demand ---------------------------------------------------------------------------------

    def come(self) -> None:
        """Begins anew; `turn` is set as soon as it is known whether a version can serve."""
        self._retiring = self.refused = False
        self.turn.clear()
        self.problem = "the registry has not been asked yet"

    async def retire(self) -> None:
        """Gives out no more leases, and returns when everything is unloaded."""
        self._retiring = True
        self._left.clear()
        self._wake.set()
        await self._left.wait()
        self.aspired, self.problem = (), ASLEEP

    # -- what requests do -----------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def lease(self, version: str | None = None, label: str | None = None) -> Iterator[Servable]:
        """Holds a READY version: the one that is current, or the one with this number or alias."""
        servable = self.hold(version, label)
        try:
            yield servable
        finally:
            self.release(servable)

    def hold(self, version: str | None = None, label: str | None = None) -> Servable:
        """What `lease` holds, until it is released. Raises NotReady or NotFound."""
        servable = self._choose(version, label)
        servable.leases += 1
        return servable

    def release(self, servable: Servable) -> None:
        """Gives one lease back."""
        servable.leases -= 1
        if servable.leases == 0 and servable.state is State.DRAINING:
            self._wake.set()

    def _choose(self, version: str | None, label: str | None) -> Servable:
        if version is None and label is None:
            if self.current is None:
                raise NotReady(f"Model {shown(self.name)!r} has no READY version: {self.why()}.")
            return self.current
        for servable in self.servables:
            named = servable.version.version == version if label is None else label in servable.version.aliases
            if named and servable.state is State.READY:
                return servable
        raise NotFound(self._not_loaded(version, label))

    def _not_loaded(self, version: str | None, label: str | None) -> str:
        what = f"version {shown(str(version))!r}" if label is None else f"label {shown(label)!r}"
        known = next((s for s in self.servables if s.version.version == version), None)
        state = f" (it is {known.state})" if known else ""
        ready = ", ".join(s.version.version for s in self.servables if s.state is State.READY) or "none"
        return f"Model {shown(self.name)!r} has no loaded {what}{state}; loaded versions: {ready}."

    def why(self) -> str:
        """One clause about what keeps the model from being READY, or from being what is aspired."""
        failed = next((s for s in reversed(self.servables) if s.state is State.FAILED), None)
        if failed is not None:
            return f"version {failed.version.version} FAILED: {failed.reason}"
        coming = next((s for s in self.servables if s.state in (State.LOADING, State.WARMING)), None)
        if coming is not None:
            return f"version {coming.version.version} is {coming.state}"
        return self.problem or "the aspired version has not been loaded yet"

    def trouble(self) -> str | None:
        """What keeps the model from serving what the registry says now, or None if nothing does."""
        if self.problem is not None:
            return self.problem
        settled = self.current is not None and self.aspired[:1] == (self.current.version,)
        return None if settled else self.why()

    # -- the loop -------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Performs the plan, action by action, until cancelled."""
        try:
            while True:
                try:
                    await self._reconcile()
                except Exception as error:
                    log.error("reconciling stumbled", extra={"model": self.name}, exc_info=error)
                    await asyncio.sleep(STUMBLED_SECONDS)
        finally:
            if self._loading is not None:
                self._loading.cancel()

    async def _reconcile(self) -> None:
        """Everything that the plan asks for now, and a rest until something can change it."""
        self._wake.clear()
        while (action := self._plan()) is not None:
            await self._perform(action)
        if self._retiring and not self.servables:
            self._left.set()
        await self._rest()

    def close(self, error: Exception | None = None) -> None:
        """Fails whoever still waits: the process ends."""
        for servable in self.servables:
            if servable.batcher is not None:
                if error is not None:
                    servable.batcher.fail_waiting(error)
                servable.batcher.close()

    def _plan(self) -> Action | None:
        views = [s.view(self.current) for s in self.servables]
        return plan(self.aspired, views, time.monotonic(), self._drain_seconds, retiring=self._retiring)

    async def _rest(self) -> None:
        views = [s.view(self.current) for s in self.servables]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), next_due(views, time.monotonic(), self._drain_seconds))

    async def _perform(self, action: Action) -> None:
        match action:
            case Load(version):
                self._load(version)
            case Publish(id):
                self._publish(self._by_id(id))
            case Drain(id):
                self._drain(self._by_id(id))
            case Unload(id):
                await self._unload(self._by_id(id))
            case Forget(id):
                self._remove(self._by_id(id))

    def _drain(self, servable: Servable) -> None:
        if servable is self.current:
            self.current = None
            self.turn.clear()
        self._enter(servable, State.DRAINING)

    def _by_id(self, id: int) -> Servable:
        return next(s for s in self.servables if s.id == id)

    def _load(self, version: ModelVersion) -> None:
        failed = [s for s in self.servables if s.version == version and s.state is State.FAILED]
        self.servables = [s for s in self.servables if s not in failed]
        servable = Servable(self.name, version, failures=sum(s.failures for s in failed))
        servable.reason = failed[0].reason if failed else None
        self.alive.add(servable)
        self.servables.append(servable)
        self._enter(servable, State.LOADING)
        self._loading = asyncio.get_running_loop().create_task(self._bring_up(servable))

    async def _bring_up(self, servable: Servable) -> None:
        """Loads and warms in a thread of its own. Any failure makes the servable FAILED; the old version stays."""
        try:
            async with asyncio.timeout(self._load_seconds), self._room(servable):
                loaded = await in_thread(lambda: self._loader.load(servable.version), Loaded.dispose)
                servable.loaded = loaded
                self._enter(servable, State.WARMING)
                cost_ms = await in_thread(lambda: warm(loaded))
            servable.batcher = self._batcher(servable, loaded, cost_ms)
            servable.reason = None
            self._watch(servable, loaded)
            self._enter(servable, State.READY, warm_ms=round(cost_ms, 3))
        except NoRoom as error:
            self.refused = True
            self._failed(servable, str(error))
        except TimeoutError:
            self._failed(servable, f"loading took longer than {self._load_seconds:g} seconds")
        except Exception as error:  # noqa: BLE001  the reconcile loop's edge: a version may fail in any way
            self._failed(servable, _reason(error))
        finally:
            self._wake.set()

    def _batcher(self, servable: Servable, loaded: Loaded, cost_ms: float) -> Batcher:
        number, watcher, name = servable.version.version, self._watcher, self.name

        def observe(requests: int, rows: int, seconds: float) -> None:
            watcher.batch(name, number, requests, rows, seconds)

        own = loaded.process is None  # else whoever hangs is ended, and that is counted
        return Batcher(
            loaded.runtime,
            loaded.configuration.limits,
            cost_ms,
            observe,
            inline=own,
            hang_seconds=loaded.configuration.hang_seconds,
            overdue=lambda seconds: watcher.overdue(name, number, seconds) if own else None,
        )

    def _watch(self, servable: Servable, loaded: Loaded) -> None:
        """Hears it when the process of a READY version is given up on. How often it failed before still counts then."""
        loop = asyncio.get_running_loop()

        def given_up(reason: str) -> None:
            loop.call_soon_threadsafe(self._give_up, servable, reason)

        if loaded.process is not None:
            loaded.process.given_up = given_up

    def _give_up(self, servable: Servable, reason: str) -> None:
        """A READY version that cannot live is FAILED, and tried again as any other."""
        if servable.state is not State.READY or servable.batcher is None:
            return  # it is leaving anyway
        servable.batcher.close()
        servable.batcher = None
        if servable is self.current:
            self.current = None
        self._failed(servable, reason)
        self._wake.set()

    def _failed(self, servable: Servable, reason: str) -> None:
        loaded, servable.loaded = servable.loaded, None
        if loaded is not None:
            threading.Thread(target=loaded.dispose, daemon=True).start()
        servable.failures += 1
        servable.reason = reason
        servable.due = time.monotonic() + backoff(servable.failures)
        self._enter(servable, State.FAILED, retry_in_seconds=backoff(servable.failures))
        servable.memory = 0
        self.turn.set()
        if self.first_failure is not None and self.current is None and self.required:
            self.first_failure()

    def _publish(self, servable: Servable) -> None:
        before = self.current
        self.current, self.refused = servable, False
        self.turn.set()
        log.info(
            "version serves",
            extra={
                "model": self.name,
                "version": servable.version.version,
                "replaces": before.version.version if before else None,
                "digest": servable.loaded.digest if servable.loaded else None,
                "bytes": servable.loaded.size if servable.loaded else None,
            },
        )
        self._noting = asyncio.get_running_loop().create_task(in_thread(lambda: self._remember(servable.version)))

    async def _unload(self, servable: Servable) -> None:
        held = servable.leases
        loaded, batcher = servable.ready
        batcher.close()
        servable.loaded = servable.batcher = None
        self._enter(servable, State.UNLOADED, leases_cut=held)
        self._remove(servable)
        await in_thread(_Disposal(loaded))

    def _remove(self, servable: Servable) -> None:
        """A changed tag builds a version anew beside its old self: only the last one of a number takes it away."""
        self.servables.remove(servable)
        number = servable.version.version
        if all(s.version.version != number for s in self.servables):
            self._watcher.gone(self.name, number)

    def _enter(self, servable: Servable, to: State, **facts: object) -> None:
        now = time.monotonic()
        extra: dict[str, object] = {
            "model": self.name,
            "version": servable.version.version,
            "from": servable.state,
            "to": to,
        }
        extra["after_seconds"] = round(now - servable.entered, 3)
        servable.state = advance(servable.state, to)
        servable.entered, servable.since = now, datetime.now(UTC).isoformat(timespec="milliseconds")
        if servable.reason and to is State.FAILED:
            extra["reason"] = servable.reason
        log.log(logging.ERROR if to is State.FAILED else logging.INFO, "state changed", extra={**extra, **facts})
        self._watcher.state_changed(self.name, servable.version.version, to)


@contextlib.asynccontextmanager
async def _anywhere(servable: Servable) -> AsyncIterator[None]:
    """There is always room."""
    yield


class _Disposal:
    """Disposes of a loaded version and collects the cycles that models hold, in a thread."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded: Loaded | None = loaded

    def __call__(self) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.dispose()
            del loaded
        gc.collect()


def _reason(error: Exception) -> str:
    """The first line of an error, for people, ours whole; a library's is cut, and says its class."""
    text = (str(error).strip().splitlines() or [""])[0]
    return text[:2000] if isinstance(error, RegistryError | FeatureError) else f"{type(error).__name__}: {text[:300]}"
