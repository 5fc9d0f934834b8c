"""What a compiled estimator is: array arithmetic in the place of the library's own methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.runtimes.base import Want

#: A matrix `[n, k]` to a matrix `[n, m]`; must leave its argument as it is.
Transform = Callable[[np.ndarray], np.ndarray]
Answer = tuple[np.ndarray | None, np.ndarray | None]


class NotCompiled(Exception):
    """The estimator cannot be computed in another way. The text is a clause that says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """One decision tree as arrays over its nodes; node 0 is the root. A row goes left at `node` if
    `x[feature] <= threshold`, or if the value is missing and `missing_left`. Leaves have no children: -1.

    `values` are `[nodes, targets]`; only those of leaves count.
    """

    left: np.ndarray
    right: np.ndarray
    feature: np.ndarray
    threshold: np.ndarray
    missing_left: np.ndarray
    values: np.ndarray


class Head(Protocol):
    """The last step of a pipeline: the model itself."""

    @property
    def engine(self) -> str:
        """What computes it: `arrays` or `onnxruntime`."""
        ...

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels `[n]` and probabilities `[n, classes]` of a prepared matrix; at least what is wanted, or None."""
        ...

    def trees(self) -> Sequence[Tree]:
        """The trees whose thresholds the check tries, each once; none if there are none."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled estimator: prepare the matrix, then ask the head."""

    prepare: Transform
    head: Head
