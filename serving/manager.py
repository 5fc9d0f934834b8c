"""The manager of one served model: performs what the plan says, and lends versions to requests.

Everything here belongs to the event loop's thread; loading, warming and disposing run in threads of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from functools import partial

from registry.versions import ModelVersion
from serving.attempts import Attempts
from serving.building import Disposal, build_batcher, build_cache, reason_of
from serving.errands import Errands
from serving.errors import NoRoom, NotFound, NotLoadedYet, NotReady
from serving.extras import Extras
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
from serving.paths import without_folders
from serving.predicting import LOST
from serving.schema import shown
from serving.servable import Room, Servable, Turn, VersionLoader, Watcher
from serving.threads import in_thread
from serving.turns import Turns

log = logging.getLogger("headway.lifecycle")
STUMBLED_SECONDS = 1.0
COMING = (State.LOADING, State.WARMING)
ASLEEP = "it is loaded when it is asked for"
#: What a client of a model is told to wait that has no READY version.
ASK_AGAIN_SECONDS = 5
UNASKED = "the registry has not been asked yet"


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
        turns: Turns | None = None,
        remember: Callable[[ModelVersion], None] = lambda version: None,
    ) -> None:
        """`remember` notes the version that serves, for a start without the registry; it blocks. `room` is entered around
        each load, and may refuse it. `turns` are for cheap models on the loop, shared with others. `on_demand` lets requests
        name versions that are not loaded; without `required` the model itself, too, comes when it is asked for."""
        self.name, self.uri, self.required, self.on_demand = name, uri, required, on_demand
        self.sleeps = on_demand and not required
        self.aspired: tuple[ModelVersion, ...] = ()
        self.current: Servable | None = None
        self.problem: str | None = ASLEEP if self.sleeps else UNASKED
        self.stale = False
        self.first_failure: Callable[[], None] | None = None
        self._was_ready = False
        self.servables: list[Servable] = []
        #: unloaded, and not yet disposed of
        self.leaving: list[Servable] = []
        self.turn = Turn()
        self._loader, self._watcher, self._remember, self._room = loader, watcher, remember, room or _anywhere
        self._turns = turns
        self._drain_seconds, self._load_seconds = drain_seconds, load_seconds
        self._wake = asyncio.Event()
        self.extras = Extras(self._wake.set)
        self._errands, self._attempts = Errands(), Attempts()
        self._to_note: ModelVersion | None = None
        self._notes = False
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
            self.turn.end(self.unready())

    def _refresh_facts(self) -> None:
        """Aliases and stage of a loaded version may change without its being rebuilt."""
        known = {version: version for version in self.aspired}
        for servable in self.servables:
            servable.version = known.get(servable.version, servable.version)

    def missing(self) -> None:
        """There is nothing to serve, by the word of the registry: tells `first_failure` if a required model never was
        READY."""
        if self.first_failure is not None and self.required and not self._was_ready:
            self.first_failure()

    # -- coming and going on demand ---------------------------------------------------------------------------------

    def come(self) -> None:
        """Begins anew: what is aspired to is going to be said. `turn` tells those who wait for it."""
        self.turn, self.problem = Turn(), UNASKED

    def rest(self, error: NotReady | None = None) -> None:
        """Aspires to nothing, and lets go of what answers unversioned requests; extras stay. `error` is why, for those
        who wait."""
        self.aspired, self.problem, self.current = (), ASLEEP, None
        for servable in [s for s in self.servables if s.state is State.FAILED]:
            self._remove(servable)
        self.turn.end(error)
        self.drain_unwanted()

    def drain_unwanted(self) -> list[Servable]:
        """Gives out no more leases of what nobody wants, at once: later it could be wanted again. Returns what is going."""
        for servable in self.servables:
            wanted = servable is self.current or servable.version in (*self.aspired, *self.extras.versions)
            if servable.state is State.READY and not wanted:
                self._enter(servable, State.DRAINING)
        self._wake.set()
        return [s for s in (*self.servables, *self.leaving) if s.state in (State.DRAINING, State.UNLOADED)]

    def stays(self, servable: Servable) -> bool:
        """Whether a servable must not leave for others: it is what a model that does not sleep answers with."""
        return not self.sleeps and (servable is self.current or servable.version in self.aspired)

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
        servable.used = time.monotonic()
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
                raise self.unready()
            return self.current
        found = self.find(version) if label is None else self._labelled(label)
        if found is None:
            raise NotFound(self._not_loaded(version, label))
        return found

    def find(self, version: str | None) -> Servable | None:
        """The READY servable of a number; where a changed tag has it built anew, the one that is current."""
        if self.current is not None and self.current.version.version == version:
            return self.current
        return next((s for s in self.servables if s.version.version == version and s.state is State.READY), None)

    def _labelled(self, label: str) -> Servable | None:
        return next((s for s in self.servables if label in s.version.aliases and s.state is State.READY), None)

    def _not_loaded(self, version: str | None, label: str | None) -> str:
        what = f"version {shown(str(version))!r}" if label is None else f"label {shown(label)!r}"
        known = next((s for s in self.servables if s.version.version == version), None)
        state = f" (it is {known.state})" if known else ""
        ready = ", ".join(s.version.version for s in self.servables if s.state is State.READY) or "none"
        return f"Model {shown(self.name)!r} has no loaded {what}{state}; loaded versions: {ready}."

    @property
    def own(self) -> list[Servable]:
        """The servables that are there for the model itself, not as extras alone."""
        return [
            s for s in self.servables if s is self.current or s.version in self.aspired or s.version not in self.extras
        ]

    @property
    def serves(self) -> bool:
        """Whether a version is READY that answers unversioned requests."""
        return self.current is not None

    def unready(self) -> NotReady:
        """The error of who asks for the model while it has no READY version."""
        return NotLoadedYet(f"Model {shown(self.name)!r} has no READY version: {self.why()}.", self.retry_after)

    @property
    def retry_after(self) -> int:
        """Whole seconds after which to ask again while no version is READY: until one that FAILED is tried again, or a few."""
        now = time.monotonic()
        dues = [s.due - now for s in self.servables if s.state is State.FAILED and s.due > now]
        return math.ceil(min(dues, default=ASK_AGAIN_SECONDS))

    def why(self) -> str:
        """One clause about what keeps the model from being READY, or from being what is aspired."""
        failed = next((s for s in reversed(self.servables) if s.state is State.FAILED), None)
        if failed is not None:
            return f"version {failed.version.version} FAILED: {without_folders(failed.reason or '')}"
        coming = next((s for s in reversed(self.own) if s.state in COMING), None)
        if coming is not None:
            return f"version {coming.version.version} {coming.waits or f'is {coming.state}'}"
        return without_folders(self.problem or "the aspired version has not been loaded yet")

    def trouble(self) -> str | None:
        """What keeps the model from serving what the registry says now, or None if nothing does."""
        if self.problem is not None:
            return without_folders(self.problem)
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
            self._errands.cancel()
            self._send_away(NotReady("The server is shutting down."))

    def _send_away(self, error: NotReady) -> None:
        """Whoever still waits for a version to come or to leave would wait for ever."""
        self.turn.end(error)
        self.extras.end(error)
        for servable in (*self.servables, *self.leaving):
            servable.gone.set()

    async def _reconcile(self) -> None:
        """Everything that the plan asks for now, and a rest until something can change it."""
        self._wake.clear()
        for servable in self.servables:
            if servable.state in COMING and servable.version not in (*self.aspired, *self.extras.versions):
                servable.step_aside()
        while (action := self._plan(now := time.monotonic())) is not None:
            self._perform(action)
        await self._rest(now)

    def close(self, error: Exception | None = None) -> None:
        """Fails whoever still waits: the process ends."""
        for servable in self.servables:
            if servable.batcher is not None:
                if error is not None:
                    servable.batcher.fail_waiting(error)
                servable.batcher.close()

    def _plan(self, now: float) -> Action | None:
        return plan(self.aspired, self._views(), now, self._drain_seconds, extras=self.extras.versions)

    async def _rest(self, now: float) -> None:
        """`now` is when the plan had nothing to do: what has become due since then is still ahead."""
        with contextlib.suppress(TimeoutError):
            # Not wait_for: until Python 3.12 it loses a cancellation that meets the event.
            async with asyncio.timeout(next_due(self._views(), now, self._drain_seconds)):
                await self._wake.wait()

    def _views(self) -> list[View]:
        return [s.view(self.current) for s in self.servables]

    def _perform(self, action: Action) -> None:
        match action:
            case Load(version):
                self._load(version)
            case Publish(id):
                self._publish(self._by_id(id))
            case Drain(id):
                self._enter(self._by_id(id), State.DRAINING)
            case Unload(id):
                self._unload(self._by_id(id))
            case Forget(id):
                self._remove(self._by_id(id))

    def _by_id(self, id: int) -> Servable:
        return next(s for s in self.servables if s.id == id)

    def _load(self, version: ModelVersion) -> None:
        failed = [s for s in self.servables if s.version == version and s.state is State.FAILED]
        self.servables = [s for s in self.servables if s not in failed]
        if self.turn.over and version in self.aspired and self.current is None:
            self.turn = Turn()
        servable = Servable(self.name, version, failures=sum(s.failures for s in failed))
        servable.reason = failed[0].reason if failed else None
        self.alive.add(servable)
        self.servables.append(servable)
        self._enter(servable, State.LOADING)
        self._errands.begin(self._bring_up(servable))

    async def _bring_up(self, servable: Servable) -> None:
        """Loads and warms in a thread of its own. Any failure makes the servable FAILED; the old version stays. Time
        counts when there is room, and not while it is waited for."""
        bound, version = asyncio.timeout(None), servable.version
        try:
            LOST.check(self.name, version.version)
            self._attempts.check(version)
            async with self._room(servable), bound:
                bound.reschedule(asyncio.get_running_loop().time() + self._load_seconds)
                loaded = await self._attempts.run(version, lambda: self._loader.load(version), Loaded.dispose)
                servable.loaded = loaded
                self._enter(servable, State.WARMING)
                cost_ms = await self._attempts.run(version, lambda: warm(loaded))
            given_up = partial(self._give_up, servable)
            servable.batcher = build_batcher(servable, loaded, cost_ms, self._watcher, self._turns, given_up)
            servable.cache = build_cache(servable, self._watcher)
            servable.reason = None
            self._watch(servable, loaded)
            self._enter(servable, State.READY, warm_ms=round(cost_ms, 3))
            self.extras.came(servable.version)
        except NoRoom as error:
            self._fail(servable, str(error), error)
        except Exception as error:  # noqa: BLE001  the reconcile loop's edge: a version may fail in any way
            late = f"loading took longer than {self._load_seconds:g} seconds"
            self._fail(servable, late if bound.expired() else reason_of(error))
        finally:
            self._wake.set()
            if servable.state is State.FAILED:
                self._part(servable)

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
        servable.shut()
        self._fail(servable, reason)
        self._part(servable)
        self._wake.set()

    def _fail(self, servable: Servable, reason: str, error: NoRoom | None = None) -> None:
        """What nobody aspires to is not tried again, and leaves nothing but a refusal to who names it next; where nothing
        is aspired to, what answered until now stays to say why it does so no more."""
        answered = servable is self.current
        if answered:
            self.current, self.turn = None, Turn()
        servable.failures += 1
        servable.reason = reason
        servable.due = time.monotonic() + backoff(servable.failures)
        self._enter(servable, State.FAILED, retry_in_seconds=backoff(servable.failures))
        number = servable.version.version
        self.extras.failed(
            servable.version, error or NotReady(f"Version {number} of the model FAILED: {without_folders(reason)}.")
        )
        if servable.version in self.aspired or (answered and not self.aspired):
            self.turn.end(error or self.unready())
            if not self.stale:  # what the registry says when it answers may be another version
                self.missing()
        else:
            self._remove(servable)

    def _publish(self, servable: Servable) -> None:
        before = self.current
        self.current, self._was_ready = servable, True
        self.turn.end()
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
        self._to_note = servable.version
        if not self._notes:
            self._errands.begin(self._note())

    async def _note(self) -> None:
        """Notes what serves, one at a time, and the newest last."""
        self._notes = True
        try:
            while (version := self._to_note) is not None:
                self._to_note = None
                await in_thread(partial(self._remember, version))
        finally:
            self._notes = False

    def _unload(self, servable: Servable) -> None:
        servable.shut()
        self._enter(servable, State.UNLOADED, leases_cut=servable.leases)
        self._remove(servable)
        self._part(servable)

    def _part(self, servable: Servable) -> None:
        """Has it disposed of; until then its memory counts. One that hangs in its end keeps nobody from coming."""
        self.leaving.append(servable)
        self._errands.begin(self._dispose(servable))

    async def _dispose(self, servable: Servable) -> None:
        """Releases what was loaded, in a thread."""
        try:
            if servable.loaded is not None:
                await in_thread(Disposal(servable))
        finally:
            self.leaving.remove(servable)
            servable.memory = 0
            servable.gone.set()

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
