"""The life of one loaded version: states, legal transitions, and the pure plan that names the next action.

NEW → LOADING → WARMING → READY → DRAINING → UNLOADED
         └────────┴────────┴─→ FAILED          (a retry is a new servable)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from registry.versions import ModelVersion


class State(StrEnum):
    """Where a servable stands."""

    NEW = "NEW"
    LOADING = "LOADING"
    WARMING = "WARMING"
    READY = "READY"
    DRAINING = "DRAINING"
    UNLOADED = "UNLOADED"
    FAILED = "FAILED"


LEGAL: dict[State, tuple[State, ...]] = {
    State.NEW: (State.LOADING,),
    State.LOADING: (State.WARMING, State.FAILED),
    State.WARMING: (State.READY, State.FAILED),
    State.READY: (State.DRAINING, State.FAILED),
    State.DRAINING: (State.UNLOADED,),
    State.UNLOADED: (),
    State.FAILED: (),
}


class IllegalTransition(RuntimeError):
    """A bug: nothing may skip a state."""


def advance(current: State, to: State) -> State:
    """Returns `to` if the step is legal; raises IllegalTransition, which is always a bug, if not."""
    if to not in LEGAL[current]:
        raise IllegalTransition(f"{current} → {to}")
    return to


@dataclass(frozen=True, slots=True)
class View:
    """What the plan may know of a servable. `due` is when a FAILED one may be tried again (monotonic seconds)."""

    id: int
    version: ModelVersion
    state: State
    current: bool = False
    leases: int = 0
    since: float = 0.0
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """Build a servable of this version."""

    version: ModelVersion


@dataclass(frozen=True, slots=True)
class Publish:
    """Answer unversioned requests with this servable from now on."""

    id: int


@dataclass(frozen=True, slots=True)
class Drain:
    """Give out no more leases of this servable."""

    id: int


@dataclass(frozen=True, slots=True)
class Unload:
    """Nobody holds this servable, or the drain bound has passed: release it."""

    id: int


@dataclass(frozen=True, slots=True)
class Forget:
    """Drop a FAILED servable that nobody aspires to."""

    id: int


Action = Load | Publish | Drain | Unload | Forget

_LIVE = (State.NEW, State.LOADING, State.WARMING, State.READY)
_COMING = (State.NEW, State.LOADING, State.WARMING)
#: Loads of one model at a time, those included that nobody wants any more and that may hang.
MOST_COMING = 4


def plan(
    aspired: Sequence[ModelVersion],
    views: Sequence[View],
    now: float,
    drain_seconds: float,
    *,
    extras: Sequence[ModelVersion] = (),
) -> Action | None:
    """The one next action that brings reality nearer to what is aspired, or None if there is nothing to do now.

    `aspired[0]` answers unversioned requests. Of what is aspired one version loads at a time, and waits for no load of
    what is not: that may hang. A READY version is published before the one it replaces is drained, and without a READY
    successor the current one is never drained: an empty aspiration (a vanished alias, an empty registry) keeps the last
    READY version. `extras` are wanted beside: they load one by one after what is aspired, and are never published.
    """
    wanted = (*aspired, *extras)
    return (
        _publish(aspired, views)
        or _retire(aspired, wanted, views, now, drain_seconds)
        or _load(aspired, views, now, aspired)
        or _load(extras, views, now, wanted)
    )


def next_due(views: Sequence[View], now: float, drain_seconds: float) -> float | None:
    """Seconds until time alone could change a plan that had nothing to do at `now`, or None if only an event can."""
    times = [v.due for v in views if v.state is State.FAILED and v.due > now]
    times += [v.since + drain_seconds for v in views if v.state is State.DRAINING]
    return min(times) - now if times else None


def _publish(aspired: Sequence[ModelVersion], views: Sequence[View]) -> Action | None:
    for view in views:
        if aspired and view.version == aspired[0] and view.state is State.READY and not view.current:
            return Publish(view.id)
    return None


def _retire(
    aspired: Sequence[ModelVersion],
    wanted: Sequence[ModelVersion],
    views: Sequence[View],
    now: float,
    drain_seconds: float,
) -> Action | None:
    for view in views:
        stays = view.version in wanted
        if view.state is State.FAILED and aspired and not stays:
            return Forget(view.id)
        if view.state is State.READY and not stays and not view.current:
            return Drain(view.id)
        if view.state is State.DRAINING and (view.leases == 0 or now >= view.since + drain_seconds):
            return Unload(view.id)
    return None


def _load(
    wanted: Sequence[ModelVersion], views: Sequence[View], now: float, first: Sequence[ModelVersion]
) -> Action | None:
    """The next load of what is wanted; none while one of `first` comes."""
    coming = [view.version for view in views if view.state in _COMING]
    if len(coming) >= MOST_COMING or any(version in first for version in coming):
        return None
    for version in wanted:
        mine = [view for view in views if view.version == version]
        if any(view.state in _LIVE for view in mine) or any(v.state is State.FAILED and v.due > now for v in mine):
            continue
        return Load(version)
    return None


def backoff(failures: int, base: float = 1.0, cap: float = 60.0) -> float:
    """Seconds to wait after the nth failure in a row: base, doubled each time, at most `cap`."""
    return float(min(cap, base * 2.0 ** min(failures - 1, 16)))
