"""Linear models as one matrix product, in scikit-learn's own order of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn import linear_model as linear
from sklearn import svm

from serving.runtimes.accelerated.program import Answer, Head, NotCompiled, Tree
from serving.runtimes.base import Want


class _Linear:
    engine = "arrays"

    def trees(self) -> Sequence[Tree]:
        """None."""
        return ()


class LinearRegressor(_Linear):
    """`x · w + b`, per target."""

    def __init__(self, model: Any) -> None:
        self._weights = model.coef_.T  # a view: the product takes the same path through BLAS as the library's
        self._bias = model.intercept_

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """One number per row and target."""
        return x @ self._weights + self._bias, None


class LinearClassifier(_Linear):
    """The class of the highest score; with two classes, of the sign of the one score."""

    def __init__(self, model: Any, squash: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._weights, self._bias = model.coef_.T, model.intercept_
        self._classes, self._squash = model.classes_, squash
        self._binary = model.coef_.ndim == 1 or len(model.coef_) == 1

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels always: they cost next to nothing."""
        scores = x @ self._weights + self._bias
        if self._binary:
            scores = scores.ravel()
            chosen = (scores > 0).view(np.int8)
        else:
            chosen = scores.argmax(axis=1)
        labels = self._classes.take(chosen)
        return labels, self._squash(scores) if Want.PROBABILITIES in want and self._squash is not None else None


def _logistic(scores: np.ndarray) -> np.ndarray:
    """One sigmoid per score; more than two are divided by their sum."""
    p: np.ndarray = expit(scores, out=scores)
    if p.ndim == 1:
        table = np.empty((len(p), 2), p.dtype)
        np.subtract(1, p, out=table[:, 0])
        table[:, 1] = p
        return table
    total = p.sum(axis=1)
    p[total == 0], total[total == 0] = 1, p.shape[1]
    p /= total.reshape(-1, 1)
    return p


def _softmax(scores: np.ndarray) -> np.ndarray:
    scores -= scores.max(axis=1).reshape(-1, 1)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=1).reshape(-1, 1)
    return scores


def _labels_only(model: Any) -> Head:
    return LinearClassifier(model, None)


def _logistic_regression(model: Any) -> Head:
    return LinearClassifier(model, _logistic if len(model.classes_) == 2 else _softmax)


def _sgd(model: Any) -> Head:
    if model.loss == "modified_huber":
        raise NotCompiled("the probabilities of the modified Huber loss are not compiled")
    return LinearClassifier(model, _logistic if model.loss == "log_loss" else None)


LINEAR: dict[type, Callable[[Any], Head]] = {
    linear.LogisticRegression: _logistic_regression,
    linear.LogisticRegressionCV: _logistic_regression,
    linear.SGDClassifier: _sgd,
    linear.Perceptron: _labels_only,
    linear.RidgeClassifier: _labels_only,
    linear.RidgeClassifierCV: _labels_only,
    svm.LinearSVC: _labels_only,
    **dict.fromkeys(
        (
            linear.LinearRegression, linear.Ridge, linear.RidgeCV, linear.Lasso, linear.LassoCV, linear.ElasticNet,
            linear.ElasticNetCV, linear.Lars, linear.LassoLars, linear.BayesianRidge, linear.HuberRegressor,
            linear.SGDRegressor, svm.LinearSVR,
        ),
        LinearRegressor,
    ),
}  # fmt: skip
