"""From the rows of a request to the arrays of a version's schema. Shared by every protocol.

A request is a `Partial`: the columns that were given, as arrays, and the entity keys that stand for the others.
Completing it (looking features up) and laying it out for the runtime are separate steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np

from registry.mlmodel import Column, Tensor
from serving.errors import BadRequest
from serving.schema import (
    FLOATS,
    INTEGERS,
    NUMERIC,
    InputSchema,
    cast,
    integers,
    kinds_of,
    missing,
    narrow,
    shown,
    tensor_name,
)

Arrays = tuple[np.ndarray, ...]
_NUMBERS = frozenset({int, float})


@dataclass(slots=True)
class Partial:
    """Decoded rows. Either `arrays` is complete, or `given` holds what the request brought, by column name.

    `absent[name]` marks the rows `[n]` for which a column of `given` was not brought and must be looked up.
    """

    rows: int
    arrays: Arrays | None = None
    given: dict[str, np.ndarray] = field(default_factory=dict)
    absent: dict[str, np.ndarray] = field(default_factory=dict)
    keys: dict[str, list[Any]] = field(default_factory=dict)


def decode_instances(schema: InputSchema, instances: Any, keys: frozenset[str]) -> Partial:
    """V1 rows: all lists in signature order, or all objects by column name. `keys` are entity keys that may appear.

    A schema of `one_array` takes an array of numbers as well.
    """
    if isinstance(instances, np.ndarray):
        return Partial(len(instances), arrays=_from_array(schema, instances))
    if not isinstance(instances, list) or not instances:
        raise BadRequest("'instances' must be a list with at least one row.")
    if schema.tensors:
        return _tensor_instances(schema, instances)
    kinds = kinds_of(instances)
    if kinds == {list}:
        return Partial(len(instances), arrays=_lists(schema, instances))
    if kinds == {dict}:
        return _objects(schema, instances, keys)
    raise BadRequest("Every instance must be a list in signature order, or every instance an object by column name.")


def decode_parts(schema: InputSchema, parts: Iterable[list[Any]], keys: frozenset[str]) -> Partial:
    """The same for rows that come a few at a time. Those that may bring keys are put together first."""
    if keys:
        return decode_instances(schema, list(chain.from_iterable(parts)), keys)
    kinds: set[bool] = set()
    decoded: list[Partial] = []
    for rows in parts:
        decoded.append(decode_instances(schema, rows, keys))
        kinds.add(type(rows[0]) is dict)
    columns = list(zip(*[part.arrays or () for part in decoded], strict=True))
    if len(kinds) != 1 or any(len({array.shape[1:] for array in column}) != 1 for column in columns):
        raise BadRequest("Every instance must be of the same kind and shape.")
    return Partial(sum(part.rows for part in decoded), arrays=tuple(map(np.concatenate, columns)))


def _lists(schema: InputSchema, rows: list[list[Any]]) -> Arrays:
    if any(map(len(schema.columns).__ne__, map(len, rows))):
        raise _another_width(schema)
    if schema.matrix is not None and _NUMBERS.issuperset(map(type, chain.from_iterable(rows))):
        fast = numbers(rows, schema.matrix)
        if fast is not None:
            return (fast,)
    by_column = zip(*rows, strict=True)
    return lay_out(schema, [cast(c, values) for c, values in zip(schema.columns, by_column, strict=True)])


def _from_array(schema: InputSchema, rows: np.ndarray) -> Arrays:
    if schema.tensors:
        check_shape(schema.tensors[0], schema.names[0], rows.shape)
        return (_narrowed(schema.names[0], rows, np.dtype(schema.tensors[0].dtype)),)
    if rows.shape[1:] != (len(schema.columns),):
        raise _another_width(schema)
    if schema.matrix is not None:
        return (narrow("instances", rows, schema.matrix),)
    return tuple(map(_column, schema.columns, rows.T))


def _column(column: Column, values: np.ndarray) -> np.ndarray:
    """Numbers `[n]`, none of which is missing, as their column."""
    if column.type in INTEGERS:
        return np.ascontiguousarray(integers(column, values))
    return np.ascontiguousarray(_narrowed(column.name, values, FLOATS[column.type]))


def _narrowed(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """A float of an integer goes by way of a double, as all others do."""
    return narrow(name, array.astype(np.float64, copy=False) if dtype.kind == "f" else array, dtype)


def _another_width(schema: InputSchema) -> BadRequest:
    return BadRequest(f"Every instance must have {len(schema.columns)} values: {_named(schema)}.")


def numbers(rows: list[Any], dtype: np.dtype[Any]) -> np.ndarray | None:
    """Plain numbers as one array, or None if one does not fit and must be named. JSON's are finite doubles."""
    try:
        matrix = np.array(rows, np.float64)
    except OverflowError:
        return None
    if dtype == matrix.dtype:
        return matrix
    with np.errstate(over="ignore"):
        matrix = matrix.astype(dtype)
    return matrix if np.isfinite(matrix).all() else None


def _objects(schema: InputSchema, rows: list[dict[str, Any]], keys: frozenset[str]) -> Partial:
    names = schema.names
    known = keys.union(names)
    if not schema.ignore_extra:
        extra = set().union(*map(dict.keys, rows)) - known if not keys else set(chain.from_iterable(rows)) - known
        if extra:
            raise BadRequest(f"Column {shown(min(extra))!r} is not in the model's signature: {_named(schema)}.")
    partial = Partial(len(rows), keys={k: [row.get(k) for row in rows] for k in keys if any(k in row for row in rows)})
    for column in schema.columns:
        _collect(column, rows, partial)
    if not partial.keys:
        partial.arrays = complete(schema, partial)
    return partial


_ABSENT = object()


def _collect(column: Column, rows: list[dict[str, Any]], partial: Partial) -> None:
    """Puts a column's values in `given`; rows that do not bring it are marked in `absent` where a key may stand in."""
    values = [row.get(column.name, _ABSENT) for row in rows]
    if _ABSENT not in values:
        partial.given[column.name] = cast(column, values)
        return
    gone = np.array([value is _ABSENT for value in values])
    if partial.keys:
        if gone.all():
            return
        optional = Column(column.name, column.type, required=False)
        partial.given[column.name] = cast(optional, [None if v is _ABSENT else v for v in values])
        partial.absent[column.name] = gone
    elif gone.all() or column.required:
        partial.given[column.name] = missing(column, len(rows))
    else:
        partial.given[column.name] = cast(column, [None if v is _ABSENT else v for v in values])


def complete(schema: InputSchema, partial: Partial) -> Arrays:
    """The arrays of a partial whose columns are all known; an optional one that is not is missing."""
    columns = [partial.given[c.name] if c.name in partial.given else missing(c, partial.rows) for c in schema.columns]
    return lay_out(schema, columns)


def lay_out(schema: InputSchema, columns: Sequence[np.ndarray]) -> Arrays:
    """Columns in signature order, as the runtime takes them."""
    if schema.matrix is not None:
        return (np.column_stack(columns).astype(schema.matrix, copy=False),)
    return tuple(columns)


def _tensor_instances(schema: InputSchema, instances: list[Any]) -> Partial:
    """Row format for tensors: the rows themselves for one tensor, objects by tensor name for any number."""
    if kinds_of(instances) == {dict}:
        named = _by_name(schema, instances)
    elif len(schema.tensors) == 1:
        named = {schema.names[0]: instances}
    else:
        raise BadRequest(f"Every instance must be an object with the tensors {_named(schema)}.")
    arrays = tuple(tensor_of(t, tensor_name(t, i), named[tensor_name(t, i)]) for i, t in enumerate(schema.tensors))
    return Partial(len(instances), arrays=arrays)


def _by_name(schema: InputSchema, instances: list[dict[str, Any]]) -> Mapping[str, list[Any]]:
    for row in instances:
        for name in schema.names:
            if name not in row:
                raise BadRequest(f"Tensor {shown(name)!r} is missing.")
        for name in row.keys() - set(schema.names):
            raise BadRequest(f"Tensor {shown(name)!r} is not in the model's signature: {_named(schema)}.")
    return {name: [row[name] for row in instances] for name in schema.names}


def tensor_of(tensor: Tensor, name: str, nested: list[Any]) -> np.ndarray:
    """Nested JSON lists as an array of the tensor's dtype and shape."""
    flat, shape, _ = flatten(nested, name)
    check_shape(tensor, name, shape)
    return json_array(name, flat, np.dtype(tensor.dtype)).reshape(shape)


def check_shape(tensor: Tensor, name: str, shape: tuple[int, ...]) -> None:
    """BadRequest unless the shape fits the signature, where -1 is any size but none."""
    if 0 in shape:
        raise BadRequest(f"Tensor {shown(name)!r} has a dimension of 0, and so no values.")
    fits = len(shape) == len(tensor.shape) and all(
        want in (-1, have) for want, have in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        raise BadRequest(f"Tensor {shown(name)!r} must have the shape {list(tensor.shape)}.")


def flatten(nested: list[Any], name: str) -> tuple[list[Any], tuple[int, ...], set[type]]:
    """The values of nested lists in row-major order, their shape, and their Python types. BadRequest if ragged."""
    shape: list[int] = []
    level: list[Any] = nested
    while True:
        shape.append(len(level))
        kinds = kinds_of(level)
        if list not in kinds:
            return level, _closed(shape), kinds
        if kinds != {list} or len(set(map(len, level))) != 1:
            raise BadRequest(f"Tensor {shown(name)!r} is ragged.")
        level = list(chain.from_iterable(level))


def _closed(counts: list[int]) -> tuple[int, ...]:
    """Sizes per dimension from the running products that flattening saw."""
    shape = counts[:1]
    for before, after in pairwise(counts):
        shape.append(after // before if before else 0)
    return tuple(shape)


def json_array(name: str, flat: Sequence[Any], dtype: np.dtype[Any]) -> np.ndarray:
    """Flat JSON values as a one-dimensional array of `dtype`, with the same strictness as columns have."""
    kind = {"f": "double", "i": "long", "b": "boolean", "U": "string", "S": "string", "O": "string"}.get(dtype.kind)
    if dtype.kind == "u":
        return _unsigned(name, flat, dtype)
    if kind is None:
        raise BadRequest(f"Tensor {shown(name)!r} has a datatype that JSON cannot carry.")
    array = cast(Column(name, kind), flat)
    return narrow_to(name, array, dtype)


def _unsigned(name: str, flat: Sequence[Any], dtype: np.dtype[Any]) -> np.ndarray:
    if not kinds_of(flat) <= _NUMBERS or any(v < 0 or v != int(v) or v > np.iinfo(dtype).max for v in flat):
        raise BadRequest(f"Tensor {shown(name)!r} takes integers that fit {dtype.name}.")
    return np.array([int(v) for v in flat], dtype=dtype)


def narrow_to(name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """Converts between widths of one kind; strings and objects stay as they are."""
    return narrow(name, array, dtype) if dtype.kind in "fiu" else array


def _named(schema: InputSchema) -> str:
    text = ", ".join(schema.names)
    return text if len(text) <= 300 else text[:300] + "…"


__all__ = ["FLOATS", "NUMERIC", "Partial", "complete", "decode_instances", "lay_out"]
