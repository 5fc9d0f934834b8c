"""What batches of a model cost, learned from those that ran: cost = a + b·rows."""

from __future__ import annotations

import math

#: What the newest batch weighs: about the last forty count.
NEWEST = 0.05
#: One batch counts at most this many times what was expected of it: a pause of the machine is not the model.
OUTLIER = 3.0
#: Sizes that differ by less than this part of their mean say nothing of the slope.
ALIKE = 0.1


class Cost:
    """A line through the batches of late; seconds over rows. Old ones are forgotten, and one that stands out is cut."""

    __slots__ = ("_batches", "_covariance", "_rows", "_seconds", "_variance")

    def __init__(self) -> None:
        self._batches = 0
        self._rows = self._seconds = self._variance = self._covariance = 0.0

    def add(self, rows: int, seconds: float) -> None:
        """A batch of `rows` rows took `seconds`."""
        self._batches += 1
        weight = max(NEWEST, 1 / self._batches)
        if self._batches > 1:
            seconds = min(seconds, OUTLIER * max(self.of(rows), self._seconds))
        right, up = rows - self._rows, seconds - self._seconds
        self._rows += weight * right
        self._seconds += weight * up
        self._variance = (1 - weight) * (self._variance + weight * right * right)
        self._covariance = (1 - weight) * (self._covariance + weight * right * up)

    def of(self, rows: int) -> float:
        """The seconds that so many rows are expected to take."""
        slope = self._slope()
        return max(0.0, self._seconds + slope * (rows - self._rows))

    def rows_within(self, seconds: float, most: int) -> int:
        """The rows, 1 to `most`, whose expected cost is `seconds` at most; 1 if not even one row's is."""
        if self._batches == 0:
            return most
        slope = self._slope()
        left = seconds - self._seconds
        if slope * most <= 1e-12:  # more rows cost no more
            return most if left >= 0 else 1
        rows = math.floor(min(self._rows + left / slope, most) + 1e-9)
        if self._alike() and left >= 0:
            rows = max(rows, math.floor(self._rows) + 1)  # another size, to learn the slope from
        return max(1, min(rows, most))

    def _alike(self) -> bool:
        return self._variance < (ALIKE * self._rows) ** 2

    def _slope(self) -> float:
        """Seconds per row. Until sizes differ the cost is taken as proportional; that cost falls with rows is noise."""
        if self._alike():
            return self._seconds / self._rows
        return max(0.0, self._covariance / self._variance)
