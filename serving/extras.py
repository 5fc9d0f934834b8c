"""Versions of a model that are loaded because requests name them, beside what its registry entry aspires to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import TTLCache

from registry.versions import ModelVersion
from serving.errors import NoRoom, NotReady
from serving.servable import Turn

#: A version that FAILED is not loaded again for this long, whoever names it; so many are remembered per model.
REFUSED_SECONDS, MOST_REFUSALS = 10.0, 64


@dataclass(frozen=True, slots=True)
class Extra:
    """A version that somebody named, and what those wait for who did."""

    version: ModelVersion
    turn: Turn


class Extras:
    """The extras of one model, by number. `changed` is called when the plan may have something to do."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._extras: dict[str, Extra] = {}
        self._refusals: TTLCache[ModelVersion, NotReady] = TTLCache(MOST_REFUSALS, REFUSED_SECONDS)

    def __len__(self) -> int:
        return len(self._extras)

    def __contains__(self, version: ModelVersion) -> bool:
        extra = self._extras.get(version.version)
        return extra is not None and extra.version == version

    @property
    def versions(self) -> tuple[ModelVersion, ...]:
        """What is wanted."""
        return tuple(extra.version for extra in self._extras.values())

    def want(self, version: ModelVersion) -> Turn:
        """Has a version loaded and kept, and tells when it is there. Raises NotReady if it FAILED a moment ago."""
        if version in self:
            return self._extras[version.version].turn
        if (refusal := self._refusals.get(version)) is not None:
            raise refusal.with_traceback(None)
        self.drop(version.version)
        extra = self._extras[version.version] = Extra(version, Turn())
        self._changed()
        return extra.turn

    def drop(self, number: str) -> None:
        """Has a version kept no longer; requests that hold it finish."""
        extra = self._extras.pop(number, None)
        if extra is not None:
            extra.turn.end()
            self._changed()

    def end(self, error: NotReady) -> None:
        """Tells all who wait that nothing comes any more."""
        for extra in self._extras.values():
            extra.turn.end(error)

    def came(self, version: ModelVersion) -> None:
        """Tells those who wait that it is READY."""
        if version in self:
            self._extras[version.version].turn.end()

    def failed(self, version: ModelVersion, error: NotReady) -> None:
        """Tells those who wait why it is not. It is not an extra any more: nobody tries again unasked."""
        if version in self:
            self._extras.pop(version.version).turn.end(error)
            if not isinstance(error, NoRoom):
                self._refusals[version] = error
