"""Estimators made of trees: each tree is given rows as wide as it was grown for, and ensembles answer as many columns as they
have trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.estimators.native import branch_problem

_WORDS = 8  # 32 bits each: 256 categories


def width_of(estimator: Any) -> int | None:
    """The number of columns that an estimator takes; without it scikit-learn would not look."""
    said = vars(estimator).get("n_features_in_")
    return said if isinstance(said, int) and not isinstance(said, bool) and 0 < said < 2**31 else None


def decision_tree(estimator: Any) -> Iterator[str]:
    """One tree, which takes rows of the estimator's width."""
    tree = vars(estimator).get("tree_")
    if "tree_" not in vars(estimator):
        return
    if type(tree).__name__ != "Tree" or tree.n_features != width_of(estimator):
        yield "a tree takes other columns than its estimator"


def gradient_boosting(estimator: Any) -> Iterator[str]:
    """Its compiled code reads the trees' memory, and adds to as many columns of the initial answer as there are trees."""
    trees = vars(estimator).get("estimators_")
    if "estimators_" not in vars(estimator):
        return
    if not (isinstance(trees, np.ndarray) and trees.dtype == object and trees.ndim == 2 and trees.size):
        yield "gradient boosting has no trees"
        return
    width = width_of(estimator)
    for tree in trees.flat:
        if type(tree).__name__ != "DecisionTreeRegressor" or "tree_" not in vars(tree) or width_of(tree) != width:
            yield "gradient boosting has trees of different columns, or other estimators"
            return
    yield from _initial(estimator, trees.shape[1], width or 0)


def _initial(estimator: Any, columns: int, width: int) -> Iterator[str]:
    initial = vars(estimator).get("init_")
    if not (initial is None or initial == "zero" or type(initial).__name__ in ("DummyClassifier", "DummyRegressor")):
        yield f"gradient boosting begins with a {type(initial).__name__[:40]}, which cannot be checked"
        return
    for rows in (1, 3):
        try:
            shape = estimator._raw_predict_init(np.zeros((rows, width), np.float32)).shape
        except Exception as error:  # noqa: BLE001  what it holds may fail in any way
            yield f"gradient boosting cannot begin ({type(error).__name__})"
            return
        if shape != (rows, columns):
            yield "gradient boosting begins with another number of columns than it has trees"
            return


def histogram_boosting(estimator: Any) -> Iterator[str]:
    """Its trees are NumPy's arrays of nodes, which compiled code follows; rows come from what prepares the columns."""
    held = vars(estimator)
    if "_predictors" not in held and "_bin_mapper" not in held:
        return
    width, mapper = width_of(estimator), held.get("_bin_mapper")
    if held.get("_in_fit") or width is None or type(mapper).__name__ != "_BinMapper":
        yield "histogram boosting is half trained"
        return
    categorical = vars(mapper).get("is_categorical_")
    if not (isinstance(categorical, np.ndarray) and categorical.shape == (width,) and categorical.dtype.kind in "bu"):
        yield "histogram boosting does not say which columns are categories"
        return
    yield from _preprocessor(held.get("_preprocessor"), width)
    for predictor in (predictor for stage in held.get("_predictors", ()) for predictor in stage):
        problem = _predictor(vars(predictor), categorical != 0)
        if problem is not None:
            yield problem
            return


def _predictor(held: dict[str, Any], categorical: np.ndarray) -> str | None:
    """One tree of histogram boosting; `categorical` is `[columns]`."""
    from sklearn.ensemble._hist_gradient_boosting.common import PREDICTOR_RECORD_DTYPE

    nodes, bits = held.get("nodes"), held.get("raw_left_cat_bitsets")
    if not (isinstance(nodes, np.ndarray) and nodes.dtype == PREDICTOR_RECORD_DTYPE and nodes.ndim == 1 and nodes.size):
        return "the nodes of a tree are none"
    if not (isinstance(bits, np.ndarray) and bits.ndim == 2 and bits.shape[1] == _WORDS and bits.dtype == np.uint32):
        return "the categories of a tree are none"
    leaf = nodes["is_leaf"] != 0
    problem = branch_problem(nodes["left"], nodes["right"], leaf, nodes["feature_idx"], categorical.size)
    if problem is not None:
        return problem
    choosing = nodes[~leaf & (nodes["is_categorical"] != 0)]
    if (choosing["bitset_idx"] >= len(bits)).any() or not categorical[choosing["feature_idx"]].all():
        return "a node of a tree asks for categories that are not there"
    nodes.flags.writeable = bits.flags.writeable = False
    return None


def _preprocessor(preprocessor: Any, width: int) -> Iterator[str]:
    """What it gives the trees must be as wide as they were grown for: categories first, then numbers, each column once."""
    if preprocessor is None:
        return
    held = vars(preprocessor)
    parts, places = held.get("transformers_"), held.get("_transformer_to_input_indices", {})
    kinds = ("OrdinalEncoder", "FunctionTransformer")
    parts = [part for part in parts or () if part[1] != "drop"]
    if type(preprocessor).__name__ != "ColumnTransformer" or width_of(preprocessor) != width or len(parts) != 2:
        yield "what prepares the columns of histogram boosting is not its own"
        return
    taken = np.zeros(width, int)
    for (name, step, mask), kind in zip(parts, kinds, strict=True):
        whole = isinstance(mask, np.ndarray) and mask.dtype == bool and mask.shape == (width,)
        known = type(step).__name__ == kind and _keeps_width(step)
        if not whole or not known or list(np.flatnonzero(mask)) != list(places.get(name, ())):
            yield "what prepares the columns of histogram boosting is not its own"
            return
        taken += mask
    names = held.get("feature_names_in_")
    if (taken != 1).any() or (names is not None and len(set(names)) != width):
        yield "what prepares the columns of histogram boosting leaves some out"


def _keeps_width(step: Any) -> bool:
    """Whether it computes nothing: the mean of the columns would be one column."""
    from sklearn.utils.validation import check_array

    func = getattr(step, "func", None)
    return getattr(func, "func", func) in (None, check_array)
