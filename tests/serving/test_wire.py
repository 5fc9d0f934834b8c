"""Messages to and from a version's process: what crosses unchanged, and what is refused."""

import pickle
import socket
import struct
import time
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from serving.runtimes.wire import MAGIC, MOST_BYTES, Malformed, pack, receive

NUMBERS = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", ">f8", "M8[ns]", "M8[s]", "m8[us]"]


def cross(array: np.ndarray) -> np.ndarray:
    """Through a real socket and back."""
    return send(pack({}, {"a": array}))["a"]


def send(data: bytes) -> dict[str, np.ndarray]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, len(data) + 2**20)
        theirs.setblocking(False)
        assert theirs.send(data) == len(data)
        theirs.shutdown(socket.SHUT_WR)
        return receive(ours, time.monotonic() + 5).arrays


def same(array: np.ndarray) -> None:
    result = cross(array)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert np.array_equal(result, array, equal_nan=array.dtype.kind in "fM")


@pytest.mark.parametrize("dtype", NUMBERS)
def test_numbers_cross_unchanged(dtype: str) -> None:
    """Every dtype, in every layout: rows, columns in Fortran order, a slice, nothing."""
    array = np.arange(24).astype("i8").astype(dtype).reshape(4, 6)
    for layout in (array, np.asfortranarray(array), array[1:3, ::2], array[:0]):
        same(layout)


def test_missing_numbers_cross() -> None:
    """NaN, infinity and NaT are what they were."""
    same(np.array([np.nan, np.inf, -np.inf, -0.0]))
    same(np.array(["NaT", "2026-01-01"], dtype="M8[ns]"))


@pytest.mark.parametrize(
    "values",
    [["a", "", None, "ü\x00\ud800", "x" * 200_000], [b"", b"\xff\x00", None], [True, None, False], [1, 2**70, 1.5],
     [{"k": [1, None]}, {"k": []}], ["a\x00"] * 4],
    ids=["strings", "bytes", "booleans", "numbers", "documents", "zeros"],
)  # fmt: skip
def test_objects_cross_unchanged(values: list[Any]) -> None:
    """Strings of 200 kB, bytes, None, documents: value and type."""
    array = np.empty(len(values), object)
    array[:] = values
    result = cross(array)
    assert result.dtype == object
    assert list(result) == values
    assert list(map(type, result)) == list(map(type, values))


@pytest.mark.parametrize("values", [["a", "bcd"], [b"a", b"bcd"], [["a"], ["b"]]])
def test_fixed_width_text_stays_fixed_width(values: list[Any]) -> None:
    """As the classes of a classifier are."""
    same(np.array(values))


def test_dates_become_text_and_other_objects_stay() -> None:
    """What JSON cannot say does not cross, and the error names the type alone."""
    assert list(cross(np.array([datetime(2026, 1, 2, 3)], dtype=object))) == ["2026-01-02T03:00:00"]
    for value in (object(), {1, 2}, 1j):
        with pytest.raises(TypeError, match=f"type {type(value).__name__} cannot leave"):
            pack({}, {"a": np.array([value], dtype=object)})


def message(header: bytes, body: bytes = b"", magic: bytes = MAGIC) -> bytes:
    return struct.pack("<4sIQ", magic, len(header), len(body)) + header + body


def spec(**changes: Any) -> bytes:
    import json

    return json.dumps({"arrays": [{"name": "a", "at": 0, "bytes": 8, "dtype": "<f8", "shape": [1]} | changes]}).encode()


PICKLE = pickle.dumps(np.array([object()]))
NONSENSE = {
    "no message": b"\x80" * 64,
    "a pickle": PICKLE + bytes(64),
    "an endless header": struct.pack("<4sIQ", MAGIC, 2**32 - 1, 0),
    "an endless body": struct.pack("<4sIQ", MAGIC, 2, MOST_BYTES + 1),
    "no JSON": message(b"{]"),
    "no object": message(b"[]"),
    "no arrays": message(b"{}"),
    "deep": message(b'{"arrays": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "pickled objects": message(spec(dtype="|O", bytes=8), bytes(8)),
    "a record": message(spec(dtype="i4,i4"), bytes(8)),
    "a subarray": message(spec(dtype="(2,)i4"), bytes(8)),
    "an unknown dtype": message(spec(dtype="what"), bytes(8)),
    "a dtype that is no text": message(spec(dtype=[["a", "O"]]), bytes(8)),
    "beyond the end": message(spec(at=8), bytes(8)),
    "before the beginning": message(spec(at=-8), bytes(8)),
    "more rows than bytes": message(spec(shape=[2]), bytes(8)),
    "less rows than bytes": message(spec(shape=[0]), bytes(8)),
    "huge rows": message(spec(shape=[2**62, 2**62, 0], bytes=0)),
    "negative rows": message(spec(shape=[-1]), bytes(8)),
    "fractional rows": message(spec(shape=[1.0]), bytes(8)),
    "a shape that is no list": message(spec(shape=8), bytes(8)),
    "many dimensions": message(spec(shape=[1] * 65), bytes(8)),
    "a list too long": message(spec(dtype="O", bytes=8), b'[1, 2 ]x'),
    "numbers as text": message(spec(dtype="U", bytes=8), b'[1     ]'),
    "bad base64": message(spec(dtype="O", bytes=15), b'[{"$bytes": 1}]'),
}  # fmt: skip


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE)
def test_nonsense_is_refused(data: bytes) -> None:
    """Whatever a process sends, it is an array of a known type that fits, or Malformed; nothing is unpickled."""
    with pytest.raises(Malformed):
        send(data)


def test_a_message_that_ends_early_is_an_end() -> None:
    """And one that does not come is late."""
    whole = pack({}, {"a": np.arange(10)})
    for length in (0, 3, 20, len(whole) - 1):
        with pytest.raises(EOFError):
            send(whole[:length])
    ours, theirs = socket.socketpair()
    with ours, theirs, pytest.raises(TimeoutError):
        receive(ours, time.monotonic() + 0.01)
