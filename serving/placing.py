"""Where the batches of one version run: on the event loop while they are cheap, else in threads."""

from __future__ import annotations

import resource

from serving.batch import Meter
from serving.turns import MOST_SECONDS

#: One batch that takes so many times the bound, and longer than a tick may, is the last one on the loop.
OUTLIER = 3
#: A version comes back when its batches have been cheap for so long, and so many of them.
PROOF_SECONDS, PROOF_BATCHES = 60.0, 1000
#: What a wait of the thread counts in seconds: more than any batch takes.
_WAIT = 1e6
_THREAD = getattr(resource, "RUSAGE_THREAD", None)  # Linux has it


def strain() -> float:
    """This thread's own time, in seconds; to have waited, for a file or a lock, counts more than any time. What is no strain
    is to be kept from running, by others or by a limit."""
    used = resource.getrusage(_THREAD or resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime + _WAIT * used.ru_nvcsw


class Place:
    """Decides by what batches took. `bound` is what a batch may take on the loop, in seconds, on average.

    A version leaves the loop when its batches take more than twice that on average, or one stands out; it comes back when
    they take less than half of it, and none has stood out for a minute and a thousand batches. The first that stands out
    counts whatever the reason. After it `meter` tells the model's own time from pauses of the machine: else a busy machine
    would keep it from the loop.
    """

    __slots__ = ("_average", "_bound", "_calm", "_outlier", "_since", "meter", "on_loop")

    def __init__(self, bound: float) -> None:
        self._bound, self._outlier = bound, max(OUTLIER * bound, MOST_SECONDS)
        self._average, self._since = 0.0, 0.0
        self._calm = 0
        self.meter: Meter | None = None
        self.on_loop = True

    def ran(self, seconds: float, own: float, now: float, answered: bool) -> bool:
        """Whether the next batch runs on the loop. `own` is what of the seconds was the model's, `now` monotonic seconds; a
        batch that answered nobody proves nothing but that it took long."""
        if answered:
            self._average += 0.1 * ((seconds if seconds < self._outlier else self._outlier) - self._average)
        if own > self._outlier or (self.on_loop and self._average > 2 * self._bound):
            self._leave(now)
        elif answered and not self.on_loop:
            self._calm += 1
            self.on_loop = self._proved(now)
        return self.on_loop

    def _leave(self, now: float) -> None:
        self.on_loop, self._calm, self._since = False, 0, now
        self.meter = strain if _THREAD is not None else None

    def _proved(self, now: float) -> bool:
        cheap = self._average < self._bound / 2
        return cheap and self._calm >= PROOF_BATCHES and now - self._since >= PROOF_SECONDS
