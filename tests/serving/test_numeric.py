"""Numbers straight into arrays: the same as through Python's objects, or not at all."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry.mlmodel import Column, Signature, Tensor
from serving.configuration import ModelOptions, resolve
from serving.errors import BadRequest
from serving.loading import Loaded
from serving.schema import compile_schema
from serving.transport.numeric import LEAST_BYTES, MOST_FIELDS, parse_rows, parse_tensors, shape_of
from serving.transport.v1 import V1Request
from serving.transport.v2 import V2Request
from tests import fakes

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)
ODD = st.sampled_from([None, True, "x", [], [1.0], {}, {"a": 1.0}, 2**70])
PADDING = b" " * 64  # what is looked for at the beginning is not there
MATRICES = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=8)
)


def tensor(**fields: Any) -> dict[str, Any]:
    """An input of a V2 request."""
    return {"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1.5, 2, 3, 4], **fields}


@settings(deadline=None)
@given(MATRICES)
def test_rows_are_what_they_are(rows: list[list[float]]) -> None:
    """To the last bit, whatever way a number is written."""
    for indent in (None, 1):
        body = json.dumps({"instances": rows}, indent=indent).encode()
        document = parse_rows(body)
        assert document is not None
        expected = np.array(orjson.loads(body)["instances"], np.float64)
        assert document["instances"].tobytes() == expected.tobytes()
        assert document["instances"].shape == expected.shape


@settings(deadline=None)
@given(st.recursive(NUMBERS | ODD, lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_nothing_else_is_taken_for_numbers(instances: Any) -> None:
    """Ragged lists, lists where numbers should be, nulls, texts, booleans and objects are left to the other way."""
    body = b'{"instances": ' + PADDING + json.dumps(instances).encode() + b"}"
    document = parse_rows(body)
    if document is not None:
        rows = orjson.loads(body)["instances"]
        assert np.array_equal(document["instances"], np.array(rows, np.float64))
        assert not {type(None), bool, str} & set(map(type, np.array(rows, object).ravel().tolist()))


def test_rows_of_any_depth_and_what_is_beside_them() -> None:
    """Images have more dimensions; parameters come through as they are."""
    document = parse_rows(
        b'{"instances": [[[1, 2.5]], [[-0.0, 4e0]]], "parameters": {"output": "raw", "some": [1, [2]]}}'
    )
    assert document is None  # objects are looked for at the beginning
    long = json.dumps({"instances": [[[1, 2.5]]] * 9, "parameters": {"output": "raw", "some": [1, [2]]}, "id": "a"})
    document = parse_rows(long.encode())
    assert document is not None
    assert document.pop("instances").shape == (9, 1, 2)
    assert document == {"parameters": {"output": "raw", "some": [1, [2]]}, "id": "a"}


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [[1, 2], [3]]}',
        b'{"instances": [[1, 2], 3]}',
        b'{"instances": [1, [2, 3]]}',
        b'{"instances": [[[1]], [2]]}',
        b'{"instances": [[[1], [2]], [3, 4]]}',
        b'{"instances": [[], [1, 2]]}',
        b'{"instances": []}',
        b'{"instances": [[]]}',
        b'{"instances": [[1, true]]}',
        b'{"instances": [[1, null]]}',
        b'{"instances": [["1", "2"]]}',
        b'{"instances": [' + PADDING + b'{"a": 1}]}',
        b'{"instances": ' + PADDING + b'{"a": [1]}}',
        b'{"instances": [[1, [2]]], ' + PADDING + b'"parameters": {"x": "\\u005b"}}',
        b'{"instances": [[1, 2]], ' + b", ".join(b'"%d": 0' % i for i in range(MOST_FIELDS)) + b"}",
        b'{"instances": 3}',
        b'{"instances": [[1, 2]], "instances": [[3, 4]]}',
        b'{"rows": [[1, 2]]}',
        b'\xef\xbb\xbf{"instances": [[1, 2]]}',
        b'{"instances": [[1, 2]]} x',
        b'{"instances": [[1, 2]], "id": "\xff"}',
        b'{"instances": [[1e999]]}',
        b'{"instances": [[01]]}',
        b'{"instances": [[NaN]]}',
        b'{"instances": [[1, 2]',
        b'{"instances": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"[[1, 2]]",
        b"3",
        b" ",
    ],
)
def test_left_to_the_other_way(body: bytes) -> None:
    """It knows the type of each value, and says what is wrong."""
    assert parse_rows(body) is None


def test_tensors_of_floats() -> None:
    """Flat or nested, with whatever stands beside them."""
    inputs = [tensor(), tensor(name="y", datatype="FP32", data=[[1, 2], [3, 4.5]], parameters={"a": [1]})]
    body = json.dumps({"id": "1", "inputs": inputs, "outputs": [{"name": "predictions"}]}).encode()
    document = parse_tensors(body, frozenset())
    assert document is not None
    flat, nested = (given.pop("data") for given in document["inputs"])
    assert flat.dtype == nested.dtype == np.float64
    assert flat.tolist() == [1.5, 2, 3, 4]
    assert nested.tolist() == [[1, 2], [3, 4.5]]
    expected = orjson.loads(body)
    for one in expected["inputs"]:
        del one["data"]
    assert document == expected


@pytest.mark.parametrize(
    "inputs",
    [
        [tensor(datatype="INT64")],
        [tensor(), tensor(name="y", datatype="INT64")],
        [tensor(datatype="BYTES", data=["a"] * 4)],
        [tensor(data=[1, 2, 3, None])],
        [tensor(data=[1, 2, 3, [4]])],
        [tensor(data=[[1, 2], [3]])],
        [tensor(data=3)],
        [{"name": "x", "datatype": "FP64", "shape": [1]}],
        [tensor(name=["x"])],
        [tensor(name={})],
        [tensor(datatype=None)],
        [tensor(), 1],
        {"x": tensor()},
        "FP64",
        3,
    ],
)
def test_tensors_left_to_the_other_way(inputs: Any) -> None:
    """It knows what is wrong with them."""
    body = json.dumps({"id": "FP64", "inputs": inputs}).encode().replace(b'"FP64"', b'"FP64"' + PADDING, 1)
    assert b'"FP' in body
    assert parse_tensors(body, frozenset()) is None


def test_entity_keys_keep_their_type() -> None:
    """Whole numbers are looked up as such, whatever the tensor calls them."""
    assert parse_tensors(json.dumps({"inputs": [tensor()]}).encode(), frozenset({"x"})) is None


def loaded_with(*inputs: Column | Tensor) -> Loaded:
    """A version that takes these."""
    signature = Signature(inputs=inputs, outputs=())
    runtime = fakes.Constant(fakes.Loader(), 1.0, 1)
    return Loaded(runtime, compile_schema(signature), signature, resolve(ModelOptions(), {}, {}))


DOUBLES = loaded_with(*(Column(name, "double") for name in "ab"))
OPTIONAL = loaded_with(Column("a", "double"), Column("b", "double", required=False))
FLOATS = loaded_with(*(Column(name, "float") for name in "ab"))
BOTH = loaded_with(Column("a", "double"), Column("b", "float"))
LONG = loaded_with(Column("a", "double"), Column("b", "long"))
TENSOR = loaded_with(Tensor(None, "float32", (-1, 2)))
DEEP = loaded_with(Tensor("x", "float64", (-1, 1, 2)))
TWO = loaded_with(Tensor("x", "float32", (-1, 2)), Tensor("y", "float64", (-1,)))
ROWS = [[i / 7, float(-i)] for i in range(100)]
NESTED = [[row] for row in ROWS]
COLUMN = [row[0] for row in ROWS]


def both_ways(request: type[V1Request | V2Request], document: dict[str, Any], loaded: Loaded) -> list[Any]:
    """What a long body is decoded to, or why not; and the same body with an escape, which keeps it from the way of numbers."""
    plain = json.dumps({"id": "", **document}).encode() + b" " * LEAST_BYTES
    escaped = plain.replace(b'"id": ""', b'"id": "\\u0024"')
    heard: list[Any] = []
    for body in (plain, escaped):
        try:
            arrays = request(body).decode(loaded).partial.arrays
            assert arrays is not None
            heard.append([(array.dtype, array.shape, array.tobytes()) for array in arrays])
        except BadRequest as error:
            heard.append(str(error))
    return heard


@pytest.mark.parametrize(
    ("loaded", "instances", "fits"),
    [
        (DOUBLES, ROWS, True),
        (OPTIONAL, ROWS, True),
        (OPTIONAL, [*ROWS, [1.0, None]], True),
        (FLOATS, ROWS, True),
        (BOTH, ROWS, True),
        (LONG, ROWS, True),
        (TENSOR, ROWS, True),
        (DEEP, NESTED, True),
        (DOUBLES, [*ROWS, [1.0, 2.0**70]], True),
        (DOUBLES, NESTED, False),
        (DOUBLES, [*ROWS, [1.0]], False),
        (DOUBLES, COLUMN * 3, False),
        (FLOATS, [*ROWS, [1.0, 1e300]], False),
        (TENSOR, NESTED, False),
        (TENSOR, [*ROWS, [1.0, 1e300]], False),
        (DEEP, ROWS, False),
    ],
)
def test_rows_are_decoded_alike(loaded: Loaded, instances: Any, fits: bool) -> None:
    """The same arrays to the bit, or the same sentence."""
    plain, escaped = both_ways(V1Request, {"instances": instances}, loaded)
    assert plain == escaped
    assert isinstance(plain, list) == fits


def matrix(data: list[Any], datatype: str = "FP64", name: str = "x", columns: int = 2) -> dict[str, Any]:
    """A tensor of rows."""
    return {"name": name, "datatype": datatype, "shape": [100, columns], "data": data}


FLAT = [value for row in ROWS for value in row]
NAMED = [{"name": name, "datatype": "FP64", "shape": [100], "data": COLUMN} for name in "ab"]


@pytest.mark.parametrize(
    ("loaded", "inputs", "fits"),
    [
        (DOUBLES, [matrix(FLAT)], True),
        (DOUBLES, [matrix(ROWS)], True),
        (DOUBLES, [matrix(FLAT, "FP32")], True),
        (DOUBLES, [matrix(FLAT, "INT64")], False),
        (DOUBLES, NAMED, True),
        (OPTIONAL, NAMED[:1], True),
        (FLOATS, [matrix(FLAT, "FP16")], True),
        (FLOATS, [matrix([*FLAT[1:], 1e300])], False),
        (BOTH, [matrix(FLAT)], True),
        (LONG, [matrix(FLAT)], True),
        (TENSOR, [matrix(FLAT, "FP32", "whatever")], True),
        (DEEP, [{**matrix(NESTED), "shape": [100, 1, 2]}], True),
        (TWO, [matrix(ROWS), {**NAMED[0], "name": "y"}], True),
        (DOUBLES, [matrix(FLAT, name="x", columns=3)], False),
        (DOUBLES, [matrix(FLAT[1:])], False),
        (DOUBLES, NAMED[:1], False),
        (DEEP, [matrix(NESTED)], False),
    ],
)
def test_tensors_are_decoded_alike(loaded: Loaded, inputs: Any, fits: bool) -> None:
    """The same arrays to the bit, or the same sentence."""
    plain, escaped = both_ways(V2Request, {"inputs": inputs}, loaded)
    assert plain == escaped
    assert isinstance(plain, list) == fits


INTEGERS = loaded_with(Column("a", "long"), Column("b", "integer"))
OPTIONAL_LONG = loaded_with(Column("a", "double"), Column("b", "long", required=False))
BYTES = loaded_with(Tensor("image", "uint8", (-1, 2)))
SHORTS = loaded_with(Tensor("x", "int16", (-1, 2)))
LARGEST = loaded_with(Tensor("x", "uint64", (-1, 2)))
WHOLE = (INTEGERS, OPTIONAL_LONG, LONG, BYTES, SHORTS, LARGEST, DOUBLES)
NEAR = st.sampled_from(
    [0, 1, 7.0, -1, 0.5, 255, 256, 1e300, *(2**k + d for k in (15, 31, 53, 63, 64) for d in (-1, 0, 1))]
)


@pytest.mark.audit("9")
@settings(deadline=None)
@given(
    st.sampled_from(WHOLE), st.lists(st.lists(NEAR | st.integers(0, 9), min_size=2, max_size=2), min_size=1, max_size=9)
)
def test_integers_are_what_they_are(loaded: Loaded, rows: list[list[float]]) -> None:
    """The same arrays to the bit or the same sentence, at every bound of a type, and whatever is integral."""
    plain, escaped = both_ways(V1Request, {"instances": rows}, loaded)
    assert plain == escaped


@pytest.mark.audit("9")
@settings(deadline=None)
@given(
    st.sampled_from(WHOLE),
    st.sampled_from(["UINT8", "INT16", "INT64", "UINT64", "FP64"]),
    st.lists(NEAR | st.integers(0, 9), min_size=2, max_size=8).filter(lambda flat: len(flat) % 2 == 0),
)
def test_tensors_of_integers_are_what_they_are(loaded: Loaded, datatype: str, flat: list[float]) -> None:
    """The same over V2, where the datatype has a word in it too."""
    given = {"name": "x", "datatype": datatype, "shape": [len(flat) // 2, 2], "data": flat}
    if loaded is BYTES:
        given["name"] = "image"
    plain, escaped = both_ways(V2Request, {"inputs": [given]}, loaded)
    assert plain == escaped


@pytest.mark.audit("9")
@pytest.mark.parametrize(
    ("loaded", "top"), [(INTEGERS, 7), (LONG, 2**53 + 1), (BYTES, 255), (SHORTS, -(2**15)), (LARGEST, 2**64 - 1)]
)
def test_integers_go_the_way_of_numbers(loaded: Loaded, top: int) -> None:
    """To the last digit, and without a Python object for each."""
    rows = [[i, top if i else 1] for i in range(100)]
    document = parse_rows(json.dumps({"instances": rows}).encode(), exact=loaded.schema.exact)
    assert document is not None
    assert document["instances"].dtype.kind in "iu"
    assert document["instances"].tolist() == rows


@pytest.mark.audit("9")
def test_an_image_goes_the_way_of_numbers() -> None:
    """Three numbers to a list, and a list for each point."""
    image = np.arange(2 * 30 * 40 * 3).reshape(2, 30, 40, 3) % 256
    document = parse_rows(json.dumps({"instances": image.tolist()}).encode(), exact=True)
    assert document is not None
    assert np.array_equal(document["instances"], image)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        (b"[1]", (1,)),
        (b"[1, 2, 3], and so on ]]", (3,)),
        (b"[[1,2],[3,4]]}]}", (2, 2)),
        (b"[[[1],[2]]]", (1, 2, 1)),
        (b"[[[1]],[[2]]]", (2, 1, 1)),
        (b"[[1,2],[3]]", None),
        (b"[[1],2]", None),
        (b"[1,[2]]", None),
        (b"[[1],[[2]]]", None),
        (b"[[1],{}]", None),
        (b"[[1,2]", None),
        (b"1", None),
        (b"", None),
        (b"[" * 17 + b"]" * 17, None),
    ],
)
def test_the_shape_is_told_by_brackets_and_commas(text: bytes, shape: tuple[int, ...] | None) -> None:
    """Of the list that a text begins with; none if it is ragged, or of too many dimensions."""
    assert shape_of(text) == shape


@pytest.mark.parametrize(
    "body",
    [
        b'{"id": "instances", "instances": [[1, 2]]}',
        b'{"instances": [[1], [2]], "x": [9, 9]}',
        b'{"x": [9, 9], "instances": [[1], [2]]}',
        b'{"instances": [[1, 2]], "id": "[[,]]"}',
    ],
)
def test_what_looks_like_the_rows_is_not_taken_for_them(body: bytes) -> None:
    """The field's own list is measured, wherever it stands."""
    document = parse_rows(body)
    assert document is not None
    assert document["instances"].tolist() == orjson.loads(body)["instances"]


def test_a_name_that_is_there_twice_is_left_to_the_other_way() -> None:
    """Which of the two is meant, is not told by where they stand."""
    padding = b'"a": ' + PADDING + b"1, "
    assert parse_rows(b"{" + padding + b'"parameters": {"instances": [[1, 2]]}, "instances": [[1], [2]]}') is None
    data = json.dumps({"inputs": [tensor(parameters={"data": [1, 2]})]}).encode()
    assert parse_tensors(data, frozenset()) is None


def test_these_bodies_do_go_the_way_of_numbers() -> None:
    """Or the tests above would compare one way with itself."""
    rows = json.dumps({"id": "", "instances": ROWS}).encode()
    assert all(loaded.schema.one_array for loaded in (DOUBLES, OPTIONAL, FLOATS, TENSOR, DEEP))
    assert all(loaded.schema.one_array for loaded in (BOTH, LONG, BYTES, INTEGERS))
    assert not TWO.schema.one_array
    assert parse_rows(rows) is not None
    assert parse_rows(rows.replace(b'""', b'"\\u0024"')) is None
    assert all(loaded.schema.of_numbers for loaded in (DOUBLES, BOTH, TENSOR, TWO, LONG, BYTES))
    assert [loaded.schema.exact for loaded in (DOUBLES, BOTH, TWO, LONG, BYTES)] == [False, False, False, True, True]
    assert parse_tensors(json.dumps({"inputs": NAMED}).encode(), frozenset()) is not None
