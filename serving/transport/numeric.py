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
#: So many of numbers take some milliseconds at most, on the event loop.
MOST_BYTES = 1_048_576
#: Fields of an object that somebody may have use for; finding one takes a look at all before it.
MOST_FIELDS = 16
#: Names and other texts in a body of numbers.
MOST_TEXTS = 4096
#: Dimensions of an array.
MOST_DEPTH = 16
#: What is parsed at once of a list that is long.
SLICE_BYTES = 65_536
#: Lists of fewer bytes than this are looked at all together, others one by one.
SHORT_LIST = 64
_OPENING, _CLOSING = b"[]"
_WITHOUT_BRACKETS = bytes.maketrans(b"[]", b"  ")
_IS_NUMBER = np.zeros(256, bool)
_IS_NUMBER[list(b"0123456789+-.eE")] = True
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
    tensor = _fields(given, "data", lambda data: _array(data, next(texts), exact=dtype.kind != "f"))
    tensor["data"] = declared(tensor["data"], dtype, exact=exact)
    return tensor


def declared(array: np.ndarray, dtype: np.dtype[Any], *, exact: bool) -> np.ndarray:
    """Numbers as their tensor's datatype has them: floats as float64, integers in their own dtype. Raises ValueError if one
    is not of that datatype."""
    if dtype.kind == "f":
        if exact:
            check_exact(array)
        return array
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


def shape_of(text: bytes, pace: Callable[[], None] = lambda: None) -> tuple[int, ...] | None:
    """The shape of the list that a text begins with, or None if it is ragged. Brackets and commas alone are looked at:
    whatever is one of them must not be part of a string, and whether there is a number between them is not known."""
    marks = b"".join([piece.translate(None, _VALUES) for piece in _cut(text, pace)])
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


def parse_numbers(text: bytes, pace: Callable[[], None], *, exact: bool) -> np.ndarray | None:
    """A long list of numbers as an array, a slice at a time; None if it is not that. `exact` as above.

    With brackets where they belong, what stands between commas is one number each: that is parsed without them.
    """
    shape = None if b'"' in text else shape_of(text, pace)
    if shape is None or (len(shape) > 1 and not _apart(text, pace)):
        return None
    try:
        values = _joined([_slice(piece, exact=exact) for piece in _pieces(text, pace)], exact=exact)
    except (ValueError, TypeError, RuntimeError):
        return None
    return values.reshape(shape) if len(values) == math.prod(shape) else None


def _cut(text: bytes, pace: Callable[[], None]) -> Iterator[bytes]:
    for at in range(0, len(text), SLICE_BYTES):
        yield text[at : at + SLICE_BYTES]
        pace()


def _apart(text: bytes, pace: Callable[[], None]) -> bool:
    """Whether no number stands before an opening bracket, or behind a closing one."""
    before = b""
    for some in _cut(text, pace):
        piece = before + some.translate(None, b" \t\r\n")
        codes = np.frombuffer(piece, np.uint8)
        number, opening, closing = _IS_NUMBER[codes], codes == _OPENING, codes == _CLOSING
        if (number[:-1] & opening[1:]).any() or (closing[:-1] & number[1:]).any():
            return False
        before = piece[-1:]
    return True


def _pieces(text: bytes, pace: Callable[[], None]) -> Iterator[bytes]:
    at = 0
    while at <= len(text):
        end = text.find(b",", at + SLICE_BYTES)
        end = len(text) if end == -1 else end
        yield b"[%b]" % text[at:end].translate(_WITHOUT_BRACKETS)
        at = end + 1
        pace()


def _slice(piece: bytes, *, exact: bool) -> np.ndarray:
    return _values(simdjson.Parser().parse(piece), exact=exact)


def _joined(slices: list[np.ndarray], *, exact: bool) -> np.ndarray:
    """One array. Raises ValueError where NumPy would make a double of an integer that is none."""
    types = {each.dtype for each in slices}
    values = np.concatenate(slices)
    if exact and len(types) > 1 and values.dtype.kind == "f":
        check_exact(values)
    return values
