"""Rows to try a version with: its own input example, or blanks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from registry.mlmodel import MLmodel
from serving.decoding import Arrays, Partial, complete, decode_instances
from serving.schema import InputSchema, blank


def blank_rows(schema: InputSchema) -> Arrays:
    """One row of harmless values, for a version without an example."""
    if schema.columns:
        return complete(schema, Partial(1, given={c.name: blank(c, 1) for c in schema.columns}))
    return tuple(np.zeros([1, *(max(1, n) for n in t.shape[1:])], dtype=np.dtype(t.dtype)) for t in schema.tensors)


def example_rows(model: MLmodel, schema: InputSchema) -> Arrays | None:
    """The model's own input example as arrays, or None if it has none that fits its signature."""
    try:
        return _decode_example(model.example or {}, schema)
    except Exception:  # noqa: BLE001  an example is a courtesy; zeros do as well
        return None


def _decode_example(example: Mapping[str, Any], schema: InputSchema) -> Arrays | None:
    if schema.tensors:
        inputs = example.get("inputs")
        named = len(schema.tensors) > 1 or isinstance(inputs, dict)
        rows = (
            [dict(zip(inputs, r, strict=True)) for r in zip(*inputs.values(), strict=True)]
            if named and inputs
            else inputs
        )
        return decode_instances(schema, rows, frozenset()).arrays if rows else None
    split = example.get("dataframe_split", {})
    rows = (
        [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]
        if "columns" in split
        else split.get("data", example.get("inputs"))  # a network is logged with an array, whatever its signature
    )
    return decode_instances(schema, rows, frozenset()).arrays if rows else None
