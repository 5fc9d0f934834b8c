"""A large body in slices: the same rows as all at once, or refused as well; and nothing large is built of what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.mlmodel import Column, Tensor
from serving.errors import BadRequest, BodyTooLarge, DeadlineExceeded
from serving.loading import Loaded
from serving.transport.slicing import MOST_ELEMENTS, MOST_MARKS, take_out
from serving.transport.v1 import V1Request
from serving.transport.v2 import MORE_TENSORS, MOST_LISTED, V2Request
from tests.serving.test_numeric import BYTES, DEEP, DOUBLES, INTEGERS, OPTIONAL, loaded_with

pytestmark = pytest.mark.audit("33")
WIDE = "," + " " * 9_000  # eight rows are cut in two or three slices
MIXED = loaded_with(Column("a", "long"), Column("b", "string"))
OPTIONAL_TEXT = loaded_with(Column("a", "double", required=False), Column("b", "string", required=False))
TEXTS = st.text(st.sampled_from('",[]{}\\:a\n€'), max_size=6)
ODD = st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS
VALUES = ODD | st.lists(ODD, max_size=2)


def written(document: Any, separator: str = WIDE) -> bytes:
    """A long body."""
    return json.dumps(document, separators=(separator, ":"), ensure_ascii=False).encode()


def nothing() -> None:
    """A pace."""


def heard(decode: Any) -> Any:
    """What was decoded, or that it was refused."""
    try:
        arrays = decode().partial.arrays
    except BadRequest:
        return "refused"
    return [(a.dtype, a.shape, repr(a.tolist())) for a in arrays]


def check_alike(kind: type[V1Request | V2Request], body: bytes, loaded: Loaded) -> Any:
    """Both ways mean the same."""
    at_once = heard(lambda: kind(body).decode(loaded))
    assert heard(lambda: kind(body).decode_slices(loaded, nothing)) == at_once
    return at_once


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([DOUBLES, OPTIONAL, INTEGERS, MIXED, OPTIONAL_TEXT, BYTES]),
    st.lists(
        st.lists(ODD | st.integers(0, 9), min_size=2, max_size=2) | st.lists(VALUES, max_size=3), min_size=2, max_size=9
    ),
)
def test_lists_in_slices_are_what_they_are(loaded: Loaded, rows: list[Any]) -> None:
    """Whatever stands in them, and wherever a slice ends."""
    check_alike(V1Request, written({"instances": rows}), loaded)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([DOUBLES, MIXED, OPTIONAL_TEXT]),
    st.lists(st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3), min_size=2, max_size=9),
)
def test_objects_in_slices_are_what_they_are(loaded: Loaded, rows: list[Any]) -> None:
    """A column may be missing in one slice and be there in the next."""
    check_alike(V1Request, written({"instances": rows}), loaded)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_an_integer_that_is_no_double_stands_beside_integral_floats(dtype: str) -> None:
    """Whichever of them a slice begins with."""
    loaded = loaded_with(Tensor("x", dtype, (-1,)))
    assert check_alike(V1Request, written({"instances": [2**53 + 1] + [1.0] * 9}), loaded) != "refused"


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([DOUBLES, OPTIONAL, INTEGERS, BYTES]),
    st.sampled_from(["FP64", "INT64", "UINT8", "BYTES"]),
    st.lists(st.integers(0, 9) | ODD, min_size=4, max_size=10).filter(lambda flat: len(flat) % 2 == 0),
    st.booleans(),
)
def test_tensors_in_slices_are_what_they_are(loaded: Loaded, datatype: str, flat: list[Any], nested: bool) -> None:
    """Flat or nested, and whatever stands in them."""
    data = [flat[i : i + 2] for i in range(0, len(flat), 2)] if nested else flat
    name = "image" if loaded is BYTES else "x"
    given = {"name": name, "datatype": datatype, "shape": [len(flat) // 2, 2], "data": data}
    check_alike(V2Request, written({"inputs": [given], "id": "a"}), loaded)


@pytest.mark.parametrize(
    ("loaded", "instances"),
    [
        (DOUBLES, [[1, 2.5]] * 30),
        (DOUBLES, [{"a": 1, "b": 2}] * 30),
        (INTEGERS, [[2**53 + 1, 7]] * 30),
        (MIXED, [[1, 'a",[\\']] * 30),
        (BYTES, [[1, 255]] * 30),
        (DEEP, [[[1, 2]]] * 30),
        (OPTIONAL, [[1, None]] * 30),
    ],
)
def test_these_bodies_are_cut(loaded: Loaded, instances: list[Any]) -> None:
    """Or the tests above would compare one way with itself."""
    body = written({"instances": instances, "parameters": {"output": "raw"}})
    document, lists = take_out(body, "instances", 2, 10, nothing)
    (long,) = lists.values()
    assert len(long.cuts) >= 2
    assert long.elements == 30
    assert [row for rows in long for row in rows] == instances
    assert document["parameters"] == {"output": "raw"}
    assert check_alike(V1Request, body, loaded) != "refused"


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[1, 2]%b]}' % (b",[1, 2]" * 5000 + b","),
        b'{"instances": [[1, 2],%b]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b}}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b]]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [1[,]2]]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [3, 4]5]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [3, 4]], 5}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [3, "4]]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [3, "\xff"]]}' % (b",[1, 2]" * 5000),
        b'{"instances": [[1, 2]%b, [3, 01]]}' % (b",[1, 2]" * 5000),
        b'{"instances": [%b]}' % (b"\\" * 70_001),
    ],
)
def test_what_is_no_json_is_none_in_slices(body: bytes) -> None:
    """Wherever it is wrong."""
    for decode in (V1Request(body).decode, lambda loaded: V1Request(body).decode_slices(loaded, nothing)):
        with pytest.raises(BadRequest, match="not valid JSON"):
            decode(DOUBLES)


@pytest.mark.parametrize("count", range(65_500, 65_560, 7))
@pytest.mark.parametrize("text", ['\\"', "\\", '"'])
def test_an_escape_is_not_cut_in_two(count: int, text: str) -> None:
    """Where a block ends among backslashes."""
    rows = [["x" * count + text * 9 + "],[", 1.0], ["b", 2.0]]
    body = json.dumps({"instances": [[n, t] for t, n in rows]}).encode()
    loaded = loaded_with(Column("a", "double"), Column("b", "string"))
    decoded = V1Request(body).decode_slices(loaded, nothing).partial.arrays
    assert decoded is not None
    assert decoded[1].tolist() == [text for text, _ in rows]


TOO_MANY: list[tuple[type[V1Request | V2Request], Loaded, bytes, str]] = [
    (V1Request, OPTIONAL, b'{"instances": [%b{}]}' % (b"{}," * MOST_ELEMENTS), "at most 1000000 elements"),
    (V1Request, DOUBLES, b'{"instances": [[%b[]]]}' % (b"[]," * MOST_MARKS), "One row has at most"),
    (V1Request, DOUBLES, b'{"x": [%b{}], "instances": [[1, 2]]}' % (b"{}," * MOST_MARKS), "beside its rows"),
    (V2Request, DOUBLES, b'{"inputs": [%b{}]}' % (b"{}," * (MORE_TENSORS + 10)), "more tensors"),
    (V2Request, DOUBLES, b'{"inputs": [[%b[]]]}' % (b"[]," * MOST_MARKS), "more tensors"),
    (
        V2Request,
        OPTIONAL,
        b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [9], "data": [%bnull]}]}' % (b"1," * MOST_LISTED),
        "at most 500000 values",
    ),
]


@pytest.mark.parametrize(("kind", "loaded", "body", "says"), TOO_MANY)
def test_what_is_too_much_is_counted_before_it_is_built(
    kind: type[V1Request | V2Request], loaded: Loaded, body: bytes, says: str
) -> None:
    """The sentence says of what there was too much."""
    with pytest.raises((BodyTooLarge, BadRequest), match=says):
        kind(body).decode_slices(loaded, nothing)


def test_numbers_may_be_more() -> None:
    """No Python object is made of them."""
    body = b'{"instances": [%b[1,2]]}' % (b"[1,2]," * MOST_ELEMENTS)
    decoded = V1Request(body).decode_slices(DOUBLES, nothing)
    assert decoded.partial.rows == MOST_ELEMENTS + 1
    body = b'{"inputs": [{"name": "x", "datatype": "FP64", "shape": [%d, 2], "data": [%b3.5]}]}' % (
        MOST_LISTED + 1,
        b"1," * (2 * MOST_LISTED + 1),
    )
    assert V2Request(body).decode_slices(DOUBLES, nothing).partial.rows == MOST_LISTED + 1


def test_an_image_of_one_row() -> None:
    """A row that is longer than any slice."""
    loaded = loaded_with(Tensor("image", "uint8", (-1, -1, -1, 3)))
    image = np.arange(300 * 200 * 3).reshape(1, 300, 200, 3) % 256
    arrays = V1Request(json.dumps({"instances": image.tolist()}).encode()).decode_slices(loaded, nothing).partial.arrays
    assert arrays is not None
    assert np.array_equal(arrays[0], image)


def test_the_pace_ends_it() -> None:
    """Between any two slices."""
    left = 5

    def pace() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise DeadlineExceeded("now")

    with pytest.raises(DeadlineExceeded):
        V1Request(written({"instances": [{"a": 1, "b": 2}] * 90})).decode_slices(DOUBLES, pace)
