"""Values between Feast and arrays: which types fit, entity keys checked, feature columns read from the protocol buffer.

Feast itself turns `1.5`, `true` and `"3"` into an integer key without a word, so keys are checked before it sees them;
and its own conversions (`to_dict`, `to_df`) cost several times what reading the message by hand costs.
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
KEY_TYPES = frozenset({"INT32", "INT64", "STRING"})
_BITS = {"INT32": 31, "INT64": 63}


def check_key(name: str, type_name: str, values: Sequence[Any] | None) -> list[Any]:
    """The values of one join key as Feast may take them, from none (no row brought the key) or one per row.

    Raises InvalidEntity: booleans, strings and numbers never stand for each other; an integral float is an integer.
    """
    if values is None or None in values:
        raise InvalidEntity(f"The entity key {name[:64]!r} is missing in a row that does not bring every column.")
    if type_name == "STRING":
        if set(map(type, values)) != {str}:
            raise InvalidEntity(f"The entity key {name[:64]!r} takes strings, one per row.")
        return list(values)
    whole = [int(v) if type(v) is float and v.is_integer() else v for v in values]
    limit = 2 ** _BITS[type_name]
    if set(map(type, whole)) != {int} or not (-limit <= min(whole) and max(whole) < limit):
        raise InvalidEntity(f"The entity key {name[:64]!r} takes integers ({type_name.lower()}), one per row.")
    return whole


def read_column(values: Sequence[Any], column_type: str) -> np.ndarray:
    """Feast values as an array `[n]`: float64 for numbers (int64 if integers and none is missing), object for strings,
    booleans and bytes, datetime64[ns] in UTC. A missing value is NaN, None or NaT."""
    plain = [None if (kind := v.WhichOneof("val")) is None else getattr(v, kind) for v in values]
    if column_type in ("double", "float"):
        return np.array(plain, dtype=np.float64)
    if column_type in ("long", "integer"):
        return np.array(plain, dtype=np.float64 if None in plain else np.int64)
    if column_type == "datetime":
        return np.array(plain, dtype="datetime64[s]").astype("datetime64[ns]")
    array = np.empty(len(plain), dtype=bool if column_type == "boolean" and None not in plain else object)
    array[:] = plain
    return array
