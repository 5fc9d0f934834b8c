"""Where the batches of one version run: on the event loop while they are cheap, else in threads."""

from __future__ import annotations

from serving.turns import MOST_SECONDS

#: One batch that takes so many times the bound, and longer than a tick may, is the last one on the loop.
OUTLIER = 10
#: A version comes back when its batches have been cheap for so long, and so many of them.
PROOF_SECONDS, PROOF_BATCHES = 60.0, 1000


class Place:
    """Decides by what batches took. `bound` is what a batch may take on the loop, in seconds, on average.

    A version leaves the loop when its batches take more than twice that on average, or one stands out; it comes back when
    they take less than half of it, and none has stood out for a minute and a thousand batches.
    """

    __slots__ = ("_average", "_bound", "_calm", "_outlier", "_since", "on_loop")

    def __init__(self, bound: float) -> None:
        self._bound, self._outlier = bound, max(OUTLIER * bound, MOST_SECONDS)
        self._average, self._since = 0.0, 0.0
        self._calm = 0
        self.on_loop = True

    def ran(self, seconds: float, now: float, answered: bool) -> bool:
        """Whether the next batch runs on the loop. `now` is monotonic seconds; a batch that answered nobody proves nothing
        but that it took long."""
        if answered:
            self._average += 0.1 * ((seconds if seconds < self._outlier else self._outlier) - self._average)
        if seconds > self._outlier or (self.on_loop and self._average > 2 * self._bound):
            self.on_loop, self._calm, self._since = False, 0, now
        elif answered and not self.on_loop:
            self._calm += 1
            self.on_loop = self._proved(now)
        return self.on_loop

    def _proved(self, now: float) -> bool:
        cheap = self._average < self._bound / 2
        return cheap and self._calm >= PROOF_BATCHES and now - self._since >= PROOF_SECONDS
