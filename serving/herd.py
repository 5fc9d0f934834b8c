"""Every registered model that carries an alias: one entry, one question per poll, and any number of names.

A name that is not asked for is a string in a set. Its manager and poller are made when somebody asks, and forgotten when
the model sleeps again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable

from registry.policies import Catalogue, EveryCarrier
from serving.schema import shown

log = logging.getLogger("headway.registry")
_SERVABLE = re.compile(r"[^/:]+")


class Herd:
    """The names that carry the alias now, as the registry lists them. A poller tells it, as it tells a manager."""

    def __init__(self, policy: EveryCarrier, taken: frozenset[str], changed: Callable[[], None] = lambda: None) -> None:
        """`taken` are the names that have entries of their own; `changed` is called whenever the registry answered."""
        self.policy, self._taken, self._changed = policy, taken, changed
        self.name = policy.name
        self.aspired: Catalogue = ()
        self.problem: str | None = None
        self.names: frozenset[str] = frozenset()
        #: whether the registry has ever said which names there are
        self.known = False

    @property
    def serves(self) -> bool:
        """Whether it is known which names there are."""
        return self.known

    def aspire(self, versions: Catalogue, problem: str | None = None, *, stale: bool = False) -> None:
        """Takes the list. While the registry does not answer, the last one holds."""
        self.aspired, self.problem = versions, problem
        if stale:
            return
        names = frozenset(version.name for version in versions) - self._taken
        refused = [name for name in names if not _SERVABLE.fullmatch(name)]
        names = names.difference(refused)
        if names != self.names:
            facts = {"uri": self.policy.uri, "names": len(names), "more": len(names - self.names)}
            log.info(
                "the models that are followed changed",
                extra={**facts, "fewer": len(self.names - names), "refused": [shown(name) for name in refused[:5]]},
            )
        self.names, self.known = names, True
        self._changed()
