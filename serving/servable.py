"""A servable: one version of a model on its way through its life, and what it needs of others."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from registry.versions import ModelVersion
from serving.batching import Batcher
from serving.errors import NotReady
from serving.lifecycle import State, View
from serving.loading import Loaded
from serving.response_cache import ResponseCache

_ids = itertools.count(1)


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

    def asked(self, model: str, version: str, outcome: str) -> None:
        """A request was a `hit` of the response cache, or a `miss`."""
        ...

    def evicted(self, model: str, version: str, reason: str) -> None:
        """An answer left the response cache: for `room`, or for its `age`."""
        ...


@dataclass(eq=False)
class Servable:
    """One version. `gone` is set when nothing of it is left; `used` is when it was last leased (monotonic seconds);
    `memory` what it took to load, in bytes. `waits` says what for before its load has begun; `step_aside` lets the loads
    of others go on while it loads."""

    model: str
    version: ModelVersion
    failures: int = 0
    id: int = field(default_factory=lambda: next(_ids))
    state: State = State.NEW
    reason: str | None = None
    entered: float = field(default_factory=time.monotonic)
    used: float = field(default_factory=time.monotonic)
    since: str = ""
    due: float = 0.0
    leases: int = 0
    memory: int = 0
    loaded: Loaded | None = None
    batcher: Batcher | None = None
    cache: ResponseCache | None = None
    waits: str | None = None
    step_aside: Callable[[], None] = lambda: None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    def view(self, current: Servable | None) -> View:
        """What the plan may know."""
        return View(self.id, self.version, self.state, self is current, self.leases, self.entered, self.due)

    @property
    def ready(self) -> tuple[Loaded, Batcher]:
        """What a lease gives access to."""
        assert self.loaded is not None
        assert self.batcher is not None
        return self.loaded, self.batcher

    def shut(self) -> None:
        """Fails whoever waits, and forgets what was answered."""
        if self.batcher is not None:
            self.batcher.close()
        self.batcher = self.cache = None


Room = Callable[[Servable], contextlib.AbstractAsyncContextManager[None]]


class Turn:
    """What requests wait for while a version is on its way: any number of them, each as long as it likes."""

    def __init__(self) -> None:
        self._over, self._error = asyncio.Event(), None

    _error: NotReady | None

    @property
    def over(self) -> bool:
        """Whether it is known how it ended."""
        return self._over.is_set()

    def end(self, error: NotReady | None = None) -> None:
        """Lets everybody go on to look, or raises `error` at them. The first end counts."""
        if not self.over:
            self._error = error
            self._over.set()

    async def wait(self) -> None:
        """Returns when it is worth looking again, or raises why no version comes."""
        await self._over.wait()
        await asyncio.sleep(0)  # who looks again and again lets others work between
        if self._error is not None:
            raise self._error.with_traceback(None)
