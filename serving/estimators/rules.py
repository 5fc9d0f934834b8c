"""By type: what an estimator must be like before anybody calls it. All of its parts have been made, none has been used.

A type without a rule computes with NumPy and SciPy alone, which look where they are told to read. Parameters that name files,
functions, threads or work without end are part of their type's rule.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from serving.estimators import trees, vectors, words
from serving.estimators.layout import Layout

MOST_DEGREE, MOST_POWERS, MOST_ROUNDS = 100, 1_000_000, 100_000
#: Numbers of one row's answer, which are allocated as an estimator says, and for a batch at once.
MOST_ANSWERS = 100_000
_ANSWERS = ("n_classes_", "n_outputs_", "n_trees_per_iteration_")
_WIDTHS = ("n_components", "_n_components")


def rule_reasons(layout: Layout) -> Iterator[str]:
    """Looks at every object of a file; the reasons against it. Settings of this machine's, not the model's, are taken over."""
    for node, _ in layout.objects:
        made = node.construct()
        yield from _overriding(made)
        yield from _answers(vars(made))
        yield from RULES.get(node.class_name, _no_rule)(made)
        _settle(made)


def _overriding(made: Any) -> Iterator[str]:
    """What an object says of itself may not stand where its class has something: a method, or a constant that picks code."""
    kind = type(made)
    settings = kind._get_param_names() if issubclass(kind, BaseEstimator) else ()
    for name in vars(made):
        theirs = getattr(kind, name, None)
        free = isinstance(theirs, property) or (name in settings and not callable(theirs))
        if name.startswith("__") or (hasattr(kind, name) and not free):
            yield f"{kind.__name__} sets {name[:40]}, which is its class's"
            return


def _answers(held: dict[str, Any]) -> Iterator[str]:
    for name in _ANSWERS:
        said = np.asarray(held.get(name, 0))
        if said.dtype.kind not in "iu" or np.abs(said).sum(dtype=float) > MOST_ANSWERS:
            yield f"its {name} is beyond {MOST_ANSWERS}"
    for name in _WIDTHS:
        if isinstance(held.get(name), int | np.integer) and held[name] > MOST_ANSWERS:
            yield f"its {name} is beyond {MOST_ANSWERS}"


def _settle(made: Any) -> None:
    """How many processes and threads is this machine's business, nothing is cached on its disk, and nothing is printed."""
    held = vars(made)
    if isinstance(held.get("n_jobs"), int):
        made.n_jobs = min(held["n_jobs"], os.cpu_count() or 1)
    if held.get("memory") is not None:
        made.memory = None
    if held.get("verbose"):
        made.verbose = 0


def _no_rule(made: Any) -> Iterator[str]:
    return iter(())


def _polynomial(made: Any) -> Iterator[str]:
    held = vars(made)
    for key, most in (("_max_degree", MOST_DEGREE), ("_n_out_full", MOST_POWERS), ("n_output_features_", MOST_POWERS)):
        if key in held and not (isinstance(held[key], int | np.integer) and held[key] <= most):
            yield f"PolynomialFeatures has a {key} beyond {most}"


def _rounds(*names: str, most: int = MOST_ROUNDS) -> Callable[[Any], Iterator[str]]:
    """A transform that searches, or repeats itself: how long, it says itself."""

    def rule(made: Any) -> Iterator[str]:
        for name in names:
            said = vars(made).get(name)
            if not (said is None or (isinstance(said, int) and said <= most)):
                yield f"{type(made).__name__} has a {name} beyond {most}"

    return rule


def _agglomeration(made: Any) -> Iterator[str]:
    labels = vars(made).get("labels_")
    if labels is not None and not (
        isinstance(labels, np.ndarray)
        and labels.dtype.kind in "iu"
        and (labels >= 0).all()
        and (labels < labels.size).all()
    ):
        yield "FeatureAgglomeration has groups that are not there"


def _patches(made: Any) -> Iterator[str]:
    size = vars(made).get("patch_size")
    if size is not None and not (isinstance(size, tuple) and all(isinstance(n, int) and n > 0 for n in size)):
        yield "PatchExtractor has patches without a size"


_NEIGHBOURS = (
    "KNeighborsClassifier KNeighborsRegressor KNeighborsTransformer RadiusNeighborsClassifier RadiusNeighborsRegressor "
    "RadiusNeighborsTransformer NearestNeighbors LocalOutlierFactor"
)
RULES: dict[str, Callable[[Any], Iterator[str]]] = {
    **dict.fromkeys(
        ("DecisionTreeClassifier", "DecisionTreeRegressor", "ExtraTreeClassifier", "ExtraTreeRegressor"),
        trees.decision_tree,
    ),
    **dict.fromkeys(("GradientBoostingClassifier", "GradientBoostingRegressor"), trees.gradient_boosting),
    **dict.fromkeys(("HistGradientBoostingClassifier", "HistGradientBoostingRegressor"), trees.histogram_boosting),
    **dict.fromkeys(_NEIGHBOURS.split(), vectors.neighbours),
    "KernelDensity": vectors.density,
    **dict.fromkeys(("SVC", "NuSVC", "SVR", "NuSVR", "OneClassSVM"), vectors.support_vectors),
    **dict.fromkeys(("KMeans", "MiniBatchKMeans", "BisectingKMeans"), vectors.centres),
    **dict.fromkeys(("CountVectorizer", "TfidfVectorizer"), words.text),
    "HashingVectorizer": words.hashing_text,
    "FeatureHasher": words.hashing,
    "DictVectorizer": words.dictionary,
    "OneHotEncoder": words.one_hot,
    "MultiLabelBinarizer": words.several_labels,
    "OneVsRestClassifier": words.one_versus_rest,
    "PolynomialFeatures": _polynomial,
    "FeatureAgglomeration": _agglomeration,
    "PatchExtractor": _patches,
    "LatentDirichletAllocation": _rounds("max_doc_update_iter"),
    "AdditiveChi2Sampler": _rounds("sample_steps", most=MOST_DEGREE),
    "NMF": _rounds("max_iter"),
    "MiniBatchNMF": _rounds("max_iter", "_transform_max_iter"),
    **dict.fromkeys(
        ("DictionaryLearning", "MiniBatchDictionaryLearning", "SparseCoder"), _rounds("transform_max_iter")
    ),
    **dict.fromkeys(
        ("GaussianProcessClassifier", "_BinaryGaussianProcessClassifierLaplace"), _rounds("max_iter_predict")
    ),
    "LabelSpreading": _rounds("max_iter"),
    "LabelPropagation": _rounds("max_iter"),
}
