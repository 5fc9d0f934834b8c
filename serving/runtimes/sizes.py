"""Sizes that a signature leaves open and a network does not: whoever sends others has sent the wrong ones."""

from __future__ import annotations

import numpy as np

from serving.refusals import Unfit

Arrays = tuple[np.ndarray, ...]


class Sizes:
    """What the inputs of a network measured, beside their number of rows, when it answered first: at warm-up."""

    def __init__(self) -> None:
        self._known: list[tuple[int, ...]] | None = None

    def taken(self, arrays: Arrays) -> None:
        """The network has answered these."""
        if self._known is None:
            self._known = _measured(arrays)

    def blame(self, arrays: Arrays, error: Exception) -> Exception:
        """What to raise for an error of the network: its own, or Unfit where the inputs measure something else."""
        if self._known is None or _measured(arrays) == self._known:
            return error
        unfit = Unfit(f"the network takes other sizes than these ({type(error).__name__})")
        unfit.__cause__ = error
        return unfit


def _measured(arrays: Arrays) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in arrays]
