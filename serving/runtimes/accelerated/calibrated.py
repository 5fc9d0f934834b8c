"""Calibrated classifiers: the classifiers they stand on, compiled, and a curve over what each says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.calibration import CalibratedClassifierCV, _SigmoidCalibration
from sklearn.isotonic import IsotonicRegression

from serving.runtimes.accelerated.compiling import compile_estimator
from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.linear import Arrays
from serving.runtimes.accelerated.program import Answer, Beyond, Head, NotCompiled, Scoring, fits
from serving.runtimes.base import Want

Curve = Callable[[np.ndarray], np.ndarray]


class Calibrated(Arrays):
    """The mean of the members' probabilities."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._members = [_Member(one, layout) for one in model.calibrated_classifiers_]
        self._classes = model.classes_
        self.engine = self._members[0].engine

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels and probabilities, whatever is wanted."""
        mean = np.zeros((len(x), len(self._classes)))
        for member in self._members:
            mean += member.probabilities(x)
        mean /= len(self._members)
        return self._classes[mean.argmax(axis=1)], mean


class _Member:
    """One classifier, fitted on a part of the data, with one curve per class, or one for two classes."""

    def __init__(self, one: Any, layout: Layout) -> None:
        if one.method not in ("sigmoid", "isotonic"):
            raise NotCompiled(f"calibration by {str(one.method)[:32]} is not compiled")
        program = compile_estimator(one.estimator, layout)
        if not isinstance(program.head, Scoring):
            raise NotCompiled(f"calibration of {type(program.head).__name__} is not compiled")
        self._program, self._head = program, program.head
        self.engine = program.head.engine
        self._curves = [_curve(calibrator) for calibrator in one.calibrators]
        self._count = len(one.classes)
        self._places = np.searchsorted(one.classes, one.estimator.classes_)

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """`[n, classes]`."""
        prepared = self._program.prepare(x)
        if not fits(prepared, missing=True):
            raise Beyond
        scores = self._head.scores(prepared)
        table = np.zeros((len(x), self._count))
        if self._count == 2:
            table[:, 1] = self._curves[0](scores)
            table[:, 0] = 1.0 - table[:, 1]
        else:
            for place, column, curve in zip(self._places, scores.T, self._curves, strict=True):
                table[:, place] = curve(column)
            whole = table.sum(axis=1)[:, np.newaxis]
            table = np.divide(table, whole, out=np.full_like(table, 1 / self._count), where=whole != 0)
        table[(table > 1.0) & (table <= 1.0 + 1e-5)] = 1.0
        return table


def _curve(calibrator: Any) -> Curve:
    if type(calibrator) is _SigmoidCalibration:
        slope, shift = calibrator.a_, calibrator.b_
        return lambda scores: expit(-(slope * scores + shift))
    if type(calibrator) is not IsotonicRegression or calibrator.out_of_bounds != "clip":
        raise NotCompiled(f"calibration by {type(calibrator).__name__[:64]} is not compiled")
    low, high, line = calibrator.X_min_, calibrator.X_max_, calibrator.f_
    dtype = calibrator.X_thresholds_.dtype
    return lambda scores: line(np.clip(scores.astype(dtype), low, high)).astype(dtype)


HEADS: dict[type, Callable[[Any, Layout], Head]] = {CalibratedClassifierCV: Calibrated}
