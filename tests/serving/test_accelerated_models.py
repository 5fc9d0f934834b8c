"""Compiled estimators answer as scikit-learn does."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import calibration, ensemble, linear_model, neighbors, neural_network, svm, tree
from sklearn.base import clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from serving.runtimes.accelerated import calibrated, kernels, linear, network, trees
from serving.runtimes.accelerated.accelerate import accelerated
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from tests.accelerating import (
    BOTH,
    DOUBLES,
    MIXED,
    PATIENCE,
    PREPARED,
    SCHEMAS,
    WIDTH,
    answer,
    arrays_of,
    data,
    fitted,
    proved,
    same,
)

ENGINES = {linear: "arrays", network: "arrays", calibrated: "arrays", kernels: "kernels", trees: "onnxruntime"}


@pytest.mark.parametrize(
    ("model", "engine"),
    [(m, e) for heads, e in ENGINES.items() for m in heads.HEADS],
    ids=lambda part: getattr(part, "__name__", part),
)
@pytest.mark.filterwarnings("ignore")
def test_every_compiled_estimator_answers_as_scikit_learn_does(model: type, engine: str) -> None:
    """Two classes and three, labels of the same type and shape, probabilities where the library has them."""
    for classes in (2, 3):
        native, fast = proved(model, "standard", "doubles", classes)
        x = data(classes)[0]
        assert same(answer(fast, (x,)), answer(native, (x,)))
        assert fast.engine.name == engine


MODELS = (
    linear_model.LogisticRegression, linear_model.SGDClassifier, linear_model.Ridge, svm.LinearSVC,
    ensemble.RandomForestClassifier, ensemble.ExtraTreesRegressor, ensemble.GradientBoostingClassifier,
    ensemble.HistGradientBoostingClassifier, tree.DecisionTreeClassifier, svm.SVC, svm.SVR,
    neighbors.KNeighborsClassifier, neighbors.KNeighborsRegressor, neural_network.MLPClassifier,
    calibration.CalibratedClassifierCV, linear_model.PoissonRegressor,
)  # fmt: skip
#: Every model with every preprocessing; schemas and numbers of classes in turn. A tensor has no names to choose by.
CASES = [
    (model, prepared, schema, classes)
    for (model, prepared), schema, classes in zip(product(MODELS, PREPARED), cycle(SCHEMAS), cycle([2, 3, 3]))
    if (prepared, schema) != ("columns", "tensor")
]
VALUE = st.one_of(st.floats(-200, 200, width=32), st.integers(-9, 9).map(float), st.floats(allow_nan=False))


@settings(max_examples=150, deadline=None)
@given(
    case=st.sampled_from(CASES),
    rows=st.lists(st.lists(VALUE, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=40),
    gone=st.lists(st.tuples(st.integers(0, 39), st.integers(0, WIDTH - 1)), max_size=6),
)
@pytest.mark.filterwarnings("ignore")
def test_any_rows_get_the_librarys_answer(
    case: tuple[type, str, str, int], rows: list[list[float]], gone: list[tuple[int, int]]
) -> None:
    """Infinite, huge and missing values too: the same answer, or the same error."""
    native, fast = proved(*case)
    schema = SCHEMAS[case[2]]
    x = np.array(rows)
    if schema is MIXED:
        x = np.clip(np.nan_to_num(x), -(2**31), 2**31 - 1)
    elif schema is not DOUBLES:
        for row, column in gone:
            x[row % len(x), column] = np.nan
    arrays = arrays_of(schema, x)
    assert same(answer(fast, arrays), answer(native, arrays))


FOREST, LOGISTIC = ensemble.RandomForestClassifier(5, random_state=0), linear_model.LogisticRegression()
CALIBRATED = calibration.CalibratedClassifierCV
VARIANTS: dict[str, Any] = {
    "probabilities of support vectors": svm.SVC(probability=True, random_state=0),
    "support vectors, one against one": CALIBRATED(svm.SVC(decision_function_shape="ovo", kernel="poly")),
    "weighted neighbours": neighbors.KNeighborsClassifier(weights="distance", algorithm="ball_tree"),
    "neighbours by brute force": neighbors.KNeighborsClassifier(algorithm="brute", p=1),
    "weighted neighbours by brute force": neighbors.KNeighborsRegressor(weights="distance", algorithm="brute"),
    "a forest, isotonic": CALIBRATED(FOREST, method="isotonic"),
    "boosting, calibrated": CALIBRATED(ensemble.GradientBoostingClassifier(n_estimators=5)),
    "a network, calibrated": CALIBRATED(
        neural_network.MLPClassifier(hidden_layer_sizes=(4,), max_iter=30, random_state=0)
    ),
    "neighbours, calibrated": CALIBRATED(neighbors.KNeighborsClassifier()),
    "a pipeline, calibrated": CALIBRATED(make_pipeline(SimpleImputer(), StandardScaler(), LOGISTIC), ensemble=False),
    "a frozen one, calibrated": CALIBRATED(FrozenEstimator(LOGISTIC)),
    "a network of tanh": neural_network.MLPRegressor(
        hidden_layer_sizes=(4, 3), activation="tanh", max_iter=30, random_state=0
    ),
}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.filterwarnings("ignore")
def test_variants_of_estimators_answer_as_scikit_learn_does(name: str, classes: int) -> None:
    """By their parameters, and one on another; with words for labels."""
    x, y = data(classes)
    LOGISTIC.fit(x, words := np.array(["fine", "worn", "gone"])[y])
    model = clone(VARIANTS[name]).fit(x, words if is_classifier(VARIANTS[name]) else y)
    native = SklearnRuntime(model, DOUBLES)
    fast = accelerated(native, DOUBLES, (x[:3],), PATIENCE)
    assert isinstance(fast, AcceleratedRuntime), native.engine.why
    assert same(answer(fast, (x,)), answer(native, (x,)))


def test_missing_values_go_where_the_trees_learnt_to_send_them() -> None:
    """And the model computes them itself: they are not left to the library."""
    for model in (ensemble.RandomForestClassifier, ensemble.HistGradientBoostingClassifier):
        native, fast = proved(model, "nothing", "optional", 2)
        x = data(2)[0]
        x[:, 0] = np.nan
        assert fast.takes_missing
        assert same(answer(fast, (x,)), answer(native, (x,)))
    _, linear = proved(linear_model.LogisticRegression, "nothing", "optional", 2)
    assert not linear.takes_missing


def test_raw_is_what_the_library_would_give() -> None:
    """By MLflow's `predict_fn`; one that is not compiled is the library's own."""
    model, x = fitted(linear_model.LogisticRegression, "standard", 3), data(3)[0]
    for method in ("predict", "predict_proba", "predict_log_proba"):
        native = SklearnRuntime(model, DOUBLES, method)
        fast = accelerated(native, DOUBLES, (x[:1],), PATIENCE)
        assert isinstance(fast, AcceleratedRuntime)
        raw = fast.predict((x,), len(x), Want.RAW).raw
        assert raw is not None
        assert (
            np.allclose(raw, getattr(model, method)(x), rtol=0, atol=1e-9)
            if method != "predict"
            else (raw.tolist() == model.predict(x).tolist())
        )


def test_the_input_is_left_as_it_is() -> None:
    """A request's arrays may be read-only views of its body."""
    for prepared in PREPARED:
        _, fast = proved(linear_model.LogisticRegression, prepared, "doubles", 2)
        x = data(2)[0]
        x.flags.writeable = False
        fast.predict((x,), len(x), BOTH)
