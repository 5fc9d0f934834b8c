"""The input schema of one version, compiled once at load: how rows become arrays.

Layout: if all columns are doubles, or all are floats, one matrix `[n, k]` in signature order; otherwise one array per
column `[n]`; for a tensor signature one array per tensor `[n, …]`. `null` and NaN mean *missing*.

| column        | JSON that fits                              | array                                             |
|---------------|---------------------------------------------|---------------------------------------------------|
| double, float | any number                                  | float64, float32; missing is NaN                  |
| long, integer | integers and integral floats, in range      | int64, int32; optional: float64, missing is NaN   |
| boolean       | true, false                                 | bool; optional: object, missing is None           |
| string        | strings                                     | object; missing is None                           |
| binary        | base64 strings                              | object of bytes; missing is None                  |
| datetime      | ISO 8601 strings                            | datetime64[ns], UTC; missing is NaT               |
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import prod
from typing import Any

import numpy as np

from registry.errors import InvalidModel
from registry.mlmodel import Column, Signature, Tensor
from serving.errors import BadRequest

FLOATS: dict[str, np.dtype[Any]] = {"double": np.dtype("float64"), "float": np.dtype("float32")}
INTEGERS: dict[str, np.dtype[Any]] = {"long": np.dtype("int64"), "integer": np.dtype("int32")}
NUMERIC = {**FLOATS, **INTEGERS}
#: Of the input of one row, in bytes.
LARGEST_ROW = 64 << 20
_DTYPE, _WIDEST = re.compile(r"[a-z]+\d{0,3}(\[[a-zA-Z]{1,2}\])?"), 32
#: Up to here a double holds every integer.
EXACT = 2**53
_NUMBERS = frozenset({int, float})


def shown(name: str) -> str:
    """A name as an error may show it: at most 64 characters."""
    return name[:64]


@dataclass(frozen=True, slots=True)
class InputSchema:
    """What a version takes. `matrix` is the dtype of the one-matrix layout, or None."""

    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    matrix: np.dtype[Any] | None = None
    ignore_extra: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """Column names in signature order; tensor names for a tensor signature (`input-0` if unnamed)."""
        return tuple(c.name for c in self.columns) or tuple(tensor_name(t, i) for i, t in enumerate(self.tensors))

    @property
    def all_numeric(self) -> bool:
        """Whether one `[n, k]` tensor can stand for all columns."""
        return bool(self.columns) and all(c.type in NUMERIC for c in self.columns)

    @property
    def of_numbers(self) -> bool:
        """Whether every column, or every tensor, is of numbers."""
        if self.columns:
            return self.matrix is not None or self.all_numeric
        return all(np.dtype(t.dtype).kind in "fiu" for t in self.tensors)

    @property
    def one_array(self) -> bool:
        """Whether the rows are one array of numbers."""
        return self.matrix is not None or (len(self.tensors) < 2 and self.of_numbers)

    @property
    def exact(self) -> bool:
        """Whether an integer must stay what it is: not all that it takes are floats."""
        if self.columns:
            return self.matrix is None and any(c.type in INTEGERS for c in self.columns)
        return any(np.dtype(t.dtype).kind in "iu" for t in self.tensors)

    def rows(self, arrays: tuple[np.ndarray, ...]) -> int:
        """The number of rows that decoded arrays hold."""
        return len(arrays[0])


def tensor_name(tensor: Tensor, index: int) -> str:
    """The name a tensor has on the wire."""
    return tensor.name or f"input-{index}"


def compile_schema(signature: Signature | None, *, ignore_extra: bool = False) -> InputSchema:
    """The schema of a signature. Raises InvalidModel if there is none or if a type cannot be served."""
    if signature is None:
        raise InvalidModel("the version has no input signature: log it again with signature= or input_example=")
    if isinstance(signature.inputs[0], Tensor):
        tensors = tuple(t for t in signature.inputs if isinstance(t, Tensor))
        if any(t.shape[:1] != (-1,) for t in tensors):
            raise InvalidModel("the first dimension of every input tensor must be -1, the number of rows")
        if sum(map(_bytes_of, tensors)) > LARGEST_ROW:
            raise InvalidModel(f"one row of the signature takes more than {LARGEST_ROW} bytes")
        return InputSchema(tensors=tensors, ignore_extra=ignore_extra)
    columns = tuple(c for c in signature.inputs if isinstance(c, Column))
    for column in columns:
        if column.type not in _CASTS:
            raise InvalidModel(f"column {shown(column.name)!r} has the type {column.type}, which cannot be served yet")
    types = {c.type for c in columns}
    matrix = FLOATS.get(types.pop()) if len(types) == 1 else None
    return InputSchema(columns=columns, matrix=matrix, ignore_extra=ignore_extra)


def _bytes_of(tensor: Tensor) -> int:
    """Of one row, with each dimension of any size as one. Raises InvalidModel for a type that is none."""
    try:
        dtype = np.dtype(tensor.dtype) if _DTYPE.fullmatch(tensor.dtype) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.itemsize > _WIDEST:
        raise InvalidModel("the signature has a tensor whose type is none")
    return max(1, dtype.itemsize) * prod(max(1, size) for size in tensor.shape)


def kinds_of(values: Sequence[Any]) -> set[type]:
    """The Python types among the values, found without a Python loop."""
    return set(map(type, values))


def cast(column: Column, values: Sequence[Any]) -> np.ndarray:
    """One column of JSON values as an array `[n]`. Raises BadRequest that names the column, never a value."""
    kinds = kinds_of(values)
    if type(None) in kinds and column.required:
        raise BadRequest(f"Column {shown(column.name)!r} is required and has a missing value.")
    kinds.discard(type(None))
    return _CASTS[column.type](column, values, kinds)


def missing(column: Column, rows: int) -> np.ndarray:
    """`rows` missing values of an optional column. Raises BadRequest if the column is required."""
    if column.required:
        raise BadRequest(f"Column {shown(column.name)!r} is missing.")
    return cast(column, [None] * rows)


def blank(column: Column, rows: int) -> np.ndarray:
    """`rows` harmless values: zero, false, empty, the epoch. For warm-up without an example."""
    zero: dict[str, Any] = {"boolean": False, "string": "", "binary": "", "datetime": "1970-01-01"}
    return cast(column, [zero.get(column.type, 0)] * rows)


def _wrong(column: Column, expected: str) -> BadRequest:
    return BadRequest(f"Column {shown(column.name)!r} takes {expected}.")


def _floats(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= _NUMBERS:
        raise _wrong(column, f"numbers ({column.type})")
    try:
        array = np.array(values, dtype=np.float64)
    except OverflowError as error:
        raise _wrong(column, f"numbers that fit a {column.type}") from error
    return narrow(column.name, array, FLOATS[column.type])


def _integers(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= _NUMBERS:
        raise _wrong(column, f"integers ({column.type})")
    gone = np.array([v is None for v in values]) if None in values else None
    try:
        exact = np.array(
            [_whole(column, v) for v in values] if kinds != {int} or gone is not None else values, np.int64
        )
    except OverflowError:
        raise _wrong(column, f"integers that fit a {column.type}") from None
    return integers(column, exact, gone)


def _whole(column: Column, value: Any) -> int:
    """A number of JSON as an integer; one array of all would turn large integers beside fractions into doubles."""
    if type(value) is int:
        return value
    if value is not None and not value.is_integer():
        raise _wrong(column, f"integers ({column.type})")
    return int(value or 0)


def integers(column: Column, array: np.ndarray, gone: np.ndarray | None = None) -> np.ndarray:
    """Numbers for a column of integers, whatever carried them. Raises BadRequest unless they are integral and in range.

    `gone` marks the missing ones, as NaN does in an array of floats; that they may be missing has been checked.
    """
    if array.dtype.kind == "f":
        gone = np.isnan(array)
    present = array if gone is None else array[~gone]
    if not integral(present):
        raise _wrong(column, f"integers ({column.type})")
    if not within(present, INTEGERS[column.type]):
        raise _wrong(column, f"integers that fit a {column.type}")
    if column.required:
        return present.astype(INTEGERS[column.type], copy=False)
    if present.size and max(abs(present.min().item()), abs(present.max().item())) > EXACT:
        raise _wrong(column, "integers up to 2^53, because missing values share the column")
    result = array.astype(np.float64)
    if gone is not None:
        result[gone] = np.nan
    return result


def integral(array: np.ndarray) -> bool:
    """Whether every number is an integer, of whatever type; infinity is none."""
    return array.dtype.kind != "f" or bool((np.isfinite(array) & (np.trunc(array) == array)).all())


def within(array: np.ndarray, dtype: np.dtype[Any]) -> bool:
    """Whether every integral number is in the range of an integer dtype: Python compares exactly."""
    bounds = np.iinfo(dtype)
    return array.size == 0 or (bounds.min <= array.min().item() and array.max().item() <= bounds.max)


def _booleans(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= {bool}:
        raise _wrong(column, "true or false")
    return np.array(values, dtype=bool if column.required else object)


def _strings(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= {str}:
        raise _wrong(column, "strings")
    return _objects(values)


def _binaries(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= {str, bytes}:
        raise _wrong(column, "base64 strings")
    try:
        return _objects([base64.b64decode(v, validate=True) if isinstance(v, str) else v for v in values])
    except (binascii.Error, ValueError) as error:
        raise _wrong(column, "base64 strings") from error


def _datetimes(column: Column, values: Sequence[Any], kinds: set[type]) -> np.ndarray:
    if not kinds <= {str}:
        raise _wrong(column, "ISO 8601 strings")
    try:
        micros = np.array([_moment(v) for v in values], dtype="datetime64[us]")
    except (ValueError, OverflowError) as error:
        raise _wrong(column, "ISO 8601 strings") from error
    nanos = micros.astype("datetime64[ns]")
    if not np.array_equal(nanos.astype("datetime64[us]"), micros, equal_nan=True):
        raise _wrong(column, "dates between 1678 and 2261")
    return nanos


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def narrow(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers in another dtype; BadRequest if one is out of its range, or is to be an integer and has a fraction."""
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        result = array.astype(dtype)
    if dtype.kind == "f":
        fits = bool((np.isfinite(result) == np.isfinite(array)).all())
    else:
        fits = integral(array) and within(array, dtype)
    if not fits:
        raise BadRequest(f"{shown(name)!r} has a value that does not fit {dtype.name}.")
    return result


def has_missing(values: np.ndarray) -> bool:
    """Whether an array holds NaN, NaT or None."""
    if values.dtype.kind == "f":
        return bool(np.isnan(values).any())
    if values.dtype.kind == "M":
        return bool(np.isnat(values).any())
    return values.dtype.kind == "O" and any(v is None for v in values.tolist())


_CASTS: dict[str, Callable[[Column, Sequence[Any], set[type]], np.ndarray]] = {
    "double": _floats,
    "float": _floats,
    "long": _integers,
    "integer": _integers,
    "boolean": _booleans,
    "string": _strings,
    "binary": _binaries,
    "datetime": _datetimes,
}
