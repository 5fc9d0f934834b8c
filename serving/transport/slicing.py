"""A large JSON body in slices: its long lists are taken out of it, and parsed a few elements at a time.

No slice is a document, so where one may begin is found by looking at brackets, commas and quotes alone, with NumPy and in
blocks. Whether it all is JSON is still for the parser to say: of what is left of the body, and of every slice.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from serving.errors import BadRequest, BodyTooLarge
from serving.transport.document import NO_JSON, parse_object

BLOCK_BYTES = 65_536
#: Shorter lists stay where they are.
SHORT_BYTES = 16_384
#: Brackets and commas of what is parsed at once, and elements of one list that become Python objects.
MOST_MARKS, MOST_ELEMENTS = 100_000, 1_000_000
_QUOTE, _COMMA, _OPENING, _CLOSING, _OBJECT = b'",[]{'
_IS_MARK = np.zeros(256, bool)
_IS_MARK[list(b"[]{},")] = True
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")] = 1
_STEP[list(b"]}")] = -1
#: Stands in the body for a list that was taken out; no client knows it.
_TOKEN = secrets.token_hex(16)


@dataclass(slots=True)
class LongList:
    """A list of a body, from its opening bracket to its closing one. `marks` are of each slice, `elements` of all."""

    body: bytes
    pace: Callable[[], None]
    start: int
    end: int = -1
    elements: int = 1
    cuts: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    pending: int = 0

    @property
    def size(self) -> int:
        """Brackets and commas in it."""
        return sum(self.marks) + self.pending

    @property
    def text(self) -> bytes:
        """All of it."""
        return self.body[self.start : self.end + 1]

    def __iter__(self) -> Iterator[list[Any]]:
        """The elements, some at a time. Raises BadRequest for what is no JSON, BodyTooLarge for too many of them."""
        if self.elements > MOST_ELEMENTS:
            raise BodyTooLarge(
                f"A list of a request has at most {MOST_ELEMENTS} elements, unless it is of numbers alone."
            )
        at = self.start + 1
        for cut, marks in zip([*self.cuts, self.end], [*self.marks, self.pending], strict=True):
            if marks > MOST_MARKS:
                raise BodyTooLarge(f"One row has at most {MOST_MARKS} values, unless it is of numbers alone.")
            elements = _parsed(b"[%b]" % self.body[at:cut])
            if not elements and self.cuts:
                raise BadRequest(NO_JSON)  # a comma with nothing beside it
            yield elements
            at = cut + 1
            self.pace()


def _parsed(text: bytes) -> list[Any]:
    try:
        elements: list[Any] = orjson.loads(text)
    except orjson.JSONDecodeError:
        raise BadRequest(NO_JSON) from None
    return elements


def take_out(
    body: bytes, name: str, depth: int, objects: int, pace: Callable[[], None]
) -> tuple[dict[str, Any], dict[str, LongList]]:
    """The document of a body without the long lists that are fields `name` and `depth` deep, and these, by what stands in
    their place.

    `objects` bounds those that may have such a field. Raises BadRequest, BodyTooLarge, and what the pace raises.
    """
    named = re.compile(rb'"%b"[ \t\r\n]*:[ \t\r\n]*\Z' % name.encode())
    lists: dict[str, LongList] = {}
    rest, at = [], 0
    for each in _long_lists(body, depth, objects, pace):
        if named.search(body, max(at, each.start - 64), each.start) is None:
            continue
        token = f"{_TOKEN}{len(lists)}"
        lists[token] = each
        rest += [body[at : each.start], b'"%b"' % token.encode()]
        at = each.end + 1
    rest.append(body[at:])
    frame = b"".join(rest)
    if len(frame) > BLOCK_BYTES and sum(map(frame.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise BodyTooLarge(f"A body has at most {MOST_MARKS} values beside its rows.")
    return parse_object(frame), lists


def taken(value: Any, lists: dict[str, LongList]) -> LongList | None:
    """The list that was taken out where a value stands now, if one was."""
    return lists.get(value) if isinstance(value, str) else None


def _long_lists(body: bytes, depth: int, objects: int, pace: Callable[[], None]) -> Iterator[LongList]:
    current: LongList | None = None
    few = 4 * objects  # lists: data, a shape, and perhaps one more
    for where, kinds, depths in _marks(body, pace):
        openings = where[(kinds == _OPENING) & (depths == depth)]
        objects -= int(np.count_nonzero((kinds == _OBJECT) & (depths == depth - 1)))
        few -= len(openings)
        if objects < 0 or few < 0:
            raise BadRequest("The request has more tensors than the model could take.")
        commas = where[(kinds == _COMMA) & (depths == depth)]
        closings = where[(_STEP[kinds] < 0) & (depths == depth - 1)]
        lists = [LongList(body, pace, int(start)) for start in openings]
        for each in lists if current is None else [current, *lists]:
            current = None if _extend(each, where, commas, closings) else each
            if current is None and each.end - each.start > SHORT_BYTES:
                yield each
    if current is not None:
        raise BadRequest(NO_JSON)


def _extend(each: LongList, where: np.ndarray, commas: np.ndarray, closings: np.ndarray) -> bool:
    """Takes in what a block has of a list; whether it ends there. Else it is cut at the block's last comma."""
    first = closings[np.searchsorted(closings, each.start) :][:1]
    if first.size:
        each.end = int(first[0])
        if each.body[each.end] != _CLOSING:
            raise BadRequest(NO_JSON)
        commas, where = commas[: np.searchsorted(commas, each.end)], where[: np.searchsorted(where, each.end)]
    commas, where = commas[np.searchsorted(commas, each.start) :], where[np.searchsorted(where, each.start) :]
    each.elements += len(commas)
    each.pending += len(where)
    if first.size == 0 and commas.size:
        after = len(where) - int(np.searchsorted(where, commas[-1]))
        each.cuts.append(int(commas[-1]))
        each.marks.append(each.pending - after)
        each.pending = after
    return bool(first.size)


def _marks(body: bytes, pace: Callable[[], None]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Brackets and commas that are in no text, block by block: where they are, which, and how deep it is after them."""
    at = quotes = depth = 0
    while at < len(body):
        block = body[at : at + BLOCK_BYTES]
        if (len(block) - len(block.rstrip(b"\\"))) % 2 and len(block) > 1:
            block = block[:-1]  # what is escaped stays with its backslash
        end = at + len(block)
        if b"\\" in block:
            block = block.replace(b"\\\\", b"  ").replace(b'\\"', b"  ")
        codes = np.frombuffer(block, np.uint8)
        where = np.flatnonzero(_IS_MARK[codes])
        around = np.flatnonzero(codes == _QUOTE)
        if around.size or quotes & 1:
            where = where[(np.searchsorted(around, where) + quotes) & 1 == 0]
        kinds = codes[where]
        depths = np.cumsum(_STEP[kinds], dtype=np.int64) + depth
        yield where + at, kinds, depths
        quotes, depth, at = quotes + around.size, int(depths[-1]) if depths.size else depth, end
        pace()
