"""Open Inference tensors: from the wire's names, datatypes and shapes to a version's schema. Shared by REST and gRPC.

A column signature takes one tensor per column (`[n]` or `[n, 1]`) or, if all columns are numeric, one tensor `[n, k]` of
any name in signature order. A tensor signature takes its own tensors. Any number stands for a float, and one without a
fraction for an integer, if every value is in range. Infinity is no value: JSON could not carry it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from registry.mlmodel import Column, Tensor
from serving.decoding import Arrays, Partial, check_shape, complete, decode_instances, json_array, lay_out, numbers
from serving.errors import BadRequest
from serving.runtimes.base import DATATYPES
from serving.schema import FLOATS, INTEGERS, NUMERIC, InputSchema, cast, has_missing, integers, kinds_of, narrow, shown

NUMPY = {datatype: np.dtype(name) for name, datatype in DATATYPES.items()}
#: More than any array has. Of a hundred thousand sizes the product alone would take seconds.
MOST_DIMENSIONS = 32
_KINDS = {"f": "fi", "i": "fi", "u": "fi", "b": "b"}


@dataclass(slots=True)
class Given:
    """One tensor of a request. `flat` is a list of JSON values, of `bytes` for BYTES over gRPC, or a typed array; `known` are
    the Python types in a list, where somebody has looked already."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    flat: list[Any] | np.ndarray
    known: set[type] | None = None

    @property
    def types(self) -> set[type]:
        """The Python types in a list: looking twice in a large one would be dear."""
        if self.known is None:
            assert isinstance(self.flat, list)
            self.known = kinds_of(self.flat)
        return self.known

    @property
    def kind(self) -> str:
        """f, i, b or s: what the values are."""
        return "s" if self.datatype == "BYTES" else {"F": "f", "I": "i", "U": "i", "B": "b"}[self.datatype[0]]


def check_given(tensor: Given) -> Given:
    """Raises BadRequest unless datatype, shape and number of values agree."""
    name = shown(tensor.name)
    if tensor.datatype != "BYTES" and tensor.datatype not in NUMPY:
        raise BadRequest(f"Tensor {name!r} has an unknown datatype.")
    if len(tensor.shape) > MOST_DIMENSIONS:
        raise BadRequest(f"Tensor {name!r} has more than {MOST_DIMENSIONS} dimensions.")
    if not tensor.shape or any(n < 0 for n in tensor.shape) or math.prod(tensor.shape) != len(tensor.flat):
        raise BadRequest(f"Tensor {name!r} has {len(tensor.flat)} values, which do not fill its shape.")
    if tensor.shape[0] == 0:
        raise BadRequest(f"Tensor {name!r} has no rows.")
    if 0 in tensor.shape:
        raise BadRequest(f"Tensor {name!r} has a dimension of 0, and so no values.")
    return tensor


def decode_tensors(schema: InputSchema, tensors: Sequence[Given], keys: frozenset[str]) -> Partial:
    """The rows of a request's tensors. Raises BadRequest that names the tensor or column."""
    named, rows = _by_name(tensors)
    if schema.tensors:
        return Partial(rows, arrays=_tensors(schema, named))
    if len(tensors) == 1 and _is_matrix(schema, tensors[0]):
        return Partial(rows, arrays=_matrix(schema, tensors[0]))
    return _columns(schema, named, rows, keys)


def decode_columns(schema: InputSchema, tensors: Sequence[Given], keys: frozenset[str]) -> Partial:
    """The same, where every tensor is a column or a key. Raises BadRequest that names the tensor or column."""
    return _columns(schema, *_by_name(tensors), keys)


def _by_name(tensors: Sequence[Given]) -> tuple[dict[str, Given], int]:
    """The tensors by name, and how many rows they have."""
    if not tensors:
        raise BadRequest("'inputs' must have at least one tensor.")
    named = {t.name: t for t in tensors}
    if len(named) != len(tensors):
        raise BadRequest("Two input tensors have the same name.")
    rows = tensors[0].shape[0]
    if any(t.shape[0] != rows for t in tensors):
        raise BadRequest("All input tensors must have the same first dimension, the number of rows.")
    return named, rows


def _is_matrix(schema: InputSchema, tensor: Given) -> bool:
    width = len(schema.columns)
    return len(tensor.shape) == 2 and schema.all_numeric and (tensor.shape[1] != 1 or width == 1)


def _matrix(schema: InputSchema, tensor: Given) -> Arrays:
    rows, width = tensor.shape
    if width != len(schema.columns):
        raise BadRequest(f"Tensor {shown(tensor.name)!r} must have the shape [-1, {len(schema.columns)}].")
    if isinstance(tensor.flat, list):
        _check_declared(tensor, tensor.flat)
        if tensor.kind not in "fi":
            raise BadRequest(f"Tensor {shown(tensor.name)!r} must be numeric.")
        if schema.matrix is not None and type(None) not in tensor.types:
            fast = numbers(tensor.flat, schema.matrix)
            if fast is not None:
                return (fast.reshape(rows, width),)
        partial = decode_instances(schema, [tensor.flat[i * width : (i + 1) * width] for i in range(rows)], frozenset())
        assert partial.arrays is not None
        return partial.arrays
    matrix = tensor.flat.reshape(rows, width)
    if schema.matrix is not None and tensor.kind in "fi":
        whole = _finite(matrix, schema.matrix)
        if whole is not None:
            return (whole,)
    return lay_out(schema, [_from_array(c, matrix[:, i], tensor.kind) for i, c in enumerate(schema.columns)])


def _finite(matrix: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray | None:
    """The matrix in a dtype of floats; None if a value is missing or does not fit, so that its column must be looked for."""
    with np.errstate(over="ignore"):
        matrix = matrix.astype(dtype, copy=False)
    return matrix if np.isfinite(matrix).all() else None


def _columns(schema: InputSchema, named: dict[str, Given], rows: int, keys: frozenset[str]) -> Partial:
    known = keys.union(schema.names)
    for name in named:
        if name not in known and not schema.ignore_extra:
            raise BadRequest(f"Tensor {shown(name)!r} is no column of the model's signature.")
    partial = Partial(rows, keys={k: _key(named[k]) for k in keys if k in named})
    for column in schema.columns:
        if column.name in named:
            partial.given[column.name] = column_of(column, named[column.name])
    if not partial.keys:
        partial.arrays = complete(schema, partial)
    return partial


def column_of(column: Column, tensor: Given) -> np.ndarray:
    """One named tensor as its column's array `[n]`."""
    _check_one_column(tensor)
    if isinstance(tensor.flat, np.ndarray):
        return _from_array(column, tensor.flat, tensor.kind)
    if tensor.kind == "s":
        return cast(column, _texts(column, tensor.flat))
    _check_declared(tensor, tensor.flat)
    _check_kind(column, tensor.kind)
    return cast(column, tensor.flat)


def _check_one_column(tensor: Given) -> None:
    if len(tensor.shape) > 2 or (len(tensor.shape) == 2 and tensor.shape[1] != 1):
        raise BadRequest(f"Tensor {shown(tensor.name)!r} must have the shape [n] or [n, 1].")


def _texts(column: Column, values: list[Any]) -> list[Any]:
    """BYTES as strings; a binary column keeps raw bytes. JSON strings pass through."""
    if column.type == "binary":
        return values
    try:
        return [v.decode("utf-8") if isinstance(v, bytes) else v for v in values]
    except UnicodeDecodeError:
        raise BadRequest(f"Column {shown(column.name)!r} takes UTF-8 strings.") from None


def _check_kind(column: Column, kind: str) -> None:
    takes = "fi" if column.type in NUMERIC else "b" if column.type == "boolean" else "s"
    if kind not in takes:
        raise BadRequest(
            f"Column {shown(column.name)!r} is a {column.type}, and a tensor of that datatype cannot stand for it."
        )


def _from_array(column: Column, array: np.ndarray, kind: str) -> np.ndarray:
    _check_kind(column, kind)
    if column.required and has_missing(array):
        raise BadRequest(f"Column {shown(column.name)!r} is required and has a missing value.")
    if column.type in FLOATS:
        if _has_infinity(array):
            raise BadRequest(f"Column {shown(column.name)!r} takes finite numbers ({column.type}).")
        return narrow(column.name, _as_float(array), FLOATS[column.type])
    return integers(column, array) if column.type in INTEGERS else cast(column, array.tolist())


def _has_infinity(array: np.ndarray) -> bool:
    return array.dtype.kind == "f" and bool(np.isinf(array).any())


def _as_float(array: np.ndarray) -> np.ndarray:
    return array if array.dtype.kind == "f" else array.astype(np.float64)


def _check_declared(tensor: Given, values: list[Any]) -> None:
    """JSON values must be what the datatype says, before they are converted to anything."""
    kinds = tensor.types - {type(None)}
    allowed: dict[str, set[type]] = {"f": {int, float}, "i": {int, float}, "b": {bool}, "s": {str, bytes}}
    ok = kinds <= allowed[tensor.kind]
    if ok and tensor.kind == "i":
        bounds = np.iinfo(NUMPY[tensor.datatype])
        present = [v for v in values if v is not None]
        ok = not present or (bounds.min <= min(present) and max(present) <= bounds.max)
        ok = ok and not (float in kinds and any(v % 1 for v in present))
    if not ok:
        raise BadRequest(f"Tensor {shown(tensor.name)!r} has values that are no {tensor.datatype}.")


def _key(tensor: Given) -> list[Any]:
    """An entity key's values, one per row."""
    _check_one_column(tensor)
    if isinstance(tensor.flat, np.ndarray):
        return list(tensor.flat.tolist())
    return _texts(Column(tensor.name, "string"), tensor.flat)


def _tensors(schema: InputSchema, named: dict[str, Given]) -> Arrays:
    names = schema.names
    if len(named) == len(names) == 1 and schema.tensors[0].name is None:
        named = {names[0]: next(iter(named.values()))}
    for name in named:
        if name not in names:
            raise BadRequest(f"Tensor {shown(name)!r} is not in the model's signature.")
    for name in names:
        if name not in named:
            raise BadRequest(f"Tensor {shown(name)!r} is missing.")
    return tuple(_tensor(spec, named[name]) for spec, name in zip(schema.tensors, names, strict=True))


def _tensor(spec: Tensor, tensor: Given) -> np.ndarray:
    check_shape(spec, tensor.name, tensor.shape)
    dtype = np.dtype(spec.dtype)
    takes = _KINDS.get(dtype.kind, "s")
    if tensor.kind not in takes:
        raise BadRequest(f"Tensor {shown(tensor.name)!r} takes {dtype.name}.")
    if isinstance(tensor.flat, list):
        _check_declared(tensor, tensor.flat)
        return json_array(tensor.name, _texts(Column(tensor.name, "string"), tensor.flat), dtype).reshape(tensor.shape)
    if has_missing(tensor.flat):
        raise BadRequest(f"Tensor {shown(tensor.name)!r} has a missing value.")
    if _has_infinity(tensor.flat):
        raise BadRequest(f"Tensor {shown(tensor.name)!r} takes finite numbers.")
    array = _as_float(tensor.flat) if dtype.kind == "f" else tensor.flat
    return narrow(tensor.name, array, dtype).reshape(tensor.shape)
