"""What a measurement says, and what a ratio is: pure arithmetic over rounds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measurement.

    `rate` counts good answers per second, `cpu` is microseconds of the server's process tree per answer, latencies are
    milliseconds. `load` is the share of one core that the load generator took: near 1 it may be the limit. `errors` are
    answers that were no success.
    """

    rate: float
    cpu: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    p99: float = 0.0
    load: float = 0.0
    errors: int = 0
    seconds: float = 0.0
    memory: float = 0.0

    def plain(self) -> dict[str, Any]:
        """For JSON: rounded to what was measured."""
        return {key: float(f"{value:.5g}") for key, value in asdict(self).items()}


#: Of one side: number of clients (as text, since JSON has no other keys) → one figure per round.
Figures = Mapping[str, Sequence[Mapping[str, float]]]


def median(figures: Figures, clients: int, what: str) -> float | None:
    """The median of one quantity over the rounds; None where nothing was measured."""
    found = [figure[what] for figure in figures.get(str(clients), ())]
    return statistics.median(found) if found else None


def ratios(first: Figures, other: Figures, clients: int, what: str = "rate") -> list[float]:
    """One quantity of the first side by the other's, round by round; rounds in which either has none are left out."""
    pairs = zip(first.get(str(clients), ()), other.get(str(clients), ()), strict=False)
    return [a[what] / b[what] for a, b in pairs if a[what] and b[what]]


def ratio(first: Figures, other: Figures, clients: int, what: str = "rate") -> float | None:
    """The median of the paired ratios."""
    found = ratios(first, other, clients, what)
    return statistics.median(found) if found else None


def errors(figures: Figures, clients: int) -> int:
    """How many answers were no success, in all rounds."""
    return int(sum(figure["errors"] for figure in figures.get(str(clients), ())))


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of an ordered sample do not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def order(count: int, number: int) -> list[int]:
    """In which order a round measures `count` sides: each comes first in turn."""
    start = number % count
    return [*range(start, count), *range(start)]


def next_rate(low: float, high: float, carried: Mapping[float, bool]) -> float:
    """The rate to try next, given which were carried: doubling while all were, then between the two nearest."""
    good, bad = ([rate for rate, fine in carried.items() if fine is wish] for wish in (True, False))
    if not carried:
        return low
    if not bad:
        return min(high, 2 * max(good))
    return (max(good, default=0.0) + min(bad)) / 2
