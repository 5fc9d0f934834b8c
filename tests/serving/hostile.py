"""Estimators whose arrays lie, and the process that finds out what they do to whoever serves them.

Each is an honest one with one thing changed, as an attacker would change it in the file.
"""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import skops.io
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from sklearn.base import BaseEstimator
from sklearn.cluster import KMeans
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
)
from sklearn.feature_extraction.text import CountVectorizer, HashingVectorizer
from sklearn.kernel_approximation import AdditiveChi2Sampler, PolynomialCountSketch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KernelDensity, KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC, SVR
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.tree._tree import Tree

FAR = 2**30
RNG = np.random.default_rng(0)
X = RNG.random((80, 3))
LABELS, THREE, NUMBERS = (X[:, 0] > 0.5).astype(int), np.digitize(X[:, 0], [0.3, 0.6]), X[:, 1] + 1
TEXTS = ["aa bb cc", "bb cc dd"] * 40
ROWS = RNG.random((64, 3))
SIGNATURE = ModelSignature(Schema([TensorSpec(np.dtype("float64"), (-1, 3))]))


def grown(change: Callable[[dict[str, Any]], None], model: Any = None, width: int = 3) -> Any:
    """A tree whose state was changed."""
    model = model or DecisionTreeRegressor(random_state=0).fit(X, NUMBERS)
    state = model.tree_.__getstate__()
    state["nodes"] = state["nodes"].copy()
    change(state)
    model.tree_ = Tree(width, np.array([1]), 1)
    model.tree_.__setstate__(state)
    return model


def node(field: str, value: int, at: int = 0) -> Callable[[dict[str, Any]], None]:
    return lambda state: state["nodes"][field].__setitem__(at, value)


def set_on(model: Any, **attributes: Any) -> Any:
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def boosted(**fields: Any) -> Any:
    model = HistGradientBoostingRegressor(max_iter=2, min_samples_leaf=2, random_state=0).fit(X, NUMBERS)
    nodes = model._predictors[0][0].nodes
    for name, value in fields.items():
        nodes[name][0] = value
    return model


def neighbours(place: int, change: Callable[[Any], None], kind: type = KNeighborsRegressor, **more: Any) -> Any:
    """Neighbours whose tree was changed at one place of its state."""
    model = kind(**{"n_neighbors": 3, "leaf_size": 5, "algorithm": "kd_tree", **more}).fit(X, NUMBERS)
    state = [part.copy() if isinstance(part, np.ndarray) else part for part in model._tree.__getstate__()]
    change(state[place])
    model._tree = type(model._tree).__new__(type(model._tree))
    model._tree.__setstate__(tuple(state))
    return model


def replaced(place: int, value: Any, **more: Any) -> Any:
    model = KNeighborsRegressor(n_neighbors=3, leaf_size=5, **{"algorithm": "kd_tree", **more}).fit(X, NUMBERS)
    state = list(model._tree.__getstate__())
    state[place] = value
    model._tree = type(model._tree).__new__(type(model._tree))
    model._tree.__setstate__(tuple(state))
    return model


def weighted(kind: str, parameters: dict[str, Any]) -> Any:
    """A metric of fewer weights than its points have columns."""
    short = KNeighborsRegressor(metric=kind, metric_params=parameters, algorithm="ball_tree").fit(X[:, :1], NUMBERS)
    return replaced(11, short._tree.__getstate__()[11], algorithm="ball_tree")


def sparse_coefficients(index: int) -> Any:
    model = LogisticRegression(l1_ratio=0.5, solver="saga", max_iter=9).fit(X, LABELS).sparsify()
    model.coef_ = scipy.sparse.csr_matrix(np.ones((1, 3)))
    model.coef_.indices[:] = index
    return model


def encoder(**changed: Any) -> Any:
    rows = np.digitize(X, [0.3, 0.6])
    return set_on(OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(rows), **changed)


def other_vocabulary() -> Any:
    words = CountVectorizer().fit(TEXTS)
    model = make_pipeline(words, LogisticRegression()).fit(TEXTS, LABELS)
    words.vocabulary_ = dict.fromkeys(words.vocabulary_, FAR)
    return model


def other_rows(**changed: Any) -> Any:
    return set_on(KNeighborsClassifier(n_neighbors=3, algorithm="brute").fit(X, LABELS), **changed)


def twice(depth: int = 40) -> bytes:
    """A pipeline that holds the one below it twice, and so on: 2⁴⁰ steps in a few kB. skops finds the second by its number."""
    schema, files = unzipped(skops.io.dumps(make_pipeline(StandardScaler(), StandardScaler()).fit(X)))
    inner, steps = None, schema["content"]["content"]["steps"]["content"]
    for level in range(depth):
        if inner is not None:
            steps[0]["content"][1], steps[1]["content"][1] = inner, {"__id__": inner["__id__"]}
        # Each level is an object of its own, with parts of its own.
        inner = json.loads(re.sub(r'"__id__": (-?\d+)', rf'"__id__": \g<1>{level:02}', json.dumps(schema)))
    return zipped(inner | {key: schema[key] for key in ("protocol", "_skops_version")}, files)


def unzipped(file: bytes) -> tuple[Any, dict[str, bytes]]:
    """What a skops file describes, and all its members."""
    with zipfile.ZipFile(io.BytesIO(file)) as archive:
        return json.loads(archive.read("schema.json")), {n: archive.read(n) for n in archive.namelist()}


def zipped(schema: Any, files: dict[str, bytes]) -> bytes:
    """A skops file of another description and the same members."""
    with zipfile.ZipFile(written := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**files, "schema.json": json.dumps(schema).encode()}.items():
            archive.writestr(name, content)
    return written.getvalue()


def generator(pos: int) -> Any:
    random = np.random.RandomState(0)
    state = random.get_state(legacy=False)
    state["state"]["pos"] = pos
    random.set_state(state)
    return set_on(LinearRegression().fit(X, NUMBERS), random_state=random)


def wide_step() -> Any:
    """A pipeline whose step is the compiled tree itself: nobody looks how wide the rows are."""
    wide = np.repeat(X, 500, axis=1)
    tree = DecisionTreeRegressor().fit(wide, NUMBERS)
    return set_on(make_pipeline(StandardScaler().fit(X), LinearRegression()), steps=[("tree", tree.tree_)])


def unlooked() -> Any:
    """A tree over many columns, whose estimator does not say how many it takes."""
    wide = np.zeros((80, 400_000), np.float32)
    wide[:, -1] = X[:, 0]
    tree = DecisionTreeRegressor(random_state=0).fit(wide, NUMBERS)
    del tree.n_features_in_
    return tree


#: What would crash, or spin, or write where it should not: by name.
HOSTILE: dict[str, Callable[[], Any]] = {
    "tree: left child far away": lambda: grown(node("left_child", FAR)),
    "tree: right child far away": lambda: grown(node("right_child", FAR)),
    "tree: negative child": lambda: grown(node("left_child", -FAR)),
    "tree: its own child": lambda: grown(lambda s: (node("left_child", 0)(s), node("right_child", 0)(s))),
    "tree: column far away": lambda: grown(node("feature", FAR)),
    "tree: negative column": lambda: grown(node("feature", -FAR)),
    "tree: deeper than it says": lambda: grown(lambda s: s.update(max_depth=0)),
    "tree: no width": unlooked,
    "tree: none in a classifier": lambda: set_on(DecisionTreeClassifier().fit(X, LABELS), n_features_in_=2),
    "tree: as a step": wide_step,
    "forest: one tree lies": lambda: _forest(),
    "gradient boosting: child far away": lambda: _gradient(lambda t: grown(node("left_child", FAR), t)),
    "gradient boosting: a tree that is none": lambda: _gradient(lambda t: set_on(t, tree_=None)),
    "gradient boosting: other columns": lambda: _more_stages(),
    "histogram: child far away": lambda: boosted(left=FAR),
    "histogram: its own child": lambda: boosted(left=0, right=0),
    "histogram: column far away": lambda: boosted(feature_idx=FAR),
    "histogram: negative column": lambda: boosted(feature_idx=-FAR),
    "histogram: categories that are not there": lambda: boosted(is_categorical=1, bitset_idx=FAR),
    "histogram: half trained": lambda: set_on(boosted(), _in_fit=True),
    "histogram: another width": lambda: set_on(boosted(), n_features_in_=2),
    "k-d tree: point far away": lambda: neighbours(1, lambda a: a.__setitem__(slice(None), FAR)),
    "k-d tree: node ends far away": lambda: neighbours(2, lambda a: a["idx_end"].__setitem__(slice(None), FAR)),
    "k-d tree: no leaf": lambda: neighbours(2, lambda a: a["is_leaf"].__setitem__(slice(None), 0)),
    "k-d tree: no bounds": lambda: replaced(3, np.zeros((2, 1, 1))),
    "k-d tree: no metric": lambda: replaced(11, None),
    "ball tree: point far away": lambda: neighbours(1, lambda a: a.__setitem__(slice(None), FAR), algorithm="ball_tree"),
    "ball tree: short weights": lambda: weighted("seuclidean", {"V": np.ones(1)}),
    "ball tree: small matrix": lambda: weighted("mahalanobis", {"VI": np.eye(1)}),
    "density: point far away": lambda: _density(),
    "neighbours: labels far away": lambda: other_rows(_y=np.full(80, FAR)),
    "neighbours: other rows than they say": lambda: other_rows(_fit_X=X[:2], n_samples_fit_=FAR),
    "neighbours: norms of nobody": lambda: other_rows(effective_metric_params_={"Y_norm_squared": np.zeros(1)}),
    "svc: few vectors": lambda: set_on(SVC().fit(X, LABELS), support_vectors_=np.zeros((0, 3))),
    "svc: narrow vectors": lambda: _svc(support_vectors_=lambda v: np.ascontiguousarray(v[:, :1])),
    "svc: few coefficients": lambda: _svc(_dual_coef_=lambda v: np.ascontiguousarray(v[:, :1])),
    "svc: more counts": lambda: _svc(_n_support=lambda v: np.array([*([0] * 4000), *v], np.int32)),
    "svr: more counts": lambda: set_on(SVR().fit(X, NUMBERS), _n_support=np.full(30_000, 1, np.int32)),
    "svc: negative counts": lambda: _svc(_n_support=lambda v: np.array([v.sum() + FAR, -FAR], np.int32)),
    "kmeans: narrow centres": lambda: set_on(KMeans(3).fit(X), cluster_centers_=np.zeros((5000, 1))),
    "linear: sparse column far away": lambda: sparse_coefficients(FAR),
    "encoder: other columns": lambda: encoder(_n_features_outs=[3, 3, 0]),
    "encoder: categories without order": lambda: encoder(categories_=[np.array([2, 1, 0])] * 3),
    "encoder: drops before the first": lambda: encoder(_drop_idx_after_grouping=np.array([-FAR] * 3, dtype=object)),
    "text: word far away": other_vocabulary,
    "text: no columns": lambda: HashingVectorizer(n_features=0),
    "pipeline: itself over and over": twice,
    "random: beyond its numbers": lambda: generator(FAR),
    "function: trains": lambda: FunctionTransformer(_trainer(), kw_args={"sample_weight": np.ones(1)}),
    "forest: classes without number": lambda: set_on(RandomForestClassifier(2).fit(X, LABELS), n_classes_=2**24),
    "dummy: outputs without number": lambda: set_on(DummyRegressor().fit(X, NUMBERS), n_outputs_=2**27),
    "histogram: prepared by a mean": lambda: _prepared(),
    "svc: sparse vectors in columns": lambda: _sparse_svc(),
    "chi-squared: steps without end": lambda: set_on(AdditiveChi2Sampler(sample_interval=0.5).fit(X), sample_steps=10**9),
    "sketch: columns without number": lambda: set_on(PolynomialCountSketch().fit(X), n_components=2**26),
    "array: one for ten thousand": lambda: _named_over_and_over(),
    "method of the class": lambda: set_on(SVC().fit(X, LABELS), _impl="epsilon_svr"),
}  # fmt: skip
_TEXT = {name for name in HOSTILE if name.startswith("text")}


def _trainer() -> Any:
    from sklearn.cluster._kmeans import _kmeans_single_lloyd

    return _kmeans_single_lloyd


def _forest() -> Any:
    forest = RandomForestClassifier(3, random_state=0).fit(X, LABELS)
    forest.estimators_[1] = set_on(DecisionTreeClassifier(random_state=0).fit(X, LABELS))
    state = forest.estimators_[1].tree_.__getstate__()
    state["nodes"] = state["nodes"].copy()
    state["nodes"]["right_child"][0] = FAR
    forest.estimators_[1].tree_.__setstate__(state)
    return forest


def _prepared() -> Any:
    """Trees that ask for the third column, where what prepares the rows leaves two."""
    rows = np.column_stack([np.arange(80) % 4, X[:, :2]])
    model = HistGradientBoostingRegressor(max_iter=1, categorical_features=[0]).fit(rows, NUMBERS)
    set_on(model._preprocessor.transformers_[1][1], func=np.mean, kw_args={"axis": 1, "keepdims": True})
    return model


def _sparse_svc() -> Any:
    """Rows are looked up where three columns have their places."""
    model = SVC(kernel="linear").fit(scipy.sparse.csr_matrix(X), LABELS)
    return set_on(model, support_vectors_=scipy.sparse.csc_matrix(model.support_vectors_))


def _named_over_and_over() -> bytes:
    """An array of 40 MB, 40 kB in the archive, that is read for each of a hundred parts."""
    model = set_on(LinearRegression().fit(X, NUMBERS), coef_=[np.zeros(5_000_000)])
    schema, files = unzipped(skops.io.dumps(model))
    parts = schema["content"]["content"]["coef_"]["content"]
    parts[:] = [{**parts[0], "__id__": -i} for i in range(1, 101)]
    return zipped(schema, files)


def _gradient(change: Callable[[Any], Any]) -> Any:
    model = GradientBoostingRegressor(n_estimators=2, random_state=0).fit(X, NUMBERS)
    model.estimators_[0, 0] = change(model.estimators_[0, 0])
    return model


def _more_stages() -> Any:
    """Fifty thousand columns of trees, and an answer of one."""
    model = GradientBoostingClassifier(n_estimators=1, random_state=0).fit(X, THREE)
    model.init_ = DummyClassifier(strategy="prior").fit(X, LABELS)
    model.estimators_ = np.repeat(model.estimators_[:, :1], 2000, axis=1)
    return model


def _svc(**changes: Callable[[np.ndarray], np.ndarray]) -> Any:
    model = SVC().fit(X, LABELS)
    return set_on(model, **{name: change(getattr(model, name)) for name, change in changes.items()})


def _density() -> Any:
    return set_on(
        KernelDensity(leaf_size=5).fit(X),
        tree_=neighbours(1, lambda a: a.__setitem__(slice(None), FAR))._tree,
    )


def save(model: BaseEstimator | bytes, file: Path) -> Path:
    """Writes an estimator, or an archive that was made by hand."""
    if isinstance(model, bytes):
        file.write_bytes(model)
        return file
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        skops.io.dump(model, file)
    return file


def use(file: Path, text: bool) -> str:
    """Loads a version as a server does and has it answer, through each method that it has."""
    from serving.runtimes.sklearn import _load

    model = _load(file, "skops")
    rows: Any = TEXTS if text else ROWS
    for kind in (np.float64, np.float32):
        given = rows if text else rows.astype(kind)
        for method in ("predict", "predict_proba", "decision_function", "score_samples", "transform", "decision_path"):
            if hasattr(model, method):
                getattr(model, method)(given)
    return "answered"


def fate(file: Path, text: bool, seconds: int = 10) -> str:
    """What becomes of a process that serves a file: its answer, its error, or the signal that ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(seconds)
        os.close(2)
        try:
            told = use(file, text)
        except BaseException as error:
            told = f"{type(error).__name__}: {error}"
        os.write(writer, told[:300].encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return told if os.WIFEXITED(status) else f"signal {os.WTERMSIG(status)}"


def main(folder: str) -> None:
    """Writes every hostile file to a folder and writes what each does to the output, as JSON."""
    warnings.simplefilter("ignore")
    found = {}
    for i, (name, made) in enumerate(HOSTILE.items()):
        file = save(made(), Path(folder) / f"{i}.skops")
        found[name] = fate(file, name in _TEXT)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
