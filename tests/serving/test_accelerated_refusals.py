"""What is not known to the last type, or not proved, is left to scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn import calibration, ensemble, linear_model, naive_bayes, neighbors, svm, tree
from sklearn.impute import SimpleImputer
from sklearn.metrics.pairwise import linear_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, PolynomialFeatures, StandardScaler

from registry.mlmodel import Signature, Tensor
from serving.runtimes.accelerated.accelerate import accelerated
from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.linear import LinearClassifier
from serving.runtimes.accelerated.parity import NotProved, prove
from serving.runtimes.accelerated.program import Answer, NotCompiled, Program, Tree
from serving.runtimes.accelerated.runtime import AcceleratedRuntime, compiled
from serving.runtimes.accelerated.trees import HEADS as TREES
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema, compile_schema
from tests.accelerating import BOTH, DOUBLES, NAMES, PATIENCE, WIDTH, X, Y, answer, same, schema_of


class Doctored(linear_model.LogisticRegression):
    """A subclass that answers something else."""

    def predict(self, x: Any) -> Any:
        return np.full(len(x), 7)


class DoctoredScaler(StandardScaler):
    """The same of a transformer."""


class DoctoredTree(tree.DecisionTreeClassifier):
    """The same of a forest's member."""


def forest_of_strangers() -> Any:
    forest = ensemble.RandomForestClassifier(3, random_state=0).fit(X, Y)
    forest.estimators_[1] = DoctoredTree(random_state=0).fit(X, Y)
    return forest


MANY = np.column_stack([np.arange(2001.0), np.zeros((2001, 4))])
REFUSED: list[tuple[Any, InputSchema, str]] = [
    (Doctored().fit(X, Y), DOUBLES, "Doctored is not among the models"),
    (make_pipeline(DoctoredScaler(), linear_model.Ridge()).fit(X, Y), DOUBLES, "DoctoredScaler is not among"),
    (forest_of_strangers(), DOUBLES, "not scikit-learn's own"),
    (make_pipeline(PolynomialFeatures(), linear_model.Ridge()).fit(X, Y), DOUBLES, "PolynomialFeatures is not among"),
    (make_pipeline(FunctionTransformer(np.abs), linear_model.Ridge()).fit(X, Y), DOUBLES, "with a function"),
    (naive_bayes.GaussianNB().fit(X, Y), DOUBLES, "GaussianNB is not among the models"),
    (linear_model.SGDClassifier(loss="modified_huber").fit(X, Y), DOUBLES, "modified Huber"),
    (tree.DecisionTreeRegressor().fit(X, np.c_[Y, Y]), DOUBLES, "several targets"),
    (ensemble.GradientBoostingRegressor(init=linear_model.Ridge(), n_estimators=2).fit(X, Y), DOUBLES, "another model"),
    (linear_model.Ridge().fit(pd.DataFrame(X, columns=NAMES[::-1]), Y), DOUBLES, "another order"),
    (linear_model.Ridge().fit(X, Y), schema_of("string", *["double"] * 4), "strings that no encoder"),
    (linear_model.Ridge().fit(X, Y), schema_of("boolean", *["double"] * 4), "not all columns are numbers or strings"),
    (make_pipeline(StandardScaler(), linear_model.Ridge()).fit(X, Y), schema_of("string", *["double"] * 4), "gets strings"),
    (svm.SVC(kernel=linear_kernel).fit(X, Y), DOUBLES, "libsvm's own"),
    (svm.SVC(break_ties=True).fit(X, np.arange(len(X)) % 3), DOUBLES, "break ties"),
    (neighbors.KNeighborsClassifier(weights=np.ones_like).fit(X, Y), DOUBLES, "weights of a function"),
    (neighbors.KNeighborsRegressor(metric="cosine").fit(X, Y), DOUBLES, "search trees"),
    (calibration.CalibratedClassifierCV(naive_bayes.GaussianNB()).fit(X, Y), DOUBLES, "GaussianNB is not among"),
    (calibration.CalibratedClassifierCV(method="temperature").fit(X, Y), DOUBLES, "temperature is not compiled"),
    (make_pipeline(OneHotEncoder(dtype=np.float32), linear_model.Ridge()).fit(X, Y), DOUBLES, "if it answers doubles"),
    (make_pipeline(OneHotEncoder(), tree.DecisionTreeRegressor(max_depth=1)).fit(MANY, MANY[:, 0]), DOUBLES, "4000000 cells"),
    (linear_model.Ridge().fit(X, Y), compile_schema(Signature((Tensor(None, "int64", (-1, 5)),), ())), "neither float32"),
    (make_pipeline(SimpleImputer(add_indicator=True), linear_model.Ridge()).fit(X, Y), DOUBLES, "without an indicator"),
]  # fmt: skip


@pytest.mark.parametrize(("estimator", "schema", "reason"), REFUSED, ids=[reason for _, _, reason in REFUSED])
def test_what_is_not_known_to_the_last_type_is_left_to_the_library(
    estimator: Any, schema: InputSchema, reason: str
) -> None:
    """A subclass may have overridden anything, so it is not its parent; the engine says why."""
    native = SklearnRuntime(estimator, schema)
    assert accelerated(native, schema, (X[:1],)) is native
    assert native.engine.name == "scikit-learn"
    assert reason in str(native.engine.why)


class Rounded(LinearClassifier):
    """A program that is a little wrong: it computes in single precision."""

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        return super().answer(x.astype(np.float32).astype(np.float64), want)


class RoundedTrees:
    """The same of trees: thresholds and values in single precision, as a conversion to ONNX's older operator has them."""

    engine = "onnxruntime"

    def __init__(self, model: Any) -> None:
        self._honest = TREES[type(model)](model, Layout(np.dtype(np.float64)))

    def trees(self) -> list[Tree]:
        return list(self._honest.trees())

    def answer(self, x: np.ndarray, want: Want) -> Answer:
        """Rows whose value lies between a threshold and its rounded self go the wrong way."""
        nudged = x.copy()
        for grown in self._honest.trees():
            for feature, threshold in zip(grown.feature, grown.threshold, strict=True):
                between = (nudged[:, feature] > threshold) & (nudged[:, feature] <= np.float32(threshold))
                nudged[between, feature] = threshold
        return self._honest.answer(nudged, want)


def test_a_linear_program_in_single_precision_is_refused() -> None:
    """On rows around the example it agrees within the bound for probabilities; at the boundary its labels do not."""
    x = np.random.default_rng(0).normal(size=(200, WIDTH))
    model = linear_model.LogisticRegression(C=1e-3).fit(x, x[:, 0] > 0)
    native = SklearnRuntime(model, DOUBLES)
    squash = compiled(native, DOUBLES).program.head._squash  # type: ignore[attr-defined]
    wrong = Rounded(model, Layout(np.dtype(np.float64)), squash)
    fast = AcceleratedRuntime(native, Program(lambda x: x, wrong))
    close = fast.predict((x,), len(x), BOTH)
    assert np.allclose(close.probabilities, model.predict_proba(x), rtol=0, atol=1e-6)
    assert np.array_equal(close.labels, model.predict(x))
    with pytest.raises(NotProved, match="labels are not the model's"):
        prove(native, fast, DOUBLES, (x[:1],), PATIENCE)


def test_trees_with_rounded_thresholds_are_refused() -> None:
    """No row near the example shows it; the rows at the nodes do."""
    x = np.random.default_rng(0).normal(size=(200, WIDTH))
    model = ensemble.HistGradientBoostingClassifier(max_iter=3).fit(x, x[:, 0] > 0)
    native = SklearnRuntime(model, DOUBLES)
    fast = AcceleratedRuntime(native, Program(lambda x: x, RoundedTrees(model)))
    assert same(answer(fast, (x,)), answer(native, (x,)))
    with pytest.raises(NotProved, match=r"differ|labels"):
        prove(native, fast, DOUBLES, (x[:1],), PATIENCE)


class Slow(linear_model.LogisticRegression):
    """A model whose library takes its time."""

    calls = 0

    def predict(self, x: Any) -> Any:
        import time

        Slow.calls += 1
        time.sleep(0.05)
        return super().predict(x)


def test_the_check_ends_in_its_time() -> None:
    """A model too slow to be compared in that time is served by its own library; few calls are made of it."""
    native = SklearnRuntime(Slow().fit(X, Y), DOUBLES)
    honest = compiled(SklearnRuntime(linear_model.LogisticRegression().fit(X, Y), DOUBLES), DOUBLES)
    with pytest.raises(NotProved, match=r"was not through within 0\.1 seconds"):
        prove(native, AcceleratedRuntime(native, honest.program), DOUBLES, (X[:1],), 0.1)
    assert Slow.calls <= 3


def test_a_model_that_fails_around_its_example_is_not_called_equal() -> None:
    """Two errors that agree prove nothing."""
    native = SklearnRuntime(linear_model.LogisticRegression().fit(X[:, :4], Y), DOUBLES)
    assert accelerated(native, DOUBLES, (X[:1],)) is native
    assert "the model raises ValueError" in str(native.engine.why)


def test_an_ensemble_of_too_many_nodes_is_left_to_the_library() -> None:
    """What the session would take in memory is bounded before it is built."""
    single = tree.DecisionTreeClassifier().fit(X, np.arange(len(X)))
    forest = ensemble.RandomForestClassifier(1, random_state=0).fit(X, np.arange(len(X)))
    forest.estimators_ = [single] * 40
    with pytest.raises(NotCompiled, match="more than 1000000 nodes"):
        compiled(SklearnRuntime(forest, DOUBLES), DOUBLES)


def test_a_library_that_changed_inside_serves_the_model_itself() -> None:
    """Compiling reads private attributes; one that is gone is a reason, not a failed version."""
    model = ensemble.HistGradientBoostingRegressor(max_iter=2).fit(X, Y)
    del model._baseline_prediction
    native = SklearnRuntime(model, DOUBLES)
    assert accelerated(native, DOUBLES, (X[:1],)) is native
    assert native.engine.why == "compiling raised AttributeError"


@pytest.mark.audit("35")
@pytest.mark.parametrize(
    "model",
    [
        ensemble.RandomForestClassifier(5, random_state=0), ensemble.HistGradientBoostingClassifier(max_iter=3),
        linear_model.LogisticRegression(), linear_model.LinearRegression(),
        make_pipeline(StandardScaler(), linear_model.LogisticRegression()), neighbors.KNeighborsClassifier(3),
    ],
)  # fmt: skip
def test_a_batch_of_another_width_is_the_librarys(model: Any) -> None:
    """A tensor of any width may have one column, or too many: no program makes an answer of it, nor fails in its own words."""
    wide = compile_schema(Signature((Tensor(None, "float64", (-1, -1)),), ()))
    native = SklearnRuntime(model.fit(X, Y), wide)
    fast = accelerated(native, wide, (X[:3],), PATIENCE)
    assert isinstance(fast, AcceleratedRuntime), native.engine.why
    assert same(answer(fast, (X,)), answer(native, (X,)))
    for width in (1, WIDTH - 1, WIDTH + 1):
        x = np.resize(X, (30, width))
        assert answer(native, (x,)) is ValueError
        assert answer(fast, (x,)) is ValueError
        with pytest.raises(ValueError, match=f"expecting {WIDTH} features"):
            fast.predict((x,), 30, BOTH)
