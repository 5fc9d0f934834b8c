"""Preprocessing as array arithmetic: the same operations as scikit-learn's, in the same order, on the same dtype.

Order and memory layout matter to the last bit, and a label next to a model's boundary hangs on that bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from serving.runtimes.accelerated.encode import ENCODERS, encoder
from serving.runtimes.accelerated.layout import Layout
from serving.runtimes.accelerated.program import NotCompiled, Transform


def transform_of(step: Any, layout: Layout) -> tuple[Transform, Layout]:
    """A fitted transformer as arithmetic, and the layout of what it makes.

    Raises NotCompiled. Subclasses are never taken for what they derive from: they may do anything.
    """
    if isinstance(step, str) and step == "passthrough":
        return _identity, layout
    if type(step) is Pipeline:
        return in_turn([inner for _, inner in step.steps], layout)
    if type(step) is ColumnTransformer:
        return _columns(step, layout)
    if type(step) in ENCODERS:
        return encoder(step, layout), Layout(np.dtype(np.float64), sparse=getattr(step, "sparse_output", False))
    if type(step) not in _SIMPLE:
        raise NotCompiled(f"{type(step).__name__[:64]} is not among the preprocessing steps that are compiled")
    if layout.strings and type(step) is not SimpleImputer:
        raise NotCompiled(f"{type(step).__name__} gets strings, which is not compiled")
    return _SIMPLE[type(step)](step, layout), _kept(step, layout)


def _kept(step: Any, layout: Layout) -> Layout:
    """Behind a step that keeps the columns; imputers keep what they hold, too."""
    sources = layout.sources if type(step) in (SimpleImputer, FunctionTransformer) else None
    return Layout(layout.dtype, sparse=layout.sparse, sources=sources)


def in_turn(steps: Sequence[Any], layout: Layout) -> tuple[Transform, Layout]:
    """One transformer after the other. Raises NotCompiled."""
    real: list[Transform] = []
    for step in steps:
        transform, layout = transform_of(step, layout)
        if transform is not _identity:
            real.append(transform)
    if len(real) < 2:
        return (real[0] if real else _identity), layout

    def apply(x: np.ndarray) -> np.ndarray:
        for transform in real:
            x = transform(x)
        return x

    return apply, layout


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _standard(step: Any, layout: Layout) -> Transform:
    mean = step.mean_.astype(layout.dtype) if step.with_mean else None
    scale = step.scale_.astype(layout.dtype) if step.with_std else None
    return _shifted(mean, scale)


def _robust(step: Any, layout: Layout) -> Transform:
    return _shifted(step.center_ if step.with_centering else None, step.scale_ if step.with_scaling else None)


def _shifted(shift: np.ndarray | None, scale: np.ndarray | None) -> Transform:
    if shift is None and scale is None:
        return _identity

    def apply(x: np.ndarray) -> np.ndarray:
        x = x.copy(order="K")
        if shift is not None:
            x -= shift
        if scale is not None:
            x /= scale
        return x

    return apply


def _min_max(step: Any, layout: Layout) -> Transform:
    scale, shift = step.scale_, step.min_
    low, high = (layout.dtype.type(bound) for bound in step.feature_range)

    def apply(x: np.ndarray) -> np.ndarray:
        x = x.copy(order="K")
        x *= scale
        x += shift
        return np.clip(x, low, high, out=x) if step.clip else x

    return apply


def _max_abs(step: Any, layout: Layout) -> Transform:
    if getattr(step, "clip", False):
        raise NotCompiled("a MaxAbsScaler that clips is not compiled")
    return _shifted(None, step.scale_)


def _imputer(step: Any, layout: Layout) -> Transform:
    if step.add_indicator:
        raise NotCompiled("a SimpleImputer is compiled without an indicator")
    if layout.strings:
        return _imputed_strings(step, layout)
    values = np.asarray(step.statistics_)
    if values.dtype.kind not in "fiu" or np.isnan(values).any() or not isinstance(step.missing_values, int | float):
        raise NotCompiled("a SimpleImputer of numbers is compiled if it has one for every column")
    filling, missing = values.astype(layout.dtype), step.missing_values

    def apply(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x) if missing != missing else x == missing, filling, x)

    return apply


def _imputed_strings(step: Any, layout: Layout) -> Transform:
    """A missing string is None, which to the library is no NaN."""
    levels = [source.levels for source in layout.sources or ()]
    if not all(one.strings for one in levels):
        raise NotCompiled("a SimpleImputer of strings and of numbers is not compiled")
    if step.missing_values is not None:
        return _identity
    pairs = [one.keys([None, filling]) for one, filling in zip(levels, step.statistics_, strict=True)]
    missing, filling = np.array(pairs).T

    def apply(x: np.ndarray) -> np.ndarray:
        return np.where(x == missing, filling, x)

    return apply


def _function(step: Any, layout: Layout) -> Transform:
    if step.func is not None:
        raise NotCompiled("a FunctionTransformer with a function is not compiled")
    return _identity


def _columns(step: Any, layout: Layout) -> tuple[Transform, Layout]:
    if step.transformer_weights or layout.sparse:
        raise NotCompiled("a ColumnTransformer with weights, or of a sparse matrix, is not compiled")
    order: Literal["C", "F"] = "C" if layout.block else "F"
    parts: list[tuple[np.ndarray, np.dtype[Any], Transform]] = []
    dtypes = []
    for name, inner, _ in step.transformers_:
        chosen = np.asarray(step._transformer_to_input_indices[name], dtype=np.intp)
        if len(chosen) and not (isinstance(inner, str) and inner == "drop"):
            before = layout.of(chosen)
            transform, after = transform_of(inner, before)
            if after.strings:
                raise NotCompiled("a ColumnTransformer that leaves strings as they are is not compiled")
            parts.append((chosen, before.dtype, transform))
            dtypes.append(after.dtype)
    if not parts:
        raise NotCompiled("a ColumnTransformer that keeps no column is not compiled")

    def apply(x: np.ndarray) -> np.ndarray:
        return np.hstack([transform(x[:, chosen].astype(dtype, order)) for chosen, dtype, transform in parts])

    return apply, Layout(np.result_type(*dtypes), sparse=bool(step.sparse_output_))


_SIMPLE: dict[type, Callable[[Any, Layout], Transform]] = {
    StandardScaler: _standard,
    RobustScaler: _robust,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    SimpleImputer: _imputer,
    FunctionTransformer: _function,
}
