"""What a compiled estimator is: array arithmetic in the place of the library's own methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from serving.runtimes.base import Want

#: Sum of squares beyond which a batch goes to the library: no value is over 2^53 then, none is infinite, none is NaN.
_MOST_ENERGY = 2.0**106
#: A matrix `[n, k]` to a matrix `[n, m]`; must leave its argument as it is, and may raise Beyond.
Transform = Callable[[np.ndarray], np.ndarray]
Answer = tuple[np.ndarray | None, np.ndarray | None]


class NotAccelerated(Exception):
    """The model's own library must serve it. The text is a clause that says why."""


class NotCompiled(NotAccelerated):
    """The estimator cannot be computed in another way."""


class Beyond(Exception):
    """A batch that the library must answer: what the program would make of it was not compared."""


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
        """What computes it: `arrays`, `kernels` or `onnxruntime`."""
        ...

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels `[n]` and probabilities `[n, classes]` of a prepared matrix; at least what is wanted, or None."""
        ...

    def trees(self) -> Sequence[Tree]:
        """The trees whose thresholds the check tries, each once; none if there are none."""
        ...


@runtime_checkable
class Scoring(Head, Protocol):
    """A classifier that another may stand on."""

    def scores(self, x: np.ndarray) -> np.ndarray:
        """What a calibrator gets of a prepared matrix: the decision function, else probabilities; `[n]` for two classes,
        or `[n, classes]`."""
        ...


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled estimator: prepare the matrix, then ask the head. Both may raise Beyond."""

    prepare: Transform
    head: Head


def fits(x: np.ndarray, *, missing: bool) -> bool:
    """Whether all values are ordinary numbers, or missing where that is allowed."""
    flat = x.ravel(order="K")
    if np.dot(flat, flat) < _MOST_ENERGY:
        return True
    known = flat[~np.isnan(flat)]
    return missing and len(known) < len(flat) and bool(np.dot(known, known) < _MOST_ENERGY)
