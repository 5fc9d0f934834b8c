"""Numbers of a larger JSON body straight into arrays, without a Python object for each of them.

Taken is only what is sure to mean the same as it does to `orjson`; everything else, bad input included, is left to that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
import simdjson

#: Below so many bytes the other way is as fast.
LEAST_BYTES = 2048
#: Fields of an object that somebody may have use for; finding one takes a look at all before it.
MOST_FIELDS = 16
_BRACKET = ord("[")
_Convert = Callable[[Any], tuple[Any, int]]


def parse_rows(body: bytes) -> dict[str, Any] | None:
    """A V1 document whose `instances` are an array of float64, as deep as they are nested; None if they are not that."""
    if body.find(b"{", 1, 64) != -1:  # most likely rows by column name
        return None
    return _parse(body, "instances", _array)


def parse_tensors(body: bytes, keys: frozenset[str]) -> dict[str, Any] | None:
    """A V2 document whose tensors have arrays of float64 as `data`, all of them, and are no entity `keys`; else None."""
    if body.find(b'"FP', 0, 512) == -1:  # most likely integers or texts
        return None
    document = _parse(body, "inputs", _tensors)
    if document is None or any(tensor["name"] in keys for tensor in document["inputs"]):
        return None  # the values of a key keep their type
    return document


def _parse(body: bytes, key: str, convert: _Convert) -> dict[str, Any] | None:
    if not body.startswith(b"{") or b"\\" in body:
        return None  # a byte order mark would be skipped, and an escape may hide what is counted below
    try:
        # A parser of its own: it costs half a microsecond, and nothing of a large body stays.
        document, lists = _fields(simdjson.Parser().parse(body), key, convert)
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError):
        return None
    every = np.count_nonzero(np.frombuffer(body, np.uint8) == _BRACKET)
    return document if lists == every else None  # else something was nested where only numbers were looked for


def _fields(given: Any, special: str, convert: _Convert) -> tuple[dict[str, Any], int]:
    """An object whose field `special` is converted, and how many lists there are in it."""
    fields: dict[str, Any] = {}
    lists = 0
    if len(given) > MOST_FIELDS:
        raise ValueError("too many to look each of them up")
    for name in given:
        value, more = convert(given[name]) if name == special else _plain(given[name])
        fields[name] = value
        lists += more
    if special not in fields or len(fields) != len(given):
        raise ValueError("a name is missing, or there twice")
    return fields, lists


def _plain(value: Any) -> tuple[Any, int]:
    if isinstance(value, simdjson.Object | simdjson.Array):
        whole = value.as_dict() if isinstance(value, simdjson.Object) else value.as_list()
        text: Any = value.mini  # bytes, whatever its type says
        return whole, text.count(b"[")
    return value, 0


def _tensors(inputs: Any) -> tuple[list[dict[str, Any]], int]:
    tensors, lists = [], 1
    for given in inputs:
        tensor, more = _fields(given, "data", _array)
        if tensor["datatype"] not in ("FP64", "FP32", "FP16") or not isinstance(tensor["name"], str):
            raise ValueError("no tensor, or one whose large integers are no float64")
        tensors.append(tensor)
        lists += more
    return tensors, lists


def _array(given: Any) -> tuple[np.ndarray, int]:
    """Nested lists of numbers as an array, and how many lists there are."""
    if not isinstance(given, simdjson.Array):
        raise TypeError("no list")
    shape: list[int] = []
    lists = 0
    level: list[Any] = [given]
    while True:
        (size,) = set(map(len, level))
        shape.append(size)
        lists += len(level)
        if not isinstance(level[0][0], simdjson.Array):
            break
        level = list(chain.from_iterable(level))
    values = np.frombuffer(given.as_buffer(of_type="d"), np.float64)
    if len(values) != math.prod(shape):
        raise ValueError("ragged")
    return values.reshape(shape), lists
