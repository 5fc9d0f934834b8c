"""The runtime of a compiled estimator. The library's own answers for whatever lies outside of what was proved."""

from __future__ import annotations

import numpy as np

from registry.mlmodel import Column
from serving.runtimes.accelerated.compiling import compile_estimator
from serving.runtimes.accelerated.layout import Layout, Levels, Source
from serving.runtimes.accelerated.program import Beyond, NotCompiled, Program, fits
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.sklearn import SklearnRuntime
from serving.schema import NUMERIC, InputSchema

_RAW = {"predict": Want.LABELS, "predict_proba": Want.PROBABILITIES}


class AcceleratedRuntime:
    """Answers as `native` does, by a program. Batches of another width, and those with values that are infinite, huge,
    unknown to an encoder, or missing where the model does not take them go to `native`, which raises or answers as ever."""

    def __init__(self, native: SklearnRuntime, program: Program, levels: tuple[Levels, ...] = ()) -> None:
        """`levels`: of each column of the request; without them, all are numbers."""
        self._native, self.program, self.levels = native, program, levels
        self._coded = any(column.strings for column in levels)
        self._width = getattr(native.estimator, "n_features_in_", None)
        self._raw = _RAW.get(native.raw_method)
        self.classes = native.classes
        self.engine = Engine(program.head.engine)
        #: whether missing values may reach the model itself; the check finds out
        self.takes_missing = True

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """What is wanted, or more."""
        raw = self._raw if Want.RAW in want else Want.NONE
        if raw is None:
            return self._native.predict(arrays, rows, want)
        try:
            labels, probabilities = self.program.head.answer(self.prepared(arrays), want | raw)
        except Beyond:
            return self._native.predict(arrays, rows, want)
        if raw is Want.NONE:
            return Outputs(rows, labels, probabilities)
        return Outputs(rows, labels, probabilities, labels if raw is Want.LABELS else probabilities)

    def close(self) -> None:
        """Nothing but memory is held."""

    def matrix(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """The input as one matrix `[n, k]` of floats; strings by their codes."""
        if not self._coded:
            return self._native.matrix(arrays)
        columns = zip(self.levels, arrays, strict=True)
        coded = [levels.codes(array) if levels.strings else array for levels, array in columns]
        return np.column_stack(coded).astype(np.float64, order="F", copy=False)

    def prepared(self, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
        """What the model's head gets. Raises Beyond for a batch that the library must answer."""
        x = self.matrix(arrays)
        if x.shape[1] != self._width and self._width is not None:
            raise Beyond
        if not fits(x, missing=True):
            raise Beyond
        prepared = self.program.prepare(x)
        if (prepared is not x or not self.takes_missing) and not fits(prepared, missing=self.takes_missing):
            raise Beyond
        return prepared


def compiled(native: SklearnRuntime, schema: InputSchema) -> AcceleratedRuntime:
    """The runtime with the estimator compiled, not yet proved. Raises NotCompiled."""
    known = hasattr(native.estimator, "n_features_in_")
    layout = _layout(schema, block=native.frame and schema.matrix is not None, known=known)
    if schema.columns and tuple(getattr(native.estimator, "feature_names_in_", schema.names)) != schema.names:
        raise NotCompiled("the estimator names its columns in another order than the signature")
    program = compile_estimator(native.estimator, layout)
    return AcceleratedRuntime(native, program, tuple(source.levels for source in layout.sources or ()))


def _layout(schema: InputSchema, *, block: bool, known: bool) -> Layout:
    """Of the matrix that a batch becomes, whose width is `known` to the estimator. Raises NotCompiled for input that is none of numbers and strings."""
    if schema.columns:
        sources = tuple(_source(column) for column in schema.columns)
        return Layout(schema.matrix or np.dtype(np.float64), block, sources=sources)
    if len(schema.tensors) != 1 or len(schema.tensors[0].shape) != 2:
        raise NotCompiled("the input is no single matrix")
    dtype = np.dtype(schema.tensors[0].dtype)
    if dtype not in (np.float32, np.float64):
        raise NotCompiled("the input tensor is neither float32 nor float64")
    if schema.tensors[0].shape[1] < 0 and not known:
        raise NotCompiled("neither the signature nor the estimator says how many columns there are")
    return Layout(dtype)


def _source(column: Column) -> Source:
    if column.type == "string":
        return Source(np.dtype(np.float64), Levels(strings=True))
    if column.type not in NUMERIC:
        raise NotCompiled("not all columns are numbers or strings")
    return Source(NUMERIC[column.type], Levels(strings=False))
