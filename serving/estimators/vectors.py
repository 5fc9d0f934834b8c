"""Estimators that compare rows with rows that they keep: neighbours, support vectors, centres."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, TypeGuard

import numpy as np
import scipy.sparse

from serving.estimators.trees import width_of

#: Parameters of metrics; others are shortcuts for norms that nobody compares with the rows.
_METRIC_PARAMETERS = {"p", "w", "V", "VI"}


def neighbours(estimator: Any) -> Iterator[str]:
    """Rows, a tree over them, and labels of them."""
    held = vars(estimator)
    if not {"_fit_method", "_fit_X", "_tree"} & set(held):
        return
    rows, width, method, tree = held.get("_fit_X"), width_of(estimator), held.get("_fit_method"), held.get("_tree")
    if not _table(rows) or rows.shape[1] != width or rows.shape[0] != held.get("n_samples_fit_"):
        yield "neighbours keep other rows than they say"
        return
    if method not in ("brute", "kd_tree", "ball_tree") or (method != "brute" and not _is_space(tree, rows.shape)):
        yield "neighbours have another tree than they say"
    yield from _metric(held)
    if "classes_" in held:
        yield from _labels(held, rows.shape[0])


def _metric(held: dict[str, Any]) -> Iterator[str]:
    names = [held.get(key, "") for key in ("metric", "effective_metric_", "algorithm")]
    weights = held.get("weights")
    if not all(isinstance(name, str) for name in names) or not isinstance(weights, str | None):
        yield "neighbours have a metric without a name"
    for key in ("metric_params", "effective_metric_params_"):
        said = held.get(key) or {}
        if not isinstance(said, dict) or not set(said) <= _METRIC_PARAMETERS:
            yield "neighbours have parameters that are none of a metric"


def _labels(held: dict[str, Any], rows: int) -> Iterator[str]:
    """Compiled code counts votes at the place that the label of each neighbour says."""
    labels, classes = held.get("_y"), held["classes_"]
    several = held.get("outputs_2d_")
    lists = classes if several else [classes]
    if not (isinstance(labels, np.ndarray) and labels.dtype.kind in "iu" and labels.shape[:1] == (rows,)):
        yield "neighbours have no labels"
        return
    columns = labels.reshape(rows, -1).T
    if len(columns) != len(lists) or any(c.min() < 0 or c.max() >= len(k) for c, k in zip(columns, lists, strict=True)):
        yield "neighbours have labels of classes that are not there"
    asked = held.get("n_neighbors")
    if asked is not None and not (isinstance(asked, int) and 0 < asked <= rows):
        yield "more neighbours are asked for than there are"


def density(estimator: Any) -> Iterator[str]:
    """A tree over the rows; it looks at the width itself."""
    if "tree_" in vars(estimator) and not _is_space(vars(estimator)["tree_"], None):
        yield "a density has no tree of neighbours"


def _is_space(tree: Any, shape: tuple[int, ...] | None) -> bool:
    names = ("KDTree", "KDTree64", "BallTree", "BallTree64")
    return type(tree).__name__ in names and (shape is None or np.asarray(tree.data).shape == shape)


def support_vectors(estimator: Any) -> Iterator[str]:
    """libsvm is given pointers; nothing there says how long anything is."""
    held = vars(estimator)
    if "support_vectors_" not in held and "_n_support" not in held:
        return
    vectors, counts, dual = held.get("support_vectors_"), held.get("_n_support"), held.get("_dual_coef_")
    kernel, sparse = held.get("kernel"), held.get("_sparse")
    if not (_table(vectors) and _vector(counts, "i") and _table(dual) and isinstance(kernel, str)):
        yield "support vectors have no form, or a kernel without a name"
        return
    width = width_of(estimator)
    if scipy.sparse.issparse(vectors) != bool(sparse) or scipy.sparse.issparse(dual) != bool(sparse):
        yield "support vectors are sparse in part"
    if sparse and not vectors.format == dual.format == "csr":
        yield "sparse support vectors are not in rows"
    if width is None or (kernel != "precomputed" and vectors.shape[1] != width):
        yield "support vectors have other columns than their estimator"
    if kernel == "precomputed" and (sparse or not _precomputed(held)):
        yield "support vectors are not where they say"
    yield from _numbers(held, counts, dual, _is_classifier(estimator))


def _is_classifier(estimator: Any) -> bool:
    return type(estimator).__name__ in ("SVC", "NuSVC")


def _numbers(held: dict[str, Any], counts: np.ndarray, dual: Any, classifies: bool) -> Iterator[str]:
    support, constants = held.get("support_"), held.get("_intercept_")
    total = int(counts.sum()) if classifies else int(counts[:1].sum())
    classes = len(counts) if classifies else 2
    pairs = classes * (classes - 1) // 2
    apart = held["kernel"] == "precomputed"  # the vectors are the caller's columns
    rows = len(support) if apart and _vector(support, "i") else held["support_vectors_"].shape[0]
    counted = (counts >= 0).all() and total == rows and (rows > 0 or not classifies)
    if not counted or len(counts) != classes or classes < 2 or not _vector(support, "i") or support.size != rows:
        yield "there are other support vectors than their counts say"
    full = not scipy.sparse.issparse(dual) or dual.nnz == dual.shape[0] * dual.shape[1]
    if dual.shape != (classes - 1, rows) or not full or not _vector(constants, "f") or constants.size != pairs:
        yield "support vectors have other coefficients than classes"
    for key in ("_probA", "_probB"):
        sizes = (pairs,) if held.get("_effective_probability") else (0, pairs)
        found = held.get(key)
        if not _vector(found, "f") or found.size not in sizes:
            yield "support vectors have other probabilities than classes"
    if classifies and len(held.get("classes_", ())) != classes:
        yield "support vectors have other classes than counts"


def _precomputed(held: dict[str, Any]) -> bool:
    support, shape = held.get("support_"), held.get("shape_fit_")
    return (
        _vector(support, "i") and isinstance(shape, tuple) and all(isinstance(n, int) for n in shape)
        and bool((support >= 0).all() and (support < shape[0]).all())
    )  # fmt: skip


def centres(estimator: Any) -> Iterator[str]:
    """Compiled code multiplies rows with centres that are as wide as it believes."""
    held, width = vars(estimator), width_of(estimator)
    if "cluster_centers_" not in held:
        return
    middle = held["cluster_centers_"]
    if not (_table(middle) and not scipy.sparse.issparse(middle) and middle.shape[1] == width and middle.shape[0] > 0):
        yield "centres have other columns than their estimator"
    threads, most = held.get("_n_threads", 1), os.cpu_count() or 1
    if not isinstance(threads, int):
        yield "a number of threads is none"
    else:
        estimator._n_threads = max(1, min(threads, most))  # of the machine that trained; it says nothing of the answer
    if "_bisecting_tree" in held:
        yield from _halves(held["_bisecting_tree"], width)


def _halves(top: Any, width: int | None) -> Iterator[str]:
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        middle = getattr(node, "center", None)
        if type(node).__name__ != "_BisectingTree" or not _vector(middle, "f") or middle.shape != (width,):
            yield "centres of halves have other columns than their estimator"
            return
        waiting += [node.left, node.right] if hasattr(node, "left") else []


def _table(data: Any) -> TypeGuard[Any]:
    """Whether it is a matrix of numbers."""
    known = isinstance(data, np.ndarray) or scipy.sparse.issparse(data)
    return known and data.ndim == 2 and data.dtype.kind in "biuf"


def _vector(data: Any, kinds: str) -> TypeGuard[np.ndarray]:
    return isinstance(data, np.ndarray) and data.ndim == 1 and data.dtype.kind in kinds
