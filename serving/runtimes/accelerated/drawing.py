"""The rows on which a program is compared with the model: around the example, across its thresholds, with values missing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from serving.runtimes.accelerated.layout import Levels
from serving.runtimes.accelerated.program import Tree
from serving.schema import FLOATS, INTEGERS, InputSchema

Rows = tuple[np.ndarray, ...]
_HALVINGS = 80


class Domain:
    """The inputs that a signature admits, as matrices of float64 and as the arrays that a runtime gets."""

    def __init__(self, schema: InputSchema, example: np.ndarray, levels: Sequence[Levels] = ()) -> None:
        """`example` `[n, k]`, strings by their codes; `levels`: of each column, or none for numbers."""
        self._schema, self._levels = schema, levels or [Levels(strings=False)] * example.shape[1]
        self.example = example.astype(np.float64)
        optional = [not column.required for column in schema.columns]
        #: which columns may be missing; a tensor's may not by contract, and are tried all the same
        self.optional = np.array(optional or [True] * self.example.shape[1])

    def arrays(self, matrix: np.ndarray) -> Rows:
        """The matrix as a request would bring it: whole numbers for integer columns, values that encoders know."""
        if self._schema.tensors:
            return (matrix.astype(self._schema.tensors[0].dtype),)
        drawn = [levels.drawn(matrix[:, i]) for i, levels in enumerate(self._levels)]
        if self._schema.matrix is not None:
            return (np.column_stack(drawn).astype(self._schema.matrix),)
        return tuple(self._column(i, column) for i, column in enumerate(drawn))

    def _column(self, index: int, values: np.ndarray) -> np.ndarray:
        column = self._schema.columns[index]
        if column.type not in INTEGERS:
            return values if values.dtype == object else values.astype(FLOATS[column.type])
        bounds = np.iinfo(INTEGERS[column.type])
        whole: np.ndarray = np.clip(np.rint(values), max(bounds.min, -(2.0**53)), min(bounds.max, 2.0**53))
        return whole.astype(bounds.dtype) if column.required else whole

    def around(self, rows: int, random: np.random.Generator) -> np.ndarray:
        """Rows `[rows, k]` near the example and far from it: noise of every size from a thousandth to a thousandfold."""
        base = self.example[random.integers(0, len(self.example), rows)]
        size = np.maximum(np.abs(base), 1.0) * 10 ** random.uniform(-3, 3, base.shape)
        return base + np.where(random.random(base.shape) < 0.3, 0.0, size * random.normal(size=base.shape))


def with_missing(matrix: np.ndarray, optional: np.ndarray | np.bool_, random: np.random.Generator) -> np.ndarray:
    """The rows with a third of the values that may be missing gone."""
    gone = (random.random(matrix.shape) < 1 / 3) & optional
    return np.where(gone, np.nan, matrix)


def one_column_changed(a: np.ndarray, b: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`a` with one column of each row taken from `b`."""
    at = np.arange(len(a)), random.integers(0, a.shape[1], len(a))
    changed = a.copy()
    changed[at] = b[at]
    return changed


def crossings(a: np.ndarray, b: np.ndarray, answer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Rows on both sides of where the answer changes between `a` and `b`, as near as numbers allow: bisection, all pairs
    at once. Pairs with the same answer are left out. `answer` gives `[n]` or `[n, m]`."""
    apart = _differ(answer(a), answer(b))
    a, b = a[apart], b[apart]
    if not len(a):
        return a
    here = answer(a)
    for _ in range(_HALVINGS):
        middle = a + (b - a) / 2
        if ((middle == a) | (middle == b)).all():
            break
        beyond = _differ(answer(middle), here)[:, None]
        a, b = np.where(beyond, a, middle), np.where(beyond, middle, b)
    return np.concatenate([a, b])


def _differ(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    differ: np.ndarray = (a != b).reshape(len(a), -1).any(axis=1)
    return differ


def threshold_rows(trees: Sequence[Tree], base: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """For one inner node after another, in random order: rows `[m, k]` that come to the node with values just below, at
    and just above its threshold, in double and in single precision, and missing."""
    nodes = [(tree, node) for tree in trees for node in np.flatnonzero(tree.left >= 0).tolist()]
    parents = {id(tree): _parents(tree) for tree in trees}
    for at in random.permutation(len(nodes)):
        tree, node = nodes[at]
        row = _led_to(tree, node, parents[id(tree)], base[random.integers(0, len(base))])
        beside = _beside(float(tree.threshold[node]))
        rows = np.repeat(row[None], len(beside), axis=0)
        rows[:, tree.feature[node]] = beside
        yield rows


def _parents(tree: Tree) -> np.ndarray:
    parents = np.full(len(tree.left), -1)
    inner = np.flatnonzero(tree.left >= 0)
    parents[tree.left[inner]] = parents[tree.right[inner]] = inner
    return parents


def _led_to(tree: Tree, node: int, parents: np.ndarray, row: np.ndarray) -> np.ndarray:
    """The row, changed where it would leave the path from the root to the node."""
    low, high = np.full(len(row), -np.inf), np.full(len(row), np.inf)
    while (above := int(parents[node])) >= 0:
        feature, threshold = tree.feature[above], tree.threshold[above]
        if tree.left[above] == node:
            high[feature] = min(high[feature], threshold)
        else:
            low[feature] = max(low[feature], threshold)
        node = above
    with np.errstate(invalid="ignore"):  # infinity less infinity, where it is not chosen
        inside = np.where(np.isinf(low), high - 1, np.where(np.isinf(high), low + 1, low / 2 + high / 2))
    led = np.where((row > low) & (row <= high), row, inside)
    return np.where(np.isinf(led), np.nan, led)  # beyond an infinite threshold only missing values go


def _beside(threshold: float) -> list[float]:
    """The threshold and its neighbours among doubles and among floats, and a missing value. A threshold may be infinite:
    it parts missing values from all others."""
    if np.isinf(threshold):
        return [0.0, np.nan]
    single = np.float32(threshold)
    singles = (np.nextafter(single, np.float32(-np.inf)), single, np.nextafter(single, np.float32(np.inf)))
    doubles = (np.nextafter(threshold, -np.inf), threshold, np.nextafter(threshold, np.inf))
    return [*map(float, doubles), *map(float, singles), np.nan]
