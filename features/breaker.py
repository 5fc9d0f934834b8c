"""A circuit breaker on the event loop: a store that failed a few times in a row is left alone, then tried by one caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import StrEnum

from features.errors import FeaturesUnavailable


class Circuit(StrEnum):
    """CLOSED lets everybody through, OPEN nobody, HALF_OPEN has let one through and waits for what it finds."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """Opens for `rest_seconds` after `failures` in a row; then one read at a time probes. `changed` hears every change."""

    def __init__(
        self,
        failures: int = 5,
        rest_seconds: float = 1.0,
        changed: Callable[[Circuit], None] = lambda circuit: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._rest, self._changed, self._clock = failures, rest_seconds, changed, clock
        self._failures = 0
        self._until = 0.0
        self.circuit = Circuit.CLOSED

    def admit(self) -> None:
        """Raises FeaturesUnavailable while nobody is let through. A probe that never reports is replaced after a rest."""
        if self.circuit is Circuit.CLOSED:
            return
        if self._clock() < self._until:
            raise FeaturesUnavailable("The feature store failed a moment ago and is not asked now.")
        self._until = self._clock() + self._rest
        self._enter(Circuit.HALF_OPEN)

    def record(self, *, ok: bool) -> None:
        """What an admitted read came to."""
        self._failures = 0 if ok else self._failures + 1
        if ok:
            self._enter(Circuit.CLOSED)
        elif self.circuit is Circuit.HALF_OPEN or self._failures >= self._most:
            self._until = self._clock() + self._rest
            self._enter(Circuit.OPEN)

    def _enter(self, circuit: Circuit) -> None:
        if circuit is not self.circuit:
            self.circuit = circuit
            self._changed(circuit)
