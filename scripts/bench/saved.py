"""A saved model, as those see it who only ask it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Saved:
    """A model's folder, the columns of its input, rows to ask with `[n, k]`, and what it answers to them."""

    folder: Path
    columns: tuple[str, ...]
    rows: np.ndarray
    answers: np.ndarray

    def asked(self, count: int) -> np.ndarray:
        """So many rows, repeated from the start where there are not enough."""
        return np.resize(self.rows, (count, self.rows.shape[1]))

    def expected(self, count: int) -> np.ndarray:
        """The answers to `asked(count)`."""
        return np.resize(self.answers, (count, *self.answers.shape[1:]))
