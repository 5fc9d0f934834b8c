"""Linear models as one matrix product, in scikit-learn's own order of operations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn import linear_model as linear
from sklearn import svm

from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.program import Answer, Head, NotCompiled, Tree
from serving.runtimes.base import Want


def product(x: np.ndarray, weights: np.ndarray, *, sparse: bool) -> np.ndarray:
    """`x · weights`. Of a sparse matrix the library adds term by term, which is rounded in another way than BLAS does."""
    if not sparse:
        dense: np.ndarray = x @ weights
        return dense
    terms = x[:, :, None] * weights.reshape(len(weights), -1)
    summed: np.ndarray = terms.cumsum(axis=1)[:, -1].reshape(len(x), *weights.shape[1:])
    return summed


class Arrays:
    """What is computed by array arithmetic, without trees."""

    engine = "arrays"

    def trees(self) -> Sequence[Tree]:
        """None."""
        return ()


class LinearRegressor(Arrays):
    """`x · w + b`, per target; of a generalised linear model, behind the inverse of its link."""

    def __init__(self, model: Any, layout: Layout) -> None:
        self._sparse = layout.sparse
        self._inverse = model._base_loss.link.inverse if type(model) in _GENERALISED else None
        self._weights = model.coef_.T  # a view: the product takes the same path through BLAS as the library's
        self._bias = model.intercept_

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """One number per row and target."""
        numbers = product(x, self._weights, sparse=self._sparse) + self._bias
        return numbers if self._inverse is None else self._inverse(numbers), None


class LinearClassifier(Arrays):
    """The class of the highest score; with two classes, of the sign of the one score."""

    def __init__(self, model: Any, layout: Layout, squash: Callable[[np.ndarray], np.ndarray] | None) -> None:
        self._sparse = layout.sparse
        self._weights, self._bias = model.coef_.T, model.intercept_
        self._classes, self._squash = model.classes_, squash
        self._binary = model.coef_.ndim == 1 or len(model.coef_) == 1

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels always: they cost next to nothing."""
        scores = self.scores(x)
        chosen = (scores > 0).view(np.int8) if self._binary else scores.argmax(axis=1)
        labels = self._classes.take(chosen)
        return labels, self._squash(scores) if Want.PROBABILITIES in want and self._squash is not None else None

    def scores(self, x: np.ndarray) -> np.ndarray:
        """The decision function."""
        scores: np.ndarray = product(x, self._weights, sparse=self._sparse) + self._bias
        return scores.ravel() if self._binary else scores


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


def _labels_only(model: Any, layout: Layout) -> Head:
    return LinearClassifier(model, layout, None)


def _logistic_regression(model: Any, layout: Layout) -> Head:
    return LinearClassifier(model, layout, _logistic if len(model.classes_) == 2 else _softmax)


def _sgd(model: Any, layout: Layout) -> Head:
    if model.loss == "modified_huber":
        raise NotCompiled("the probabilities of the modified Huber loss are not compiled")
    return LinearClassifier(model, layout, _logistic if model.loss == "log_loss" else None)


_GENERALISED = (linear.PoissonRegressor, linear.GammaRegressor, linear.TweedieRegressor)
HEADS: dict[type, Callable[[Any, Layout], Head]] = {
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
            linear.SGDRegressor, svm.LinearSVR, *_GENERALISED,
        ),
        LinearRegressor,
    ),
}  # fmt: skip
