"""Values between requests, Feast and arrays: which types fit, and what a request's keys and inputs may be.

Feast itself turns `1.5`, `true` and `"3"` into an integer key without a word, so keys are checked before it sees them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from features.errors import InvalidEntity

#: Column types of a model's signature, and the Feast types that may stand for them.
FITTING: dict[str, frozenset[str]] = {
    "double": frozenset({"DOUBLE", "FLOAT", "INT32", "INT64"}),
    "float": frozenset({"DOUBLE", "FLOAT", "INT32", "INT64"}),
    "long": frozenset({"INT32", "INT64"}),
    "integer": frozenset({"INT32"}),
    "boolean": frozenset({"BOOL"}),
    "string": frozenset({"STRING"}),
    "binary": frozenset({"BYTES"}),
    "datetime": frozenset({"UNIX_TIMESTAMP"}),
}
FLOATING = frozenset({"DOUBLE", "FLOAT"})
KEY_TYPES = frozenset({"INT32", "INT64", "STRING"})
REQUEST_TYPES = KEY_TYPES | FLOATING | {"BOOL"}
_BITS = {"INT32": 31, "INT64": 63}
_NAMED = {"STRING": "strings", "BOOL": "true or false", "DOUBLE": "numbers", "FLOAT": "numbers"}
_TAKES: dict[str, set[type]] = {"STRING": {str}, "BOOL": {bool}, "DOUBLE": {int, float}, "FLOAT": {int, float}}


def check_key(name: str, type_name: str, values: Sequence[Any] | None, what: str = "entity key") -> list[Any]:
    """The values of one join key or request-time input, from none (no row brought it) or one per row.

    Raises InvalidEntity: booleans, strings and numbers never stand for each other; an integral float is an integer.
    """
    if values is None or None in values:
        raise InvalidEntity(f"The {what} {name[:64]!r} is missing in a row that does not bring every column.")
    if type_name in _TAKES:
        if not set(map(type, values)) <= _TAKES[type_name]:
            raise InvalidEntity(f"The {what} {name[:64]!r} takes {_NAMED[type_name]}, one per row.")
        return list(values)
    whole = [int(v) if type(v) is float and v.is_integer() else v for v in values]
    limit = 2 ** _BITS[type_name]
    if set(map(type, whole)) != {int} or not (-limit <= min(whole) and max(whole) < limit):
        raise InvalidEntity(f"The {what} {name[:64]!r} takes integers ({type_name.lower()}), one per row.")
    return whole


def to_column(plain: Sequence[Any], column_type: str) -> np.ndarray:
    """Plain values as an array `[n]`: float64 for numbers (int64 if integers and none is missing), object for strings,
    booleans and bytes, datetime64[ns] in UTC from seconds. A missing value is NaN, None or NaT."""
    if column_type in ("double", "float"):
        return np.array(plain, dtype=np.float64)
    if column_type in ("long", "integer"):
        return np.array(plain, dtype=np.float64 if None in plain else np.int64)
    if column_type == "datetime":
        return np.array(plain, dtype="datetime64[s]").astype("datetime64[ns]")
    array = np.empty(len(plain), dtype=bool if column_type == "boolean" and None not in plain else object)
    array[:] = plain
    return array
