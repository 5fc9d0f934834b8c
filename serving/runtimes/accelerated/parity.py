"""The proof, at load, that a program answers as the model does. What is not proved does not serve.

Labels must be identical, probabilities within a millionth, a regressor's numbers within a millionth of themselves. In
fact nearly every program answers the same to the last bit; the bounds are what is promised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from serving.runtimes.accelerated.compiling import split
from serving.runtimes.accelerated.drawing import (
    Domain,
    Rows,
    crossings,
    one_column_changed,
    threshold_rows,
    with_missing,
)
from serving.runtimes.accelerated.program import NotAccelerated
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Outputs, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema

T = TypeVar("T")
TOLERANCE = 1e-6
_TINY = np.finfo(np.float64).tiny
_DRAWN, _PAIRS, _ALONE = 96, 64, 4


class NotProved(NotAccelerated):
    """The program does not answer as the model does, or that could not be found out."""


@dataclass(slots=True)
class Parity:
    """What was compared: rows, among them rows next to a threshold, and the largest difference of probabilities, or of a
    regressor's numbers relative to themselves."""

    rows: int = 0
    at_thresholds: int = 0
    difference: float = 0.0
    seconds: float = 0.0


def prove(
    native: SklearnRuntime, fast: AcceleratedRuntime, schema: InputSchema, example: Rows, seconds: float
) -> Parity:
    """Compares; settles whether `fast` takes missing values. Raises NotProved at the first difference, or when `seconds`
    have passed before everything was compared but the nodes of trees, for which at most a tenth of them is added."""
    domain = Domain(schema, fast.matrix(example), fast.levels)
    return _Check(native, fast, domain, seconds).run()


class _Check:
    def __init__(self, native: SklearnRuntime, fast: AcceleratedRuntime, domain: Domain, seconds: float) -> None:
        self._native, self._fast, self._domain, self._seconds = native, fast, domain, seconds
        self._began = time.monotonic()
        self._want = Want.LABELS | (Want.PROBABILITIES if native.classes is not None else Want.NONE)
        self._random = np.random.default_rng(0)  # the same rows for the same version, so that a verdict stays
        self._found = Parity()

    def run(self) -> Parity:
        drawn = np.concatenate([self._domain.example[:16], self._domain.around(_DRAWN, self._random)])
        self._rows(drawn)
        for row in drawn[:_ALONE]:
            self._rows(row[None])
        self._missing(drawn)
        self._thresholds(self._domain.around(_PAIRS, self._random), self._domain.around(_PAIRS, self._random))
        self._nodes(drawn)
        self._found.seconds = time.monotonic() - self._began
        return self._found

    def _rows(self, matrix: np.ndarray) -> None:
        """Both must answer, and the same."""
        self._in_time()
        arrays = self._domain.arrays(matrix)
        expected = _tried(lambda: self._native.predict(arrays, len(matrix), self._want))
        if isinstance(expected, Exception):
            raise NotProved(f"the model raises {type(expected).__name__} for rows around its example") from expected
        self._compare(self._fast.predict(arrays, len(matrix), self._want), expected)

    def _missing(self, drawn: np.ndarray) -> None:
        """Where the model itself raises for missing values, the program must leave them to it. Before the model there may
        be an imputer, for some columns or for all: then row by row, because one that raises takes the others with it."""
        _, model = split(self._native.estimator)
        head = with_missing(self._head_rows(drawn), np.True_, self._random)
        self._fast.takes_missing = not isinstance(_tried(lambda: model.predict(head)), Exception)
        if not self._domain.optional.any():
            return
        gone = with_missing(drawn, self._domain.optional, self._random)
        if not self._native_raises(gone):
            self._rows(gone)
            return
        one_gone = np.where(np.eye(drawn.shape[1], dtype=bool)[:_DRAWN] & self._domain.optional, np.nan, drawn[0])
        for row in one_gone[self._random.permutation(len(one_gone))[: 4 * _ALONE]]:
            if not self._native_raises(row[None]):
                self._rows(row[None])

    def _native_raises(self, matrix: np.ndarray) -> bool:
        self._in_time()
        arrays = self._domain.arrays(matrix)
        return isinstance(_tried(lambda: self._native.predict(arrays, len(matrix), self._want)), Exception)

    def _head_rows(self, matrix: np.ndarray) -> np.ndarray:
        """Rows as the model itself gets them, behind its preprocessing."""
        return self._fast.program.prepare(self._fast.matrix(self._domain.arrays(matrix)))

    def _thresholds(self, a: np.ndarray, b: np.ndarray) -> None:
        """Where the program's answer changes, the model's must change too: a threshold elsewhere by one bit shows."""
        for other in (b, one_column_changed(a, b, self._random)):
            for answer in (self._labels, self._numbers):
                found = crossings(a, other, answer)
                if len(found):
                    self._rows(found)
                    self._found.at_thresholds += len(found)

    def _labels(self, matrix: np.ndarray) -> np.ndarray:
        labels = self._ask(matrix).labels
        assert labels is not None
        return labels

    def _numbers(self, matrix: np.ndarray) -> np.ndarray:
        outputs = self._ask(matrix)
        return self._labels(matrix) if outputs.probabilities is None else outputs.probabilities

    def _ask(self, matrix: np.ndarray) -> Outputs:
        self._in_time()
        return self._fast.predict(self._domain.arrays(matrix), len(matrix), self._want)

    def _nodes(self, drawn: np.ndarray) -> None:
        """Trees: the nodes themselves, as many as the time allows, in the space where their thresholds are."""
        _, model = split(self._native.estimator)
        trees = self._fast.program.head.trees()
        if not trees:
            return
        base = self._head_rows(drawn)
        until = time.monotonic() + self._seconds / 10
        rows: list[np.ndarray] = []
        for at_node in threshold_rows(trees, base.astype(np.float64), self._random):
            rows.append(at_node if self._fast.takes_missing else at_node[:-1])
            if len(rows) >= _PAIRS:
                self._model(model, np.concatenate(rows))
                rows = []
                if time.monotonic() > until:
                    return
        if rows:
            self._model(model, np.concatenate(rows))

    def _model(self, model: object, x: np.ndarray) -> None:
        labels, probabilities = self._fast.program.head.answer(x, self._want)
        predict, table = _methods(model)
        expected = Outputs(len(x), predict(x), table(x) if Want.PROBABILITIES in self._want else None)
        self._compare(Outputs(len(x), labels, probabilities), expected)
        self._found.at_thresholds += len(x)

    def _compare(self, found: Outputs, expected: Outputs) -> None:
        labels, truth = found.labels, expected.labels
        assert labels is not None
        assert truth is not None
        if labels.shape != truth.shape or labels.dtype != truth.dtype:
            raise NotProved("the predictions have another shape or type than the model's")
        if self._native.classes is not None or truth.dtype.kind != "f":
            wrong = int((labels != truth).sum())
            if wrong:
                raise NotProved(f"{wrong} of {len(truth)} labels are not the model's")
        else:
            with np.errstate(invalid="ignore"):  # infinity less infinity; but those two are equal
                apart = np.where(labels == truth, 0.0, np.abs(labels - truth) / np.maximum(np.abs(truth), _TINY))
            self._within(apart, "predictions")
        if expected.probabilities is not None:
            assert found.probabilities is not None
            self._within(np.abs(found.probabilities - expected.probabilities), "probabilities")
        self._found.rows += len(truth)

    def _within(self, difference: np.ndarray, what: str) -> None:
        worst = float(difference.max(initial=0.0))
        if not worst <= TOLERANCE:
            raise NotProved(f"{what} differ from the model's by up to {worst:.1e}")
        self._found.difference = max(self._found.difference, worst)

    def _in_time(self) -> None:
        if time.monotonic() - self._began > self._seconds:
            raise NotProved(f"the check was not through within {self._seconds:g} seconds")


def _methods(model: object) -> tuple[Callable[[np.ndarray], np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    predict = model.predict  # type: ignore[attr-defined]
    return predict, getattr(model, "predict_proba", predict)


def _tried(work: Callable[[], T]) -> T | Exception:
    """What the model answers or raises."""
    try:
        return work()
    except Exception as error:  # noqa: BLE001  a model may raise anything
        return error
