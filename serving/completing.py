"""Completing rows with looked-up features: which rows need what, and how it is put in place."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from features.blocks import Matrix
from features.errors import FeatureError, InvalidFeatures
from features.lookup import Completed, FeastLookup, Need
from monitoring.metrics import Metrics
from registry.mlmodel import Column
from serving.decoding import Arrays, Partial
from serving.errors import BadRequest, DeadlineExceeded
from serving.schema import FLOATS, INTEGERS, InputSchema, has_missing, narrow, shown

#: How many row ranges, columns or parts a note on a lookup shows: it travels in a header.
MOST = 16


@dataclass(frozen=True, slots=True)
class Gaps:
    """What a request left to be looked up, for its rows `index`."""

    need: Need
    index: np.ndarray


def find_gaps(schema: InputSchema, lookup: FeastLookup, partial: Partial, seconds: float) -> Gaps | None:
    """The gaps of a request, or None if it brought every column that could be looked up. They are due in `seconds`."""
    columns = [c.name for c in schema.columns if c.name in lookup.columns]
    names = tuple(c for c in columns if c not in partial.given or c in partial.absent)
    if not names:
        return None
    if not partial.absent:
        given = {name: partial.given[name] for name in lookup.sources if name in partial.given}
        return Gaps(Need(names, partial.rows, partial.keys, seconds, {}, given), np.arange(partial.rows))
    return _some_rows(lookup, partial, names, seconds)


def _some_rows(lookup: FeastLookup, partial: Partial, names: tuple[str, ...], seconds: float) -> Gaps:
    """The gaps of a request whose rows do not all leave the same open."""
    needed = np.zeros(partial.rows, dtype=bool)
    for name in names:
        needed |= partial.absent.get(name, True)
    index = np.flatnonzero(needed)
    rows = index.tolist()
    keys = {key: [values[i] for i in rows] for key, values in partial.keys.items()}
    wanted = {name: partial.absent[name][index] for name in names if name in partial.absent}
    given = {name: partial.given[name][index] for name in lookup.sources if name in partial.given}
    return Gaps(Need(names, len(rows), keys, seconds, wanted, given), index)


async def look_up(lookup: FeastLookup, need: Need, metrics: Metrics, pair: tuple[str, str]) -> Completed:
    """The lookup, timed and counted for `pair` (model, version). Raises what the lookup raises."""
    began = time.perf_counter()
    try:
        completed = await lookup(need)
    except asyncio.CancelledError:  # the caller hung up: that says nothing of the store
        metrics.lookups.labels(*pair, "cancelled").inc()
        raise
    except BaseException as error:
        metrics.lookups.labels(*pair, "error").inc()
        if isinstance(error, FeatureError) and error.cause is not None:
            metrics.feature_rows.labels(*pair, error.cause, "error").inc(error.rows)
        raise
    metrics.lookups.labels(*pair, "ok").inc()
    metrics.lookup_latency.labels(*pair).observe(time.perf_counter() - began)
    for event in completed.events:
        metrics.feature_rows.labels(*pair, event.cause, event.action).inc(len(event.rows))
    return completed


def share(deadline: float | None) -> float:
    """How long features may take: half of what is left, so that the model can still answer. Raises DeadlineExceeded."""
    left = math.inf if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise DeadlineExceeded("The request's deadline passed before its features were looked up.")
    return left / 2


def matrix_of(schema: InputSchema, partial: Partial, found: Mapping[str, np.ndarray]) -> Arrays | None:
    """What was looked up as the model takes it, if that is just one matrix with every column in its place."""
    if partial.given or not isinstance(found, Matrix) or schema.matrix != found.array.dtype:
        return None
    return (found.array,) if found.names == schema.names else None


def fill_gaps(schema: InputSchema, partial: Partial, gaps: Gaps, found: Mapping[str, np.ndarray]) -> None:
    """Puts looked-up columns in their rows; what a row brought itself stays."""
    columns = {c.name: c for c in schema.columns}
    for name in gaps.need.names:
        absent = partial.absent.get(name)
        if absent is None:  # then every row needed it
            partial.given[name] = fit(columns[name], found[name])
            continue
        mine = absent[gaps.index]
        column, whole = fit(columns[name], found[name][mine]), partial.given[name]
        whole = whole.astype(np.result_type(whole, column), copy=True)
        whole[gaps.index[mine]] = column
        partial.given[name] = whole


def tell(gaps: Gaps, completed: Completed) -> str:
    """What was done for which rows, compactly: `store;rows=0-31, default;cause=stale;columns=load+vibration;rows=2+5-7`."""
    parts = [f"store;rows={ranges(gaps.index)}"]
    merged: dict[tuple[str, str, bytes], list[str]] = {}
    for event in completed.events:
        merged.setdefault((event.action, event.cause, event.rows.tobytes()), []).append(quote(event.column))
    for (action, cause, rows), columns in merged.items():
        shown = "+".join(columns[:MOST]) + ("+..." if columns[MOST:] else "")
        where = ranges(gaps.index[np.frombuffer(rows, dtype=np.intp)])
        parts.append(f"{action};cause={cause};columns={shown};rows={where}")
    return ", ".join(parts[:MOST])


def ranges(rows: np.ndarray) -> str:
    """Ascending row numbers as ranges, at most MOST of them: `0-3+7`."""
    pieces = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1)
    shown = [str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in pieces[:MOST]]
    return "+".join(shown) + (f"+({len(pieces) - MOST} more)" if pieces[MOST:] else "")


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
