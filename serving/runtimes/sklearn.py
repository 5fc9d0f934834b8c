"""scikit-learn: native estimators, arrays in and out.

A version saved as skops is loaded with the server's own allow-list and checks; one saved as pickle or cloudpickle needs the
operator's permission, which the trust gate has checked before this module is reached.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from registry.pyfunc import add_code
from serving.estimators.file import load_skops
from serving.runtimes.base import Engine, Outputs, Want
from serving.schema import InputSchema

# The server enforces the order of columns itself; estimators fitted on a frame would warn once per call.
warnings.filterwarnings("ignore", message="X does not have valid feature names", category=UserWarning)


class SklearnRuntime:
    """One estimator. Numeric columns go in as one float matrix; anything else as a DataFrame in signature order."""

    def __init__(self, estimator: Any, schema: InputSchema, raw_method: str = "predict") -> None:
        self.estimator, self.raw_method = estimator, raw_method
        self.engine = Engine("scikit-learn")
        self._schema = schema
        self._raw = getattr(estimator, raw_method)
        # A classifier of several targets has a list of classes and of tables: neither fits one row per instance.
        classes = getattr(estimator, "classes_", None)
        self._is_classifier = isinstance(classes, np.ndarray) and hasattr(estimator, "predict_proba")
        self.classes: np.ndarray | None = classes if self._is_classifier else None
        #: whether the estimator is given a DataFrame
        self.frame = _needs_frame(estimator, schema)

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """Labels from `predict`, probabilities `[n, classes]` from `predict_proba`, raw from MLflow's `predict_fn`."""
        x = self._input(arrays)
        labels = np.asarray(self.estimator.predict(x)) if Want.LABELS in want else None
        probabilities = self.estimator.predict_proba(x) if Want.PROBABILITIES in want and self._is_classifier else None
        raw = np.asarray(self._raw(x)) if Want.RAW in want else None
        return Outputs(rows, labels, probabilities, raw)

    def close(self) -> None:
        """Nothing but memory is held."""

    def matrix(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """Numeric input as the one matrix `[n, k]` of floats that the estimator makes of it, in the same memory layout."""
        if len(arrays) == 1:
            return arrays[0] if arrays[0].ndim == 2 else arrays[0][:, None].astype(np.float64)
        matrix = np.column_stack(arrays)
        return matrix.astype(np.float64, order="F" if self.frame else "C", copy=False)

    def _input(self, arrays: tuple[np.ndarray, ...]) -> Any:
        if self.frame:
            names = self._schema.names
            whole = self._schema.matrix is not None
            return pd.DataFrame(arrays[0], columns=names) if whole else _frame(names, arrays)
        return arrays[0] if len(arrays) == 1 and arrays[0].ndim > 1 else np.column_stack(arrays)


def load_sklearn(model: MLmodel, schema: InputSchema) -> SklearnRuntime:
    """Loads the sklearn flavour of a version whose trust has been checked."""
    conf = model.flavor("sklearn")
    add_code(model.path, conf)
    file = model.path / str(conf["pickled_model"])
    method = str(model.flavor("python_function").get("predict_fn", "predict"))
    return SklearnRuntime(_load(file, str(conf.get("serialization_format", "pickle"))), schema, method)


def _load(file: Path, serialization: str) -> Any:
    if serialization == "skops":
        return load_skops(file)
    if serialization not in ("pickle", "cloudpickle"):
        raise InvalidModel(f"the serialization format {serialization[:32]!r} is not known")
    import cloudpickle  # both formats are read by it, and registering it costs nothing for plain pickle

    with file.open("rb") as stream:
        return cloudpickle.load(stream)


def _needs_frame(estimator: Any, schema: InputSchema) -> bool:
    """A frame is needed for columns that are no numbers, and for estimators that select columns by name, within a search or
    a calibration too."""
    if schema.tensors:
        return False
    if schema.matrix is not None or schema.all_numeric:
        fitted = getattr(estimator, "feature_names_in_", None)
        by_name = any(type(part).__name__ == "ColumnTransformer" for part in _parts(estimator))
        reordered = fitted is not None and tuple(fitted) != schema.names
        exact = all(c.type != "long" for c in schema.columns)
        return by_name or reordered or (schema.matrix is None and not exact)
    return True


def _parts(estimator: Any) -> Iterator[Any]:
    """The estimator, its steps, and what it searches over, calibrates or holds."""
    yield estimator
    inner = [step for _, step in getattr(estimator, "steps", [])]
    for part in [*inner, getattr(estimator, "estimator", None)]:
        if part is not None:
            yield from _parts(part)


def _frame(names: tuple[str, ...], arrays: tuple[np.ndarray, ...]) -> pd.DataFrame:
    return pd.DataFrame(dict(zip(names, arrays, strict=True)), copy=False)
