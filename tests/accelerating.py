"""Fitted estimators, their schemas, and what it means that two runtimes answer the same: for the tests of acceleration."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd
from sklearn import linear_model
from sklearn.base import is_classifier
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from registry.mlmodel import Column, Signature, Tensor
from serving.runtimes.accelerated.accelerate import accelerated
from serving.runtimes.accelerated.runtime import AcceleratedRuntime
from serving.runtimes.base import Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema, compile_schema

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
        "max_iter": next((n for start, n in {"Hist": 12, "MLP": 60}.items() if model.__name__.startswith(start)), None),
        "random_state": 0,
        "hidden_layer_sizes": (6, 4),
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


X, Y = data(2)
