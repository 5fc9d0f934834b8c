"""Compiled estimators answer as scikit-learn does; what is not proved does not serve."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from itertools import cycle, product
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import ensemble, linear_model, svm, tree
from sklearn.base import is_classifier
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MaxAbsScaler,
    MinMaxScaler,
    PolynomialFeatures,
    RobustScaler,
    StandardScaler,
)

from registry.errors import InvalidModel
from registry.mlmodel import Column, Signature, Tensor
from registry.versions import ModelVersion
from serving.configuration import ModelOptions
from serving.loading import Loaded, Loader, warm
from serving.runtimes.accelerated.accelerate import accelerated
from serving.runtimes.accelerated.linear import LINEAR, LinearClassifier
from serving.runtimes.accelerated.parity import NotProved, prove
from serving.runtimes.accelerated.program import Answer, NotCompiled, Program, Tree
from serving.runtimes.accelerated.runtime import AcceleratedRuntime, compiled
from serving.runtimes.accelerated.trees import TREES
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema, compile_schema
from tests.models import Folder, columns

WIDTH, PATIENCE = 5, 60.0
NAMES = [f"c{i}" for i in range(WIDTH)]
BOTH = Want.LABELS | Want.PROBABILITIES


def schema_of(*types: str, required: bool = True) -> InputSchema:
    return compile_schema(Signature(tuple(Column(n, t, required) for n, t in zip(NAMES, types, strict=True)), ()))


DOUBLES, FLOATS = schema_of(*["double"] * WIDTH), schema_of(*["float"] * WIDTH)
OPTIONAL = schema_of(*["double"] * WIDTH, required=False)
MIXED = schema_of("double", "long", "integer", "float", "double")
TENSOR = compile_schema(Signature((Tensor(None, "float32", (-1, WIDTH)),), ()))
SCHEMAS = {"doubles": DOUBLES, "floats": FLOATS, "optional": OPTIONAL, "mixed": MIXED, "tensor": TENSOR}


def arrays_of(schema: InputSchema, x: np.ndarray) -> tuple[np.ndarray, ...]:
    if schema is MIXED:
        kinds = ("f8", "i8", "i4", "f4", "f8")
        return tuple(x[:, i].astype(kind) for i, kind in enumerate(kinds))
    return (x.astype(np.float32 if schema in (FLOATS, TENSOR) else np.float64),)


def data(classes: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = make_classification(150, WIDTH, n_informative=4, n_redundant=0, n_classes=classes, random_state=3)
    return np.round(x * 20 + 50, 1), y


def small(model: type) -> Any:
    """An estimator that is quick to train."""
    made = model()
    known = made.get_params()
    quick = {
        "n_estimators": 12,
        "max_iter": 12 if "Hist" in model.__name__ else None,
        "random_state": 0,
        "n_jobs": None,
    }
    made.set_params(**{key: value for key, value in quick.items() if key in known and value is not None})
    return made.set_params(loss="log_loss") if model is linear_model.SGDClassifier else made


PREPARED: dict[str, Any] = {
    "nothing": lambda: (),
    "standard": lambda: (StandardScaler(),),
    "imputed": lambda: (SimpleImputer(strategy="median"), MinMaxScaler(clip=True)),
    "nested": lambda: (make_pipeline(RobustScaler(), FunctionTransformer()), MaxAbsScaler()),
    "columns": lambda: (
        make_column_transformer(
            (StandardScaler(), ["c0", "c3"]),
            (make_pipeline(SimpleImputer(), RobustScaler(with_centering=False)), ["c4"]),
            ("drop", ["c1"]),
            remainder="passthrough",
        ),
    ),
    "places": lambda: (make_column_transformer((MinMaxScaler(), [3, 0]), ("passthrough", slice(1, 3))),),
}


@cache
def fitted(model: type, prepared: str, classes: int, missing: bool = False) -> Any:
    x, y = data(classes)
    if missing:
        x[np.random.default_rng(1).random(x.shape) < 0.1] = np.nan
    if not is_classifier(model()):
        y = np.nan_to_num(x) @ np.arange(1, WIDTH + 1) + y
    frame = pd.DataFrame(x, columns=NAMES)
    return make_pipeline(*PREPARED[prepared](), small(model)).fit(frame if prepared == "columns" else x, y)


@cache
def proved(model: type, prepared: str, schema: str, classes: int) -> tuple[SklearnRuntime, AcceleratedRuntime]:
    missing = schema == "optional" and (prepared == "imputed" or "Hist" in model.__name__ or "Forest" in model.__name__)
    native = SklearnRuntime(fitted(model, prepared, classes, missing), SCHEMAS[schema])
    fast = accelerated(native, SCHEMAS[schema], arrays_of(SCHEMAS[schema], data(classes)[0][:3]), PATIENCE)
    assert isinstance(fast, AcceleratedRuntime), native.engine.why
    return native, fast


def answer(runtime: SklearnRuntime | AcceleratedRuntime, arrays: tuple[np.ndarray, ...]) -> Any:
    """What the runtime answers, or the class of what it raises."""
    try:
        outputs = runtime.predict(arrays, len(arrays[0]), BOTH)
    except Exception as error:
        return type(error)
    return outputs.labels, outputs.probabilities


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, type):
        return found is expected
    labels, table = found
    exact = labels.dtype == expected[0].dtype and bool(np.array_equal(labels, expected[0]))
    if expected[1] is None:
        return table is None and (exact or bool(np.allclose(labels, expected[0], rtol=1e-9, atol=0)))
    return exact and bool(np.allclose(table, expected[1], rtol=0, atol=1e-9))


# -- every estimator ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [*LINEAR, *TREES], ids=lambda model: model.__name__)
def test_every_compiled_estimator_answers_as_scikit_learn_does(model: type) -> None:
    """Two classes and three, labels of the same type and shape, probabilities where the library has them."""
    for classes in (2, 3):
        native, fast = proved(model, "standard", "doubles", classes)
        x = data(classes)[0]
        assert same(answer(fast, (x,)), answer(native, (x,)))
        assert fast.engine.name == ("onnxruntime" if model in TREES else "arrays")


MODELS = (
    linear_model.LogisticRegression, linear_model.SGDClassifier, linear_model.Ridge, svm.LinearSVC,
    ensemble.RandomForestClassifier, ensemble.ExtraTreesRegressor, ensemble.GradientBoostingClassifier,
    ensemble.HistGradientBoostingClassifier, tree.DecisionTreeClassifier,
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


# -- what must not serve ------------------------------------------------------------------------------------------


class Doctored(linear_model.LogisticRegression):
    """A subclass that answers something else."""

    def predict(self, x: Any) -> Any:
        return np.full(len(x), 7)


class DoctoredScaler(StandardScaler):
    """The same of a transformer."""


class DoctoredTree(tree.DecisionTreeClassifier):
    """The same of a forest's member."""


X, Y = data(2)


def forest_of_strangers() -> Any:
    forest = ensemble.RandomForestClassifier(3, random_state=0).fit(X, Y)
    forest.estimators_[1] = DoctoredTree(random_state=0).fit(X, Y)
    return forest


REFUSED: list[tuple[Any, InputSchema, str]] = [
    (Doctored().fit(X, Y), DOUBLES, "Doctored is not among the models"),
    (make_pipeline(DoctoredScaler(), linear_model.Ridge()).fit(X, Y), DOUBLES, "DoctoredScaler is not among"),
    (forest_of_strangers(), DOUBLES, "not scikit-learn's own"),
    (make_pipeline(PolynomialFeatures(), linear_model.Ridge()).fit(X, Y), DOUBLES, "PolynomialFeatures is not among"),
    (make_pipeline(FunctionTransformer(np.abs), linear_model.Ridge()).fit(X, Y), DOUBLES, "with a function"),
    (svm.SVC().fit(X, Y), DOUBLES, "SVC is not among the models"),
    (linear_model.SGDClassifier(loss="modified_huber").fit(X, Y), DOUBLES, "modified Huber"),
    (tree.DecisionTreeRegressor().fit(X, np.c_[Y, Y]), DOUBLES, "several targets"),
    (ensemble.GradientBoostingRegressor(init=linear_model.Ridge(), n_estimators=2).fit(X, Y), DOUBLES, "another model"),
    (linear_model.Ridge().fit(pd.DataFrame(X, columns=NAMES[::-1]), Y), DOUBLES, "another order"),
    (linear_model.Ridge().fit(X, Y), schema_of("string", *["double"] * 4), "not all columns are numbers"),
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
        self._model, self._honest = model, TREES[type(model)](model)
        self._single = {id(t): t.threshold.astype(np.float32) for t in self._honest.trees()}

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
    wrong = Rounded(model, lambda scores: model._predict_proba_lr(np.zeros((len(scores), WIDTH))))
    wrong._squash = compiled(native, DOUBLES).program.head._squash  # type: ignore[attr-defined]
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


# -- in the server ------------------------------------------------------------------------------------------------


def save(path: Path, model: Any, **more: Any) -> Folder:
    more = {"serialization_format": "skops", "skops_trusted_types": ["sklearn.tree._tree.Tree"]} | more
    signature = columns(*[(name, "double") for name in NAMES])
    mlflow.sklearn.save_model(model, str(path / "model"), signature=signature, pip_requirements=["mlflow"], **more)
    return Folder(path / "model")


def load(folder: Folder, **options: Any) -> Loaded:
    loaded = Loader(folder, ModelOptions(**options), None).load(ModelVersion("m", "3"))
    warm(loaded)
    return loaded


def test_a_version_is_accelerated_unless_the_operator_says_off(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the engine."""
    caplog.set_level("INFO", "headway.lifecycle")
    folder = save(tmp_path, fitted(ensemble.RandomForestClassifier, "standard", 2))
    assert load(folder).runtime.engine.name == "onnxruntime"
    assert load(folder, accelerate="off").runtime.engine.name == "scikit-learn"
    said = [record.engine for record in caplog.records if record.message == "runtime loaded"]  # type: ignore[attr-defined]
    assert said == ["onnxruntime", "scikit-learn"]


def test_the_log_says_why_a_version_is_not_accelerated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In a clause."""
    caplog.set_level("INFO", "headway.lifecycle")
    load(save(tmp_path, svm.SVC().fit(X, Y)))
    record = next(record for record in caplog.records if record.message == "runtime loaded")
    assert record.not_accelerated == "SVC is not among the models that are compiled"  # type: ignore[attr-defined]


def test_a_version_in_a_process_of_its_own_is_accelerated_there(tmp_path: Path) -> None:
    """And gives the same answers."""
    model = fitted(ensemble.RandomForestClassifier, "standard", 2)
    loaded = load(save(tmp_path, model), isolation="process")
    try:
        outputs = loaded.runtime.predict((X,), len(X), BOTH)
        assert loaded.runtime.engine.name == "onnxruntime"
        assert np.array_equal(outputs.probabilities, model.predict_proba(X))
    finally:
        loaded.dispose()


def test_the_trust_gate_stands_before_it(tmp_path: Path) -> None:
    """A pickle of a perfectly linear model still needs allow_pickle."""
    folder = save(tmp_path, fitted(linear_model.LogisticRegression, "standard", 2), serialization_format="cloudpickle")
    with pytest.raises(InvalidModel, match="set allow_pickle"):
        load(folder)
    assert load(folder, allow_pickle=True).runtime.engine.name == "arrays"


SCRIPT = """
import sys
sys.modules.update(dict.fromkeys(["onnxruntime", "onnx"]) if {hide} else {{}})
import numpy as np
from sklearn import linear_model, tree
from registry.mlmodel import Signature, Tensor
from serving.schema import compile_schema
from serving.runtimes.sklearn import SklearnRuntime
from serving.runtimes.accelerated.accelerate import accelerated
x = np.random.default_rng(0).normal(size=(50, 2))
schema = compile_schema(Signature((Tensor(None, "float64", (-1, 2)),), ()))
for model in ({models}):
    runtime = accelerated(SklearnRuntime(model.fit(x, x[:, 0] > 0), schema), schema, (x[:1],), 120.0)
    print(runtime.engine.name, runtime.engine.why, sys.modules.get("onnxruntime") is not None)
"""


def run(hide: bool, models: str) -> list[str]:
    text = SCRIPT.format(hide=hide, models=models)
    return subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.splitlines()


def test_onnx_runtime_is_imported_only_for_trees() -> None:
    """A linear model does without."""
    models = "linear_model.LogisticRegression(), tree.DecisionTreeClassifier()"
    assert run(False, models) == ["arrays None False", "onnxruntime None True"]


def test_without_the_extra_the_library_serves_and_says_which_to_install() -> None:
    """Nothing but speed depends on it."""
    (line,) = run(True, "tree.DecisionTreeClassifier(),")
    assert line.endswith("is not installed: install the extra accelerate False")
