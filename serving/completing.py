"""Completing rows with looked-up features: which rows need what, and how it is put in place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.errors import InvalidFeatures
from registry.mlmodel import Column
from serving.decoding import Partial
from serving.errors import BadRequest
from serving.loading import Loaded
from serving.schema import FLOATS, INTEGERS, InputSchema, has_missing, narrow, shown


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a request left to be looked up: `names`, for the rows `index`, by the `keys` of these rows."""

    names: tuple[str, ...]
    index: np.ndarray
    keys: dict[str, list[Any]]


def find_gaps(loaded: Loaded, partial: Partial) -> Gaps | None:
    """The gaps of a request, or None if it brought every column that could be looked up."""
    assert loaded.lookup is not None
    columns = [c.name for c in loaded.schema.columns if c.name in loaded.lookup.columns]
    names = tuple(c for c in columns if c not in partial.given or c in partial.absent)
    if not names:
        return None
    needed = np.zeros(partial.rows, dtype=bool)
    for name in names:
        needed |= partial.absent.get(name, True)
    index = np.flatnonzero(needed)
    rows = index.tolist()
    return Gaps(names, index, {key: [values[i] for i in rows] for key, values in partial.keys.items()})


def fill_gaps(loaded: Loaded, partial: Partial, gaps: Gaps, found: Mapping[str, np.ndarray]) -> None:
    """Puts looked-up columns in their rows; what a row brought itself stays."""
    columns = {c.name: c for c in loaded.schema.columns}
    for name in gaps.names:
        column = fit(columns[name], found[name])
        absent = partial.absent.get(name)
        if absent is None:  # then every row needed it
            partial.given[name] = column
            continue
        whole = partial.given[name]
        mine = absent[gaps.index]
        whole = whole.astype(np.result_type(whole, column), copy=True)
        whole[gaps.index[mine]] = column[mine]
        partial.given[name] = whole


def fit(column: Column, values: np.ndarray) -> np.ndarray:
    """A looked-up column in the dtype of its signature. Features that do not fit are the store's fault, not a 400."""
    dtype = FLOATS.get(column.type) or INTEGERS.get(column.type)
    if dtype is None or (dtype.kind == "i" and values.dtype.kind == "f"):
        return values
    try:
        return narrow(column.name, values, dtype)
    except BadRequest as error:
        raise InvalidFeatures(f"the stored feature {column.name[:64]!r} does not fit a {column.type}") from error


def check_present(schema: InputSchema, partial: Partial) -> None:
    """Raises BadRequest if a required column has a missing value after the lookup."""
    for column in schema.columns:
        values = partial.given.get(column.name)
        if values is not None and column.required and has_missing(values):
            raise BadRequest(f"Column {shown(column.name)!r} is required and has a missing value.")
