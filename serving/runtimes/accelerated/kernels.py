"""Support vectors and neighbours by scikit-learn's own compiled routines, called without the checks around them.

There is no second arithmetic to be proved here: libsvm's kernels and the search trees are the library's. What is proved is
that they are called as the library calls them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from sklearn import neighbors, svm
from sklearn.metrics._pairwise_distances_reduction import ArgKmin
from sklearn.neighbors._base import _get_weights
from sklearn.svm import _libsvm as libsvm
from sklearn.svm._base import LIBSVM_IMPL
from sklearn.utils.multiclass import _ovr_decision_function

from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.linear import Arrays
from serving.runtimes.accelerated.program import Answer, Head, NotCompiled
from serving.runtimes.base import Want


class SupportVectors(Arrays):
    """A support vector machine: a number per row, a label, and probabilities where it was fitted with them."""

    engine = "kernels"

    def __init__(self, model: Any, layout: Layout) -> None:
        if callable(model.kernel) or model.kernel == "precomputed" or model._sparse or layout.sparse:
            raise NotCompiled("support vectors are compiled for kernels of libsvm's own and dense input")
        self._classes = getattr(model, "classes_", None)
        self._pairs = self._classes is not None and len(self._classes) > 2
        self._one_against_rest = self._pairs and model.decision_function_shape == "ovr"
        if self._pairs and model.break_ties:
            raise NotCompiled("support vectors that break ties are not compiled")
        vectors = (
            model.support_, model.support_vectors_, model._n_support, model._dual_coef_, model._intercept_,
            model._probA, model._probB,
        )  # fmt: skip
        said = {
            "svm_type": LIBSVM_IMPL.index(model._impl), "kernel": model.kernel, "degree": model.degree,
            "coef0": model.coef0, "gamma": model._gamma, "cache_size": model.cache_size,
        }  # fmt: skip
        self._predict, self._table, self._decide = (
            partial(_called, routine, vectors, said)
            for routine in (libsvm.predict, libsvm.predict_proba, libsvm.decision_function)
        )
        self._tables = hasattr(model, "predict_proba")

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """What is wanted: the label and the probabilities of libsvm come from different computations."""
        x = np.ascontiguousarray(x, np.float64)
        if self._classes is None:
            return self._predict(x), None
        labels = self._classes.take(self._predict(x).astype(np.intp)) if Want.LABELS in want else None
        return labels, self._table(x) if Want.PROBABILITIES in want and self._tables else None

    def scores(self, x: np.ndarray) -> np.ndarray:
        """The decision function."""
        decided: np.ndarray = self._decide(np.ascontiguousarray(x, np.float64))
        if not self._pairs:
            return -decided.ravel()
        if not self._one_against_rest:
            return decided
        ovr: np.ndarray = _ovr_decision_function(decided < 0, -decided, len(self._classes))  # type: ignore[arg-type]
        return ovr


def _called(routine: Callable[..., np.ndarray], vectors: tuple[Any, ...], said: dict[str, Any], x: np.ndarray) -> Any:
    return routine(x, *vectors, **said)


class Neighbours(Arrays):
    """The mean or the vote of the nearest rows of the training data."""

    engine = "kernels"

    def __init__(self, model: Any, layout: Layout) -> None:
        if callable(model.weights) or getattr(model, "outputs_2d_", False):
            raise NotCompiled("neighbours with weights of a function, or of several targets, are not compiled")
        self._find = _finder(model, layout)
        self._weights, self._known = model.weights, model._y
        self._classes = getattr(model, "classes_", None)

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels and probabilities of a vote; one number per row and target of a mean."""
        distances, nearest = self._find(np.ascontiguousarray(x))
        weights = _get_weights(distances, self._weights)
        known = self._known[nearest]
        if self._classes is None:
            return _mean(known, weights), None
        votes, table = _votes(known, weights, len(self._classes))
        return self._classes.take(votes.argmax(axis=1)), table

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Probabilities: neighbours have no decision function."""
        _, table = self.answer(x, Want.PROBABILITIES)
        assert table is not None
        return table[:, 1] if table.shape[1] == 2 else table


def _finder(model: Any, layout: Layout) -> Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """From rows to the distances and the places of their neighbours."""
    if model._fit_method in ("kd_tree", "ball_tree") and not layout.sparse:
        return partial(model._tree.query, k=model.n_neighbors)
    fitted = model._fit_X
    probe = np.zeros((1, model.n_features_in_), layout.dtype)
    if (
        layout.sparse
        or model._fit_method != "brute"
        or not ArgKmin.is_usable_for(probe, fitted, model.effective_metric_)
    ):
        raise NotCompiled("neighbours are compiled for search trees, and for distances that scikit-learn finds itself")
    return lambda x: ArgKmin.compute(
        X=x, Y=fitted, k=model.n_neighbors, metric=model.effective_metric_,
        metric_kwargs=model.effective_metric_params_, strategy="auto", return_distance=True,
    )  # fmt: skip


def _mean(known: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    if weights is None:
        plain: np.ndarray = known.mean(axis=1)
        return plain
    whole = weights.sum(axis=1)
    if known.ndim == 2:
        weighted: np.ndarray = (known * weights).sum(axis=1) / whole
        return weighted
    return np.column_stack([(known[:, :, j] * weights).sum(axis=1) / whole for j in range(known.shape[2])])


def _votes(known: np.ndarray, weights: np.ndarray | None, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Votes and probabilities `[n, classes]`. They are two sums: the library adds the probabilities' up neighbour by
    neighbour, and finds the label from a sum by class."""
    if weights is None:
        weights = np.ones(known.shape)
    votes = np.stack([np.where(known == c, weights, 0.0).sum(axis=1) for c in range(classes)], axis=1)
    table = np.zeros((len(known), classes))
    rows = np.arange(len(known))
    for i in range(known.shape[1]):
        table[rows, known[:, i]] += weights[:, i]
    table /= table.sum(axis=1)[:, np.newaxis]
    return votes, table


HEADS: dict[type, Callable[[Any, Layout], Head]] = {
    **dict.fromkeys((svm.SVC, svm.NuSVC, svm.SVR, svm.NuSVR), SupportVectors),
    **dict.fromkeys((neighbors.KNeighborsClassifier, neighbors.KNeighborsRegressor), Neighbours),
}
