"""Numbers straight into arrays: the same as through Python's objects, or not at all."""

import json
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.transport.numeric import parse_rows, parse_tensors

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**63), 2**64 - 1)
ODD = st.sampled_from([None, True, "x", [], [1.0], {}, {"a": 1.0}, 2**70])
MATRICES = st.integers(1, 5).flatmap(
    lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=1, max_size=8)
)


def tensor(**fields: Any) -> dict[str, Any]:
    """An input of a V2 request."""
    return {"name": "x", "datatype": "FP64", "shape": [2, 2], "data": [1.5, 2, 3, 4], **fields}


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


@given(st.recursive(NUMBERS | ODD, lambda inner: st.lists(inner, max_size=4), max_leaves=12))
def test_nothing_else_is_taken_for_numbers(instances: Any) -> None:
    """Ragged lists, lists where numbers should be, nulls, texts, booleans and objects are left to the other way."""
    body = json.dumps({"instances": instances}).encode()
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
        b'{"instances": [{"a": 1}]}',
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
        [1],
        3,
        [],
    ],
)
def test_tensors_left_to_the_other_way(inputs: Any) -> None:
    """Integers above 2^53 are no doubles; all else is for it to refuse."""
    assert parse_tensors(json.dumps({"inputs": inputs}).encode(), frozenset()) is None


def test_entity_keys_keep_their_type() -> None:
    """Whole numbers are looked up as such, whatever the tensor calls them."""
    assert parse_tensors(json.dumps({"inputs": [tensor()]}).encode(), frozenset({"x"})) is None
