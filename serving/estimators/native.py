"""What scikit-learn's compiled classes, SciPy's matrices and NumPy's generators are given as their state, before they are made.

Everything here is a plain value when it is looked at: arrays that NumPy reads without pickle, numbers and containers.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import scipy.sparse

from serving.archives import EXPANSION, FREE
from serving.estimators.layout import Layout, full_name, kind_of

_METRICS = "sklearn.metrics._dist_metrics."
#: The metrics that a k-d tree's bounds hold for.
_BOXES = {"EuclideanDistance64", "ManhattanDistance64", "ChebyshevDistance64", "MinkowskiDistance64"}
#: Who has arrays of records.
_RECORDS = {"Tree", "TreePredictor", "KDTree", "KDTree64", "BallTree", "BallTree64", "HDBSCAN"}
_KEY = 624  # of the Mersenne twister


def native_reasons(layout: Layout) -> Iterator[str]:
    """Arrays first: what the others are made of."""
    for node, owner in layout.arrays:
        yield from _array(node, owner)
    for node, _ in layout.native:
        yield from _CHECKS.get(kind_of(node), _object)(node)


def _array(node: Any, owner: str) -> Iterator[str]:
    if kind_of(node) == "SparseMatrixNode":
        yield from _sparse(node)
        return
    made = node.construct()
    if not isinstance(made, np.ndarray | np.generic):
        yield f"an array of {owner} is none"
    elif made.dtype.kind not in "biufcSUmMO" and owner not in _RECORDS:
        yield f"an array of {owner} holds records"
    elif made.size and not made.dtype.itemsize:
        yield f"an array of {owner} has elements without any size"


def _sparse(node: Any) -> Iterator[str]:
    size = node.content.getbuffer().nbytes  # an archive within the archive
    with zipfile.ZipFile(io.BytesIO(node.content.getvalue())) as parts:
        if sum(part.file_size for part in parts.infolist()) > FREE + EXPANSION * size:
            yield "a sparse matrix is far larger than the file"
            return
    made = node.construct()
    if not (scipy.sparse.issparse(made) and made.format in ("csr", "csc") and made.dtype.kind in "biufc"):
        yield "a sparse matrix is neither csr nor csc, of numbers"
        return
    try:
        made.check_format(full_check=True)
    except ValueError:
        yield "the indices of a sparse matrix lie outside of it"


def _tree(node: Any) -> Iterator[str]:
    from sklearn.tree._tree import NODE_DTYPE

    (features, classes, outputs), state = node.args.construct(), node.attrs.construct()
    nodes, values = state["nodes"], state["values"]
    ok = (
        _whole(features, 1) and _whole(outputs, 1) and _whole(state["max_depth"], 0)
        and isinstance(classes, np.ndarray) and classes.shape == (outputs,) and classes.dtype.kind in "iu" and classes.min() >= 1
        and isinstance(nodes, np.ndarray) and nodes.ndim == 1 and nodes.dtype == NODE_DTYPE and nodes.size >= 1
        and state["node_count"] == nodes.size
        and isinstance(values, np.ndarray) and values.dtype == np.float64 and values.shape == (nodes.size, outputs, classes.max())
    )  # fmt: skip
    if not ok:
        yield "a tree's arrays do not fit each other"
        return
    left, right = nodes["left_child"], nodes["right_child"]
    problem = branch_problem(left, right, left == -1, nodes["feature"], features)
    if problem is None and depth_of(left, right, left == -1) > state["max_depth"]:
        problem = "a tree is deeper than it says"
    yield from [problem] if problem else []


def branch_problem(
    left: np.ndarray, right: np.ndarray, leaf: np.ndarray, feature: np.ndarray, features: int
) -> str | None:
    """Each node but the first is the child of one that comes before it, so that every walk ends; features are columns.
    `[nodes]` each."""
    inner = np.flatnonzero(~leaf)
    children = np.concatenate((left[inner], right[inner])).astype(np.int64)
    if (children <= np.concatenate((inner, inner))).any():
        return "a child of a tree's node comes before it"
    if not np.array_equal(np.sort(children), np.arange(1, left.size)):
        return "a child of a tree's node is not there, or has two parents"
    if (feature[inner] < 0).any() or (feature[inner] >= features).any():
        return "a node of a tree asks for a column that is not there"
    return None


def depth_of(left: np.ndarray, right: np.ndarray, leaf: np.ndarray) -> int:
    """How many steps lead to the deepest leaf of a tree without a problem. Doubles its steps: a chain costs no more."""
    inner, above = np.flatnonzero(~leaf), np.zeros(left.size, np.int64)
    above[left[inner]] = inner
    above[right[inner]] = inner
    steps = (np.arange(left.size) > 0).astype(np.int64)
    while above.any():
        steps, above = steps + steps[above], above[above]
    return int(steps.max())


def _space(node: Any) -> Iterator[str]:
    """A k-d or ball tree: `(data, idx_array, node_data, node_bounds, leaf_size, n_levels, n_nodes, …, metric, weights)`."""
    state, metric = _tuple(node, 13), None
    if state is not None:
        metric = node.attrs.content[11]
    if state is None or metric is None or kind_of(metric) != "ObjectNode" or not full_name(metric).startswith(_METRICS):
        yield "a tree of neighbours has no metric, or another form"
        return
    data, order, nodes, bounds, leaf_size, _, count = state[:7]
    if not (_matrix(data) and all(_whole(number, 0) for number in (*state[4:11], leaf_size - 1))):
        yield "a tree of neighbours has no points, or numbers that are none"
        return
    (rows, width), box = data.shape, node.module_name.endswith("_kd_tree")
    if not (
        _of(order, np.intp, (rows,)) and _of(bounds, np.float64, (1 + box, count, width)) and _of(nodes, None, (count,))
    ):
        yield "the arrays of a tree of neighbours do not fit each other"
        return
    yield from _space_values(order, nodes, rows)
    yield from _metric_fits(metric, width, box)
    if state[12] is not None and not _of(state[12], np.float64, (rows,)):
        yield "a tree of neighbours has other weights than points"


def _space_values(order: np.ndarray, nodes: np.ndarray, rows: int) -> Iterator[str]:
    if (order < 0).any() or (order >= rows).any():
        yield "a tree of neighbours names points that are not there"
    if set(nodes.dtype.names or ()) != {"idx_start", "idx_end", "is_leaf", "radius"}:
        yield "the nodes of a tree of neighbours are none"
        return
    start, end = nodes["idx_start"], nodes["idx_end"]
    if (start < 0).any() or (end > rows).any() or (start > end).any():
        yield "a node of a tree of neighbours has points that are not there"
    inner = np.flatnonzero(nodes["is_leaf"] == 0)
    if inner.size and 2 * int(inner[-1]) + 2 >= nodes.size:
        yield "a node of a tree of neighbours has children that are not there"


def _metric_fits(node: Any, width: int, box: bool) -> Iterator[str]:
    name, state = node.class_name, _tuple(node, 3)
    if state is None or (box and name not in _BOXES):
        yield f"{name[:40]} is no metric for its tree"
        return
    _, vector, matrix = state
    need = {"SEuclideanDistance64": (width,), "MahalanobisDistance64": (width, width)}
    ok = isinstance(vector, np.ndarray) and vector.ndim == 1 and isinstance(matrix, np.ndarray) and matrix.ndim == 2
    if ok and name == "SEuclideanDistance64":
        ok = vector.shape == need[name]
    elif ok and name == "MahalanobisDistance64":
        ok = matrix.shape == need[name]
    elif ok and name == "MinkowskiDistance64":
        ok = vector.shape in ((0,), (width,))
    if not ok or (name == "HaversineDistance64" and width != 2):
        yield f"the weights of {name[:40]} do not fit its points"


def _object(node: Any) -> Iterator[str]:
    if full_name(node).startswith(_METRICS):
        if _tuple(node, 3) is None:
            yield f"{node.class_name[:40]} has another form"
    else:
        yield from _space(node)


def _loss(node: Any) -> Iterator[str]:
    """A compiled loss holds one or two numbers, and is used in training only."""
    numbers = node.args.construct()
    if not (isinstance(numbers, tuple) and len(numbers) <= 2 and all(isinstance(n, int | float) for n in numbers)):
        yield "a loss is made of anything but numbers"
    if node.attrs.construct():
        yield "a loss has a state"


def _twister(node: Any) -> Iterator[str]:
    said = node.content.construct()
    inner = said["state"]
    ok = said["bit_generator"] == "MT19937" and _whole(inner["pos"], 0) and inner["pos"] <= _KEY
    if not ok or not _of(inner["key"], np.uint32, (_KEY,)):
        yield "a generator of random numbers points outside of its numbers"


def _generator(node: Any) -> Iterator[str]:
    state, seeds = node.bit_generator_state.construct(), node.seed_seq_state.construct()
    if state.get("bit_generator") != "PCG64":
        yield "a generator of random numbers is not of the kind that scikit-learn makes"
    if set(seeds) != {"entropy", "spawn_key", "pool_size", "n_children_spawned"} or seeds["pool_size"] != 4:
        yield "the seeds of a generator have another form"


def _tuple(node: Any, length: int) -> tuple[Any, ...] | None:
    """The state of a compiled object, a tuple of plain values; metrics are left for their own check."""
    attrs = node.attrs
    if attrs is None or kind_of(attrs) != "TupleNode" or len(attrs.content) != length:
        return None
    return tuple(part if kind_of(part) == "ObjectNode" else part.construct() for part in attrs.content)


def _whole(number: Any, least: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and least <= number < 2**31


def _of(array: Any, dtype: Any, shape: tuple[int, ...]) -> bool:
    return isinstance(array, np.ndarray) and array.shape == shape and (dtype is None or array.dtype == dtype)


def _matrix(data: Any) -> bool:
    return isinstance(data, np.ndarray) and data.ndim == 2 and data.dtype == np.float64 and data.size > 0


_CHECKS: dict[str, Callable[[Any], Iterator[str]]] = {
    "TreeNode": _tree, "LossNode": _loss, "RandomStateNode": _twister, "RandomGeneratorNode": _generator,
}  # fmt: skip
