"""What workers counted, those that are gone included: a counter that went down would be read as a restart of all.

Pure but for its memory: the time comes from the caller.
"""

from __future__ import annotations

from monitoring.merge import CUMULATIVE, Family, Snapshot, add, merge

Series = tuple[str, str]


class Ledger:
    """The last snapshot of every worker, and the sum of what those counted that do not say it any more.

    A series that no worker shows goes at once if a worker dropped it, and `keep_seconds` after the worker's end else.
    """

    def __init__(self, keep_seconds: float) -> None:
        self._keep = keep_seconds
        self._live: dict[int, Snapshot] = {}
        self._gone: Snapshot = {}
        self._until: dict[Series, float] = {}

    def note(self, worker: int, held: Snapshot, now: float) -> None:
        """A worker's registry holds this now."""
        before = self._live.get(worker, {})
        self._live[worker] = held
        self._bury({n: _without(f, held[n]) if n in held else f for n, f in before.items()}, now)

    def retire(self, worker: int, now: float) -> None:
        """A worker is gone, and will not say anything any more."""
        self._bury(self._live.pop(worker, {}), now + self._keep)

    def merged(self, now: float) -> Snapshot:
        """What all of them hold together, and held."""
        for series in [s for s, until in self._until.items() if until <= now and not self._shown(*s)]:
            name, key = series
            del self._until[series], self._gone[name].samples[key]
        return merge([*self._live.values(), self._gone])

    def _shown(self, name: str, key: str) -> bool:
        return any(name in held and key in held[name].samples for held in self._live.values())

    def _bury(self, held: Snapshot, until: float) -> None:
        counted = {name: family for name, family in held.items() if family.type in CUMULATIVE and family.samples}
        add(self._gone, counted)
        for name, family in counted.items():
            for key in family.samples:
                self._until[name, key] = max(until, self._until.get((name, key), until))


def _without(family: Family, other: Family) -> Family:
    left = {key: value for key, value in family.samples.items() if key not in other.samples}
    return Family(family.name, family.head, family.type, left)
