"""Where in a skops file each thing may stand. Read from what skops understood of it, before any of it is made.

skops asks only whether a type's name is trusted. Here also: which of skops's ways of making an object is used for it (one
calls any trusted name with arguments from the file), whose attribute it is (a compiled tree is an estimator's `tree_`, not a
step of a pipeline, where nobody would check the width of its rows), and that nothing holds itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from serving.estimators.names import ESTIMATORS
from serving.trusted_types import SKLEARN_TYPES

_SCALARS = frozenset(
    f"numpy.{name}"
    for name in [
        "bool",
        "bool_",
        "int8",
        "int16",
        "int32",
        "int64",
        "uint8",
        "uint16",
        "uint32",
        "uint64",
        "float16",
        "float32",
        "float64",
        "str_",
        "bytes_",
        "longlong",
        "ulonglong",
        "longdouble",
        "complex64",
        "complex128",
    ]
)
_PRIMITIVES = frozenset(f"builtins.{name}" for name in ("bool", "int", "float", "str", "bytes", "NoneType"))
_SPARSE = frozenset(
    f"scipy.sparse.{module}.{name}"
    for module, name in (
        ("_csr", "csr_matrix"), ("_csr", "csr_array"), ("_csc", "csc_matrix"), ("_csc", "csc_array")
    )
)  # fmt: skip

#: What each of skops's loaders may make without regard to where; the others are below, or not there.
_PLAIN: dict[str, frozenset[str] | None] = {
    "JsonNode": None,
    "DictNode": frozenset({"builtins.dict", "collections.OrderedDict", "sklearn.utils._bunch.Bunch"}),
    "ListNode": frozenset({"builtins.list"}),
    "SetNode": frozenset({"builtins.set"}),
    "TupleNode": frozenset({"builtins.tuple", "sklearn.impute._iterative._ImputerTriplet"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "BytesNode": frozenset({"builtins.bytes"}),
    "NdArrayNode": frozenset({"numpy.ndarray"}) | _SCALARS,
    "MaskedArrayNode": frozenset({"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"}),
    "DTypeNode": frozenset({"numpy.dtype"}),
    "SparseMatrixNode": _SPARSE,
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
}
_LOSSES = frozenset({"sklearn._loss._loss", "sklearn.linear_model._sgd_fast"})
_COMPUTES = "FunctionTransformer.func FunctionTransformer.inverse_func TransformedTargetRegressor.func TransformedTargetRegressor.inverse_func"
_SELECTS = (
    "SelectKBest.score_func SelectPercentile.score_func SelectFpr.score_func SelectFdr.score_func SelectFwe.score_func "
    "GenericUnivariateSelect.score_func"
)
_HISTOGRAMS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_PROCESSES = ("GaussianProcessRegressor", "GaussianProcessClassifier", "_BinaryGaussianProcessClassifierLaplace")
_KERNELS = (
    "*.k1 *.k2 *.kernels Exponentiation.kernel KernelRidge.kernel "
    + " ".join(f"{owner}.{name}" for owner in _PROCESSES for name in ("kernel", "kernel_"))
)  # fmt: skip
_TREES = "*._tree KernelDensity.tree_"

#: Functions, what can be called and what compiled code follows: only where scikit-learn itself puts it, by module or name.
_PLACES: dict[str, str] = {
    "sklearn.tree._tree": "*.tree_",
    "sklearn.ensemble._hist_gradient_boosting.predictor": " ".join(f"{owner}._predictors" for owner in _HISTOGRAMS),
    "sklearn.ensemble._hist_gradient_boosting.binning": " ".join(f"{owner}._bin_mapper" for owner in _HISTOGRAMS),
    "numpy.random._generator": " ".join(f"{owner}._feature_subsample_rng" for owner in _HISTOGRAMS),
    "sklearn.neighbors._ball_tree": _TREES,
    "sklearn.neighbors._kd_tree": _TREES,
    "sklearn.metrics._dist_metrics": "KDTree. KDTree64. BallTree. BallTree64.",
    "sklearn._loss._loss": "*.closs *._loss_function_",
    "sklearn._loss.loss": "*._loss *._base_loss",
    "sklearn.linear_model._sgd_fast": "*._loss_function_",
    "sklearn.gaussian_process.kernels": _KERNELS,
    "sklearn.metrics._scorer": "*.scorer_ *.scoring *._scorer *._curve_scorer *.owner",
    "sklearn.compose._column_transformer.make_column_selector": "ColumnTransformer.transformers",
    "sklearn.feature_selection._univariate_selection": _SELECTS,
    "sklearn.feature_selection._mutual_info": _SELECTS,
    "sklearn.cluster._kmeans": "BisectingKMeans._kmeans_single",
    "numpy.mean": f"FeatureAgglomeration.pooling_func {_COMPUTES}",
    "sklearn.utils.validation": _COMPUTES,
    "functools.partial": f"{_COMPUTES} {_SELECTS}",
}
_SCORES = "_Scorer._score_func _CurveScorer._score_func"
#: Attributes that name types.
_TYPED = frozenset({"dtype", "dtype_include", "dtype_exclude", "func", "inverse_func", "kw_args", "inv_kw_args"})
#: Arguments of what computes: no arrays, or a function could be told to write its answer into the model.
_NO_ARRAYS = frozenset({"func", "inverse_func", "kw_args", "inv_kw_args", "score_func"})
_MAKERS = {"TreeNode", "LossNode", "RandomGeneratorNode", "ObjectNode"}


class Layout:
    """What a file holds, once each: arrays, what is compiled, and objects, inner ones first."""

    def __init__(self) -> None:
        self.arrays: list[tuple[Any, str]] = []
        self.native: list[tuple[Any, str]] = []
        self.objects: list[tuple[Any, str]] = []


def survey(root: Any, layout: Layout) -> Iterator[str]:
    """Walks a tree of skops's nodes; the reasons against it, and the layout filled in."""
    if full_name(root) not in ESTIMATORS or kind_of(root) != "ObjectNode":
        yield "it is no estimator"
        return
    yield from _Walk(layout).of(root)


def full_name(node: Any) -> str:
    """`module.Class` of what a node would make."""
    return f"{node.module_name}.{node.class_name}"


def kind_of(node: Any) -> str:
    """Which of skops's loaders this is; those of its older formats are none that we know."""
    kind = type(node)
    return kind.__name__ if kind.__module__.startswith("skops.io._") else f"old {kind.__name__}"


class Parts:
    """How many parts a file describes, if one that stands in two places counts twice: what is written once and meant twice,
    forty times over, would be walked for ever. `inside` says that something holds itself."""

    def __init__(self) -> None:
        self._counted: dict[int, int] = {}
        self.inside = False

    def count(self, node: Any) -> int:
        """The parts of a node, itself too."""
        if kind_of(node) == "JsonNode":
            return 1
        if (known := self._counted.get(id(node))) is not None:
            self.inside |= not known
            return known
        self._counted[id(node)] = 0  # while it is open
        parts = (part for child in node.children.values() for part in _nodes(child))
        total = self._counted[id(node)] = 1 + sum(map(self.count, parts))
        return total


class _Walk:
    """A depth-first walk. A part that stands in two places is looked at in both."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._known: set[tuple[int, str, str]] = set()
        self._seen: set[int] = set()
        self.reasons: list[str] = []

    def of(self, node: Any, owner: str = "", attribute: str = "") -> list[str]:
        """The reasons against a node and its parts, none of which holds itself."""
        key = (id(node), owner, attribute)
        if kind_of(node) == "JsonNode" or key in self._known:
            return self.reasons
        self._known.add(key)
        problem = _problem(node, owner, attribute)
        if problem is not None or self.reasons:
            self.reasons += [problem] if problem else []
            return self.reasons
        for child in _children(node, owner, attribute):
            self.of(*child)
        self._note(node, owner)
        return self.reasons

    def _note(self, node: Any, owner: str) -> None:
        if id(node) in self._seen:
            return
        self._seen.add(id(node))
        kind = kind_of(node)
        if kind in ("NdArrayNode", "SparseMatrixNode", "MaskedArrayNode"):
            self._layout.arrays.append((node, owner))
        elif kind in ("TreeNode", "LossNode", "RandomGeneratorNode", "RandomStateNode") or _compiled(node):
            self._layout.native.append((node, owner))
        elif kind == "ObjectNode":
            self._layout.objects.append((node, owner))


def _compiled(node: Any) -> bool:
    return kind_of(node) == "ObjectNode" and node.module_name in (
        "sklearn.neighbors._kd_tree", "sklearn.neighbors._ball_tree", "sklearn.metrics._dist_metrics"
    )  # fmt: skip


def _children(node: Any, owner: str, attribute: str) -> Iterator[tuple[Any, str, str]]:
    """A node's parts, each with the object and the attribute that it is a part of."""
    kind = kind_of(node)
    if kind == "JsonNode":
        return
    if kind in _MAKERS or kind == "RandomStateNode":
        owner, attribute = node.class_name, ""
    for name, child in node.children.items():
        if kind == "ObjectNode" and name == "attrs" and child is not None and kind_of(child) == "DictNode":
            yield child.key_types, owner, "<keys>"
            yield from ((part, owner, str(key)) for key, part in child.content.items())
        elif kind == "DictNode" and name == "key_types":
            yield child, owner, "<keys>"
        elif kind not in ("TreeNode", "LossNode") or name != "constructor":
            yield from ((part, owner, attribute) for part in _nodes(child))


def _nodes(child: Any) -> Iterator[Any]:
    parts = child if isinstance(child, list | tuple) else child.values() if isinstance(child, dict) else (child,)
    return (part for part in parts if hasattr(part, "module_name"))


def _problem(node: Any, owner: str, attribute: str) -> str | None:
    name, kind = full_name(node), kind_of(node)
    if kind in _PLAIN:
        allowed = _PLAIN[kind]
        ok = (allowed is None or name in allowed) and not (kind == "NdArrayNode" and attribute in _NO_ARRAYS)
    elif kind == "TypeNode":
        known = name in _PRIMITIVES or name in _SCALARS or name == "numpy.number"
        ok = known and (attribute == "<keys>" or attribute in _TYPED)
    elif kind in ("FunctionNode", "PartialNode"):
        ok = _stands(owner, attribute, _place(node, kind))
    else:
        ok = _made(node, name, kind, owner, attribute)
    return None if ok else f"{name} as {kind.removesuffix('Node').lower()} at {owner or 'the top'}.{attribute}"


def _made(node: Any, name: str, kind: str, owner: str, attribute: str) -> bool:
    """Objects: an estimator within another, or scikit-learn's own where it puts it; each made by its own loader."""
    if kind == "ObjectNode" and name in ESTIMATORS:
        return _plain_state(node) and (not owner or owner in _HOLDERS)
    place = _PLACES.get(name) or _PLACES.get(node.module_name)
    expected = {
        "sklearn.tree._tree": "TreeNode", "numpy.random._generator": "RandomGeneratorNode",
        **dict.fromkeys(_LOSSES, "LossNode"),
    }.get(node.module_name, "ObjectNode")  # fmt: skip
    if kind != expected or (kind == "ObjectNode" and name not in SKLEARN_TYPES):
        return False
    return (_compiled(node) or kind != "ObjectNode" or _plain_state(node)) and _stands(owner, attribute, place or "*")


def _plain_state(node: Any) -> bool:
    """Attributes by name, or none at all."""
    state = node.attrs
    if state is None or kind_of(state) == "JsonNode":
        return state is None or state.content == "null"
    return kind_of(state) == "DictNode" and full_name(state) == "builtins.dict"


def _place(node: Any, kind: str) -> str:
    """Where a function may stand: what computes may be NumPy's and SciPy's, which skops has listed as universal ones."""
    if kind == "PartialNode":
        return _PLACES["functools.partial"]
    if (place := _PLACES.get(full_name(node))) or (place := _PLACES.get(node.module_name)):
        return place
    return _SCORES if node.module_name.startswith("sklearn.metrics.") else _COMPUTES


def _stands(owner: str, attribute: str, places: str) -> bool:
    return places == "*" or f"{owner}.{attribute}" in places.split() or f"*.{attribute}" in places.split()


#: Who may hold an estimator: another one, or one of these.
_HOLDERS = frozenset(name.rpartition(".")[2] for name in ESTIMATORS) | {
    "_CalibratedClassifier", "_BinaryGaussianProcessClassifierLaplace", "_Scorer", "_PassthroughScorer", "_BisectingTree"
}  # fmt: skip
