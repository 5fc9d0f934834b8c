"""Ensembles of trees, read from scikit-learn's own arrays of nodes and computed by ONNX Runtime in double precision.

Doubles, because a threshold rounded to a float sends a row next to it the other way. The sums run over the trees in the
library's order, from the library's starting value, so that they are the same to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn import ensemble, tree
from sklearn.dummy import DummyClassifier, DummyRegressor

from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.program import Answer, Head, NotCompiled, Tree
from serving.runtimes.base import Want

#: Nodes that one session may hold, counted once per class.
MOST_NODES = 1_000_000
#: Rows for one call of the session: beyond some fifty it takes another path, which is slower per row.
_ROWS = 32

Finish = Callable[[np.ndarray, Want], Answer]
Grown = tuple[list[tuple[Tree, int]], int, Finish]


class Ensemble:
    """Sums of leaves per target, then what the library makes of them."""

    engine = "onnxruntime"

    def __init__(self, model: Any, *, singles: bool) -> None:
        """`singles`: the library rounds the input to float32 before it compares. Raises NotCompiled."""
        try:
            from serving.runtimes.accelerated.session import tree_session
        except ImportError as error:
            raise NotCompiled(f"{error.name} is not installed: install the extra accelerate") from error
        self._model = model
        planted, targets, self._finish = _GROW[type(model)](model)
        if sum(len(grown.left) for grown, _ in planted) > MOST_NODES:
            raise NotCompiled(f"it has more than {MOST_NODES} nodes, counted once per class")
        self._sums = tree_session(planted, targets, model.n_features_in_)
        self._singles = singles

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Labels, and probabilities of classifiers, whatever is wanted: both follow from the same sums."""
        return self._finish(self._summed(x), want)

    def scores(self, x: np.ndarray) -> np.ndarray:
        """The sums where the library calls them a decision function, else probabilities."""
        sums = self._summed(x)
        if hasattr(self._model, "decision_function"):
            return sums.ravel() if sums.shape[1] == 1 else sums
        _, table = self._finish(sums, Want.PROBABILITIES)
        assert table is not None
        return table[:, 1] if table.shape[1] == 2 else table

    def _summed(self, x: np.ndarray) -> np.ndarray:
        x = np.ascontiguousarray(x.astype(np.float32) if self._singles else x, np.float64)
        if len(x) <= _ROWS:
            return self._sums(x)
        return np.concatenate([self._sums(x[i : i + _ROWS]) for i in range(0, len(x), _ROWS)])

    def trees(self) -> list[Tree]:
        """Read anew: they are wanted once, at the check."""
        planted, _, _ = _GROW[type(self._model)](self._model)
        return list({id(grown.left): grown for grown, _ in planted}.values())


def _of_library(nodes: Any, values: np.ndarray) -> Tree:
    """A tree of scikit-learn's `_tree.Tree`."""
    return Tree(
        nodes.children_left, nodes.children_right, nodes.feature, nodes.threshold,
        nodes.missing_go_to_left.astype(bool), np.ascontiguousarray(values, np.float64),
    )  # fmt: skip


def _of_histograms(nodes: np.ndarray, values: np.ndarray) -> Tree:
    """A tree of the histogram-based ensembles: a structured array of nodes."""
    leaf = nodes["is_leaf"].astype(bool)
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    missing = nodes["missing_go_to_left"].astype(bool)
    feature = nodes["feature_idx"].astype(np.int64)
    return Tree(left, right, feature, nodes["num_threshold"], missing, values)


def _constant(values: np.ndarray) -> list[tuple[Tree, int]]:
    """Trees of one leaf each, so that the sums begin with these values."""
    none, off = np.array([-1]), np.array([False])
    return [
        (Tree(none, none, np.array([0]), np.zeros(1), off, np.array([[value]])), target)
        for target, value in enumerate(values)
    ]


def _per_class(grown: Iterable[Tree], classes: int) -> list[tuple[Tree, int]]:
    """Every tree once per class: a leaf of ONNX adds to one target."""
    return [(replace(one, values=one.values[:, [c]]), c) for one in grown for c in range(classes)]


def _members(model: Any) -> list[Any]:
    """The fitted trees of a forest, or the one tree itself. Raises NotCompiled for several targets."""
    members = list(getattr(model, "estimators_", [model]))
    if model.n_outputs_ != 1 or any(type(member) not in _SINGLE for member in members):
        raise NotCompiled(
            "an ensemble of several targets, or of trees that are not scikit-learn's own, is not compiled"
        )
    return members


def _classifier(model: Any) -> Grown:
    members, classes = _members(model), model.classes_

    def finish(sums: np.ndarray, want: Want) -> Answer:
        sums /= len(members)
        return classes.take(sums.argmax(axis=1)), sums

    def finish_votes(votes: np.ndarray, want: Want) -> Answer:
        return finish(np.column_stack([len(members) - votes, votes]), want)

    grown = [_of_library(member.tree_, member.tree_.value[:, 0, :]) for member in members]
    if len(classes) == 2 and all(_votes(one) for one in grown):
        return [(replace(one, values=one.values[:, 1:]), 0) for one in grown], 1, finish_votes
    return _per_class(grown, len(classes)), len(classes), finish


def _votes(grown: Tree) -> bool:
    """Whether every leaf is all for one class: then the votes of one class are whole numbers, and tell the other's."""
    return bool(np.isin(grown.values[grown.left < 0], (0.0, 1.0)).all())


def _regressor(model: Any) -> Grown:
    members = _members(model)
    planted = [(_of_library(member.tree_, member.tree_.value[:, 0, :1]), 0) for member in members]
    return planted, 1, lambda sums, want: (sums[:, 0] / len(members), None)


def _boosted(model: Any) -> list[tuple[Tree, int]]:
    """Gradient boosting: the starting value, then each stage's trees, scaled."""
    if type(model.init_) not in (str, DummyClassifier, DummyRegressor):
        raise NotCompiled("gradient boosting that begins with another model is not compiled")
    start = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))[0]
    stages = [
        (_of_library(member.tree_, model.learning_rate * member.tree_.value[:, 0, :1]), target)
        for stage in model.estimators_
        for target, member in enumerate(stage)
    ]
    return _constant(start) + stages


def _boosted_classifier(model: Any) -> Grown:
    classes, loss, targets = model.classes_, model._loss, model.estimators_.shape[1]

    def finish(sums: np.ndarray, want: Want) -> Answer:
        chosen = (sums.ravel() >= 0).view(np.int8) if targets == 1 else sums.argmax(axis=1)
        return classes.take(chosen), loss.predict_proba(sums) if Want.PROBABILITIES in want else None

    return _boosted(model), targets, finish


def _boosted_regressor(model: Any) -> Grown:
    return _boosted(model), 1, lambda sums, want: (sums[:, 0], None)


def _histograms(model: Any) -> list[tuple[Tree, int]]:
    if model.is_categorical_ is not None:
        raise NotCompiled("histogram-based boosting with categories is not compiled")
    stages = [
        (_of_histograms(predictor.nodes, predictor.nodes["value"].astype(np.float64)[:, None]), target)
        for stage in model._predictors
        for target, predictor in enumerate(stage)
    ]
    return _constant(np.ravel(model._baseline_prediction)) + stages


def _histogram_classifier(model: Any) -> Grown:
    classes, loss, targets = model.classes_, model._loss, model.n_trees_per_iteration_

    def finish(sums: np.ndarray, want: Want) -> Answer:
        chosen = (sums.ravel() > 0).view(np.int8) if targets == 1 else sums.argmax(axis=1)
        table = loss.predict_proba(np.asfortranarray(sums)) if Want.PROBABILITIES in want else None
        return classes.take(chosen), table

    return _histograms(model), targets, finish


def _histogram_regressor(model: Any) -> Grown:
    inverse = model._loss.link.inverse
    return _histograms(model), 1, lambda sums, want: (inverse(sums.ravel()), None)


_SINGLE = {
    tree.DecisionTreeClassifier: _classifier,
    tree.ExtraTreeClassifier: _classifier,
    tree.DecisionTreeRegressor: _regressor,
    tree.ExtraTreeRegressor: _regressor,
}
_GROW: dict[type, Callable[[Any], Grown]] = {
    **_SINGLE,
    ensemble.RandomForestClassifier: _classifier,
    ensemble.ExtraTreesClassifier: _classifier,
    ensemble.RandomForestRegressor: _regressor,
    ensemble.ExtraTreesRegressor: _regressor,
    ensemble.GradientBoostingClassifier: _boosted_classifier,
    ensemble.GradientBoostingRegressor: _boosted_regressor,
    ensemble.HistGradientBoostingClassifier: _histogram_classifier,
    ensemble.HistGradientBoostingRegressor: _histogram_regressor,
}
_DOUBLES = (ensemble.HistGradientBoostingClassifier, ensemble.HistGradientBoostingRegressor)


def _ensemble(model: Any, layout: Layout) -> Head:
    return Ensemble(model, singles=type(model) not in _DOUBLES)


HEADS: dict[type, Callable[[Any, Layout], Head]] = dict.fromkeys(_GROW, _ensemble)
