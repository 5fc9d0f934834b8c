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

from serving.runtimes.accelerated.program import NotCompiled, Transform

Dtype = np.dtype[Any]


def transform_of(step: Any, dtype: Dtype, *, block: bool = False) -> Transform:
    """A fitted transformer as arithmetic on matrices of `dtype`. `block` if the library is given a DataFrame that is one
    block of memory: the columns that it picks there lie row by row, and anywhere else column by column.

    Raises NotCompiled. Subclasses are never taken for what they derive from: they may do anything.
    """
    if isinstance(step, str) and step == "passthrough":
        return _identity
    if type(step) is Pipeline:
        return in_turn([inner for _, inner in step.steps], dtype, block=block)
    if type(step) is ColumnTransformer:
        return _columns(step, dtype, block=block)
    if type(step) not in _SIMPLE:
        raise NotCompiled(f"{type(step).__name__[:64]} is not among the preprocessing steps that are compiled")
    return _SIMPLE[type(step)](step, dtype)


def in_turn(steps: Sequence[Any], dtype: Dtype, *, block: bool = False) -> Transform:
    """One transformer after the other. Raises NotCompiled."""
    transforms = [transform_of(step, dtype, block=block and i == 0) for i, step in enumerate(steps)]
    real = [transform for transform in transforms if transform is not _identity]
    if len(real) < 2:
        return real[0] if real else _identity

    def apply(x: np.ndarray) -> np.ndarray:
        for transform in real:
            x = transform(x)
        return x

    return apply


def _identity(x: np.ndarray) -> np.ndarray:
    return x


def _standard(step: Any, dtype: Dtype) -> Transform:
    mean = step.mean_.astype(dtype) if step.with_mean else None
    scale = step.scale_.astype(dtype) if step.with_std else None
    return _shifted(mean, scale)


def _robust(step: Any, dtype: Dtype) -> Transform:
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


def _min_max(step: Any, dtype: Dtype) -> Transform:
    scale, shift = step.scale_, step.min_
    low, high = (dtype.type(bound) for bound in step.feature_range)

    def apply(x: np.ndarray) -> np.ndarray:
        x = x.copy(order="K")
        x *= scale
        x += shift
        return np.clip(x, low, high, out=x) if step.clip else x

    return apply


def _max_abs(step: Any, dtype: Dtype) -> Transform:
    if getattr(step, "clip", False):
        raise NotCompiled("a MaxAbsScaler that clips is not compiled")
    return _shifted(None, step.scale_)


def _imputer(step: Any, dtype: Dtype) -> Transform:
    values = np.asarray(step.statistics_)
    if values.dtype.kind not in "fiu" or np.isnan(values).any():
        raise NotCompiled("a SimpleImputer is compiled if it has a number for every column")
    if step.add_indicator or not isinstance(step.missing_values, int | float):
        raise NotCompiled("a SimpleImputer is compiled without an indicator, and for missing values that are numbers")
    filling, missing = values.astype(dtype), step.missing_values

    def apply(x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x) if missing != missing else x == missing, filling, x)

    return apply


def _function(step: Any, dtype: Dtype) -> Transform:
    if step.func is not None:
        raise NotCompiled("a FunctionTransformer with a function is not compiled")
    return _identity


def _columns(step: Any, dtype: Dtype, *, block: bool) -> Transform:
    if step.transformer_weights or step.sparse_output_:
        raise NotCompiled("a ColumnTransformer with weights or sparse output is not compiled")
    parts: list[tuple[np.ndarray, Transform]] = []
    for name, inner, _ in step.transformers_:
        chosen = np.asarray(step._transformer_to_input_indices[name], dtype=np.intp)
        if len(chosen) and not (isinstance(inner, str) and inner == "drop"):
            parts.append((chosen, transform_of(inner, dtype, block=block)))
    if not parts:
        raise NotCompiled("a ColumnTransformer that keeps no column is not compiled")
    order: Literal["C", "F"] = "C" if block else "F"

    def apply(x: np.ndarray) -> np.ndarray:
        return np.hstack([transform(x[:, chosen].copy(order=order)) for chosen, transform in parts])

    return apply


_SIMPLE: dict[type, Callable[[Any, Dtype], Transform]] = {
    StandardScaler: _standard,
    RobustScaler: _robust,
    MinMaxScaler: _min_max,
    MaxAbsScaler: _max_abs,
    SimpleImputer: _imputer,
    FunctionTransformer: _function,
}
