"""What a store holds of one view for some entities, as arrays; and Feast's protocol buffers read into them by hand.

A `Value` that holds a double is nine bytes, `0x29` and the number; one that holds a float five, `0x35` and the number.
Where every value of a block is such, all of them become an array at once, without a message object per value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from features.service import View

Raw = bytes | None
#: Length of a serialised Value, its tag, and the array type of its bytes.
_DOUBLE = (9, b"\x29", np.dtype([("tag", "u1"), ("value", "<f8")]))
_FLOAT = (5, b"\x35", np.dtype([("tag", "u1"), ("value", "<f4")]))


@dataclass(slots=True)
class Block:
    """One view's features of `n` entities.

    `seconds [n]` is the event time since the epoch, NaN where nothing is stored; `floats [n, k]` the view's `floats`, NaN
    for null; `others` the view's other features, each an object array `[n]` with None for null. `whole`: every entity is
    known to be stored, without a null.
    """

    seconds: np.ndarray
    floats: np.ndarray
    others: tuple[np.ndarray, ...]
    whole: bool = False

    def take(self, index: slice | Sequence[int]) -> Block:
        """The rows `index` of this block."""
        return Block(self.seconds[index], self.floats[index], tuple(o[index] for o in self.others), self.whole)

    def examined(self) -> Block:
        """The same block, with `whole` found out: once for a read, not once for each request that it serves."""
        gaps = (
            np.isnan(self.seconds).any() or np.isnan(self.floats).any() or any(None in o.tolist() for o in self.others)
        )
        return Block(self.seconds, self.floats, self.others, not gaps)


class Matrix(Mapping[str, np.ndarray]):
    """Columns that are one array `[n, k]`, float64: taken apart only for who asks for one of them."""

    __slots__ = ("array", "names")

    def __init__(self, names: tuple[str, ...], array: np.ndarray) -> None:
        self.names, self.array = names, array

    def __getitem__(self, name: str) -> np.ndarray:
        return self.array[:, self.names.index(name)]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def join(blocks: Sequence[Block]) -> Block:
    """Blocks of one view, one below the other."""
    if len(blocks) == 1:
        return blocks[0]
    others = zip(*(block.others for block in blocks), strict=True)
    return Block(
        np.concatenate([block.seconds for block in blocks]),
        np.concatenate([block.floats for block in blocks]),
        tuple(np.concatenate(parts) for parts in others),
    )


def from_columns(view: View, seconds: Sequence[float | None], columns: dict[str, list[Any]]) -> Block:
    """A block of plain Python values by feature, each a list `[n]` with None for null."""
    floats = np.empty((len(seconds), len(view.floats)))
    for i, name in enumerate(view.floats):
        floats[:, i] = np.array(columns[name], dtype=np.float64)
    times = np.array(seconds, dtype=np.float64)
    return Block(times, floats, tuple(_objects(columns[name]) for name in view.others))


def from_bytes(view: View, rows: Sequence[Sequence[Raw]]) -> Block:
    """A block of serialised values: per entity one for each of `view.features`, then a serialised Timestamp."""
    k = len(view.floats)
    flat = [value for row in rows for value in row[:k]]
    floats = np.array(_numbers(flat), dtype=np.float64).reshape(len(rows), k)
    seconds = _times([row[-1] for row in rows])
    return Block(seconds, floats, tuple(_objects([plain(row[k + i]) for row in rows]) for i in range(len(view.others))))


def _numbers(flat: Sequence[Raw]) -> np.ndarray | list[float | None]:
    if None not in flat:
        joined = b"".join(flat)  # type: ignore[arg-type]  # mypy does not see that None is not among them
        for size, tag, dtype in (_DOUBLE, _FLOAT):
            if len(joined) == size * len(flat) and set(map(len, flat)) == {size}:  # type: ignore[arg-type]
                array = np.frombuffer(joined, dtype=dtype)
                if (array["tag"] == tag[0]).all():
                    return array["value"]
    return [plain(value) for value in flat]


def plain(raw: Raw) -> Any:
    """The Python value of a serialised Value, None for null."""
    from feast.protos.feast.types.Value_pb2 import Value

    if not raw:
        return None
    return unwrap(Value.FromString(raw))


def unwrap(value: Any) -> Any:
    """The Python value of a Value, None for null."""
    kind = value.WhichOneof("val")
    return None if kind is None or kind == "null_val" else getattr(value, kind)


def _times(raws: Sequence[Raw]) -> np.ndarray:
    """Seconds since the epoch. Entities that were materialised together share their time, so that few are parsed."""
    from google.protobuf.timestamp_pb2 import Timestamp

    seconds: dict[Raw, float] = {None: math.nan, b"": math.nan}
    for raw in set(raws) - seconds.keys():
        stamp = Timestamp.FromString(raw)
        seconds[raw] = stamp.seconds + stamp.nanos / 1e9
    return np.array([seconds[raw] for raw in raws])


def _objects(values: Sequence[Any]) -> np.ndarray:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
