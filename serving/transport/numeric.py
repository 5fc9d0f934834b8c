"""Numbers of a larger JSON body straight into arrays, without a Python object for each of them.

Taken is only what is sure to mean the same as it does to `orjson`; everything else, bad input included, is left to that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
import simdjson

from serving.errors import BadRequest
from serving.schema import EXACT, narrow
from serving.tensors import NUMPY

#: Below so many bytes the other way is as fast.
LEAST_BYTES = 2048
#: Fields of an object that somebody may have use for; finding one takes a look at all before it.
MOST_FIELDS = 16
#: Names and other texts in a body of numbers.
MOST_TEXTS = 4096
#: Dimensions of an array.
MOST_DEPTH = 16
#: Lists of fewer bytes than this are looked at all together, others one by one.
SHORT_LIST = 64
_OPENING = ord("[")
_STRUCTURE = b"[]{},"
_VALUES = bytes(set(range(256)) - set(_STRUCTURE))
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*")
_NUMERIC = re.compile(rb'"(?:FP|U?INT)[1-8]')
_Convert = Callable[[Any], Any]


def parse_rows(body: bytes, *, exact: bool = False) -> dict[str, Any] | None:
    """A V1 document whose `instances` are an array, as deep as they are nested; None if they are not that.

    Of float64; `exact` is for whom an integer must stay what it is: those alone are of int64, or of uint64.
    """
    if body.find(b"{", 1, 64) != -1:  # most likely rows by column name
        return None
    return _parse(body, "instances", b"instances", lambda given, texts: _array(given, next(texts), exact=exact))


def parse_tensors(body: bytes, keys: frozenset[str], *, exact: bool = False) -> dict[str, Any] | None:
    """A V2 document whose tensors all have arrays as `data`, and are no entity `keys`; else None.

    Of float64 for datatypes of floats; of their datatype for those of integers. `exact` as above, for both.
    """
    if _NUMERIC.search(body, 0, 512) is None:  # most likely texts
        return None
    document = _parse(body, "inputs", b"data", lambda given, texts: [_tensor(one, texts, exact=exact) for one in given])
    if document is None or any(tensor["name"] in keys for tensor in document["inputs"]):
        return None  # the values of a key keep their type
    return document


def _parse(
    body: bytes, key: str, mark: bytes, convert: Callable[[Any, Iterator[memoryview]], Any]
) -> dict[str, Any] | None:
    if not body.startswith(b"{") or b"\\" in body:
        return None  # a byte order mark would be skipped, and an escape may hide a name
    try:
        texts = _texts(body, mark)
        # A parser of its own: it costs half a microsecond, and nothing of a large body stays.
        document = _fields(simdjson.Parser().parse(body), key, lambda given: convert(given, texts))
        return document if next(texts, None) is None else None  # else the name is somewhere else as well
    except (ValueError, TypeError, RuntimeError, KeyError, IndexError, StopIteration):
        return None


def _texts(body: bytes, mark: bytes) -> Iterator[memoryview]:
    """What follows each field of a name, up to the next text: all of it, if that is numbers. Nothing is escaped."""
    view = memoryview(body)
    at = body.find(b'"')
    for _ in range(MOST_TEXTS):
        end = body.find(b'"', at + 1)
        if at == -1 or end == -1:
            return
        after = body.find(b'"', end + 1)
        if body.startswith(mark, at + 1) and end - at - 1 == len(mark):
            colon = _COLON.match(body, end + 1)
            if colon is not None:
                yield view[colon.end() : after if after != -1 else len(body)]
        at = after


def _fields(given: Any, special: str, convert: _Convert) -> dict[str, Any]:
    """An object whose field `special` is converted."""
    if len(given) > MOST_FIELDS:
        raise ValueError("too many to look each of them up")
    fields = {name: convert(given[name]) if name == special else _plain(given[name]) for name in given}
    if special not in fields or len(fields) != len(given):
        raise ValueError("a name is missing, or there twice")
    return fields


def _plain(value: Any) -> Any:
    if isinstance(value, simdjson.Object):
        return value.as_dict()
    return value.as_list() if isinstance(value, simdjson.Array) else value


def _tensor(given: Any, texts: Iterator[memoryview], *, exact: bool) -> dict[str, Any]:
    dtype = NUMPY[given["datatype"]]
    if dtype.kind not in "fiu" or not isinstance(given["name"], str):
        raise ValueError("no tensor of numbers")
    floats = dtype.kind == "f"
    tensor = _fields(given, "data", lambda data: _array(data, next(texts), exact=not floats))
    if not floats:
        tensor["data"] = declared(tensor["data"], dtype)
    elif exact:
        check_exact(tensor["data"])
    return tensor


def declared(array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """An array in the integer dtype that its tensor says. Raises ValueError if a value is none of it."""
    try:
        return narrow("data", array, dtype)
    except BadRequest:
        raise ValueError("no value of the datatype") from None


def _array(given: Any, text: memoryview, *, exact: bool) -> np.ndarray:
    """Nested lists of numbers as an array; `text` is what they were written as, and perhaps more."""
    if not isinstance(given, simdjson.Array):
        raise TypeError("no list")
    lists = int(np.count_nonzero(np.frombuffer(text, np.uint8) == _OPENING))
    shape = shape_of(bytes(text)) if lists * SHORT_LIST > len(text) else _walked(given, lists)
    values = _values(given, exact=exact)
    if shape is None or len(values) != math.prod(shape):
        raise ValueError("ragged")
    return values.reshape(shape)


def _walked(given: Any, lists: int) -> tuple[int, ...] | None:
    """The shape of so many nested lists; None if there are more of them, where only numbers were looked for."""
    shape: list[int] = []
    level: list[Any] = [given]
    while True:
        (size,) = set(map(len, level))
        shape.append(size)
        lists -= len(level)
        if not isinstance(level[0][0], simdjson.Array):
            return None if lists else tuple(shape)
        level = list(chain.from_iterable(level))


def shape_of(text: bytes) -> tuple[int, ...] | None:
    """The shape of the list that a text begins with, or None if it is ragged. Brackets and commas alone are looked at:
    whatever is one of them must not be part of a string, and whether there is a number between them is not known."""
    marks = text.translate(None, _VALUES)
    head = marks[: MOST_DEPTH + 1]
    depth = len(head) - len(head.lstrip(b"["))
    if not 0 < depth <= MOST_DEPTH:
        return None
    shape: list[int] = []
    inner = b""
    for level in range(1, depth + 1):
        end = marks.find(b"]" * level) + level
        size = (end - depth + level - 1) // (len(inner) + 1)
        block = b"[%b%b]" % ((inner + b",") * (size - 1), inner)
        if not marks.startswith(block, depth - level):
            return None
        shape.append(size)
        inner = block
    return tuple(reversed(shape))


def _values(given: Any, *, exact: bool) -> np.ndarray:
    if exact:
        for kind, dtype in (("i", np.int64), ("u", np.uint64)):
            with suppress(TypeError, ValueError):  # one is no integer, or out of range
                return np.frombuffer(given.as_buffer(of_type=kind), dtype)
    values = np.frombuffer(given.as_buffer(of_type="d"), np.float64)
    if exact:
        check_exact(values)
    return values


def check_exact(values: np.ndarray) -> None:
    """Raises ValueError if a double may have lost something of the integer that was written."""
    if values.size and np.abs(values).max() >= EXACT:
        raise ValueError("an integer that is no double")
