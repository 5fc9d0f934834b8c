"""The runtime of a compiled estimator. The library's own answers for whatever lies outside of what was proved."""

from __future__ import annotations

import numpy as np

from serving.runtimes.accelerated.compiling import compile_estimator
from serving.runtimes.accelerated.program import NotCompiled, Program
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import InputSchema

#: Sum of squares beyond which a batch goes to the library: no value is over 2^53 then, none is infinite, none is NaN.
_MOST_ENERGY = 2.0**106
_RAW = {"predict": Want.LABELS, "predict_proba": Want.PROBABILITIES}


class AcceleratedRuntime:
    """Answers as `native` does, by a program. Batches with values that are infinite, huge, or missing where the model
    does not take them go to `native`, which raises or answers as it always did."""

    def __init__(self, native: SklearnRuntime, program: Program) -> None:
        self._native, self.program = native, program
        self._raw = _RAW.get(native.raw_method)
        self.classes = native.classes
        self.engine = Engine(program.head.engine)
        #: whether missing values may reach the model itself; the check finds out
        self.takes_missing = True

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """What is wanted, or more."""
        raw = self._raw if Want.RAW in want else Want.NONE
        x = self._prepared(arrays) if raw is not None else None
        if x is None or raw is None:
            return self._native.predict(arrays, rows, want)
        if raw is Want.NONE:
            return Outputs(rows, *self.program.head.answer(x, want))
        labels, probabilities = self.program.head.answer(x, want | raw)
        return Outputs(rows, labels, probabilities, labels if raw is Want.LABELS else probabilities)

    def close(self) -> None:
        """Nothing but memory is held."""

    def _prepared(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray | None:
        """What the model's head gets, or None for a batch that the library must answer."""
        x = self._native.matrix(arrays)
        if not _fits(x, missing=True):
            return None
        prepared = self.program.prepare(x)
        if prepared is x and self.takes_missing:
            return x
        return prepared if _fits(prepared, missing=self.takes_missing) else None


def _fits(x: np.ndarray, *, missing: bool) -> bool:
    """Whether all values are ordinary numbers, or missing where that is allowed."""
    flat = x.ravel(order="K")
    if np.dot(flat, flat) < _MOST_ENERGY:
        return True
    known = flat[~np.isnan(flat)]
    return missing and len(known) < len(flat) and bool(np.dot(known, known) < _MOST_ENERGY)


def compiled(native: SklearnRuntime, schema: InputSchema) -> AcceleratedRuntime:
    """The runtime with the estimator compiled, not yet proved. Raises NotCompiled."""
    dtype = _dtype(schema)
    if schema.columns and tuple(getattr(native.estimator, "feature_names_in_", schema.names)) != schema.names:
        raise NotCompiled("the estimator names its columns in another order than the signature")
    program = compile_estimator(native.estimator, dtype, block=native.frame and schema.matrix is not None)
    return AcceleratedRuntime(native, program)


def _dtype(schema: InputSchema) -> np.dtype:
    """Of the matrix that a batch becomes. Raises NotCompiled for input that is no matrix of numbers."""
    if schema.columns:
        if not schema.all_numeric:
            raise NotCompiled("not all columns are numbers")
        return schema.matrix or np.dtype(np.float64)
    if len(schema.tensors) != 1 or len(schema.tensors[0].shape) != 2:
        raise NotCompiled("the input is no single matrix")
    dtype = np.dtype(schema.tensors[0].dtype)
    if dtype not in (np.float32, np.float64):
        raise NotCompiled("the input tensor is neither float32 nor float64")
    return dtype
