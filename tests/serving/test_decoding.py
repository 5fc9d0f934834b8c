"""From JSON rows to arrays: the types of the contract, as tables."""

from typing import Any

import numpy as np
import pytest

from registry.mlmodel import Column, Signature, Tensor
from serving.decoding import Partial, complete, decode_instances
from serving.errors import BadRequest
from serving.schema import InputSchema, blank, compile_schema

NONE: frozenset[str] = frozenset()
DOUBLES = compile_schema(Signature((Column("a", "double"), Column("b", "double"))))
TENSOR = compile_schema(Signature((Tensor(None, "float32", (-1, 2)),)))


def one(kind: str, required: bool = True) -> InputSchema:
    return compile_schema(Signature((Column("x", kind, required), Column("pad", "string", False))))


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("double", 1, 1.0),
        ("double", 1.5, 1.5),
        ("double", 2**70, float(2**70)),
        ("float", 0.5, np.float32(0.5)),
        ("long", 2**62, 2**62),
        ("long", 3.0, 3),
        ("integer", -5, -5),
        ("boolean", True, True),
        ("string", "é", "é"),
        ("binary", "AAE=", b"\x00\x01"),
        ("datetime", "2026-01-02T03:04:05Z", np.datetime64("2026-01-02T03:04:05", "ns")),
        ("datetime", "2026-01-02T03:04:05+02:00", np.datetime64("2026-01-02T01:04:05", "ns")),
        ("datetime", "2026-01-02", np.datetime64("2026-01-02", "ns")),
    ],
)
def test_a_value_fits(kind: str, value: Any, expected: Any) -> None:
    """JSON integers serve for doubles, integral floats for longs, ISO 8601 for datetimes."""
    for instance in ([value, "p"], {"x": value}):
        arrays = decode_instances(one(kind), [instance], NONE).arrays
        assert arrays is not None
        assert arrays[0][0] == expected


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("double", True), ("double", "1.5"), ("double", [1]), ("double", {}), ("double", None), ("double", 10**400),
        ("float", 1e300), ("long", 1.5), ("long", True), ("long", "1"), ("long", 2**63), ("integer", 2**31),
        ("boolean", 1), ("boolean", "true"), ("string", 1), ("string", None), ("binary", "?"), ("binary", 1),
        ("datetime", 5), ("datetime", "yesterday"), ("datetime", "0001-01-01"), ("datetime", None),
    ],
)  # fmt: skip
def test_a_value_does_not_fit(kind: str, value: Any) -> None:
    """Booleans, strings and numbers never stand for each other; the error names the column and not the value."""
    with pytest.raises(BadRequest, match="'x'") as error:
        decode_instances(one(kind), [[value, "p"]], NONE)
    assert "1.5" not in str(error.value)
    assert "yesterday" not in str(error.value)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("double", np.nan),
        ("long", np.nan),
        ("boolean", None),
        ("string", None),
        ("binary", None),
        ("datetime", np.datetime64("NaT")),
    ],
)
def test_null_is_missing_where_the_column_is_optional(kind: str, expected: Any) -> None:
    """As a value, and as a key that is not there."""
    for instance in ([None, "p"], {"pad": "p"}, {"x": None}):
        arrays = decode_instances(one(kind, required=False), [instance], NONE).arrays
        assert arrays is not None
        assert arrays[0][0] is expected or np.isnan(arrays[0][0]) or np.isnat(arrays[0][0])


def test_a_long_beside_a_double_keeps_its_last_digit() -> None:
    """One matrix would lose integers past 2^53."""
    schema = compile_schema(Signature((Column("i", "long"), Column("d", "double"))))
    arrays = decode_instances(schema, [[2**53 + 1, 0.5]], NONE).arrays
    assert arrays is not None
    assert int(arrays[0][0]) == 2**53 + 1
    optional = compile_schema(Signature((Column("i", "long", False), Column("d", "double"))))
    with pytest.raises(BadRequest, match="2\\^53"):
        decode_instances(optional, [[2**53 + 1, 0.5], [None, 0.5]], NONE)


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ([], "at least one row"), ({}, "list"), (None, "list"), ("x", "list"), ([1.0], "list in signature order"),
        ([[1.0, 2.0], {"a": 1}], "list in signature order"), ([[1.0]], "2 values: a, b"), ([[1, 2], [1]], "2 values"),
        ([[1, 2, 3]], "2 values"), ([[[1], 2]], "'a'"), ([{"a": 1}], "'b' is missing|'b' is required"),
        ([{"a": 1, "b": 2, "c": 3}], "'c' is not in"), ([{"a": 1, "b": 2}, {"a": 1}], "'b'"), ([{}], "'a' is missing"),
        ([[1, True]], "'b'"), ([[1, "2"]], "'b'"), ([[1, None]], "'b' is required"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(instances: Any, says: str) -> None:
    """Each is a BadRequest whose sentence says what to change."""
    with pytest.raises(BadRequest, match=says):
        decode_instances(DOUBLES, instances, NONE)


def test_lists_and_objects_give_the_same_matrix() -> None:
    """Objects may name the columns in any order."""
    by_list = decode_instances(DOUBLES, [[1, 2.5], [3, 4]], NONE).arrays
    by_name = decode_instances(DOUBLES, [{"b": 2.5, "a": 1}, {"a": 3, "b": 4}], NONE).arrays
    assert by_list is not None
    assert by_name is not None
    assert np.array_equal(by_list[0], by_name[0])
    assert by_list[0].dtype == np.float64


def test_extra_columns_are_dropped_where_the_operator_says_so() -> None:
    """`ignore_extra_columns` is the operator's choice."""
    schema = compile_schema(Signature((Column("a", "double"),)), ignore_extra=True)
    arrays = decode_instances(schema, [{"a": 1, "z": "?"}], NONE).arrays
    assert arrays is not None
    assert arrays[0].tolist() == [[1.0]]


@pytest.mark.parametrize(
    ("instances", "good"),
    [
        ([[1, 2], [3, 4.5]], True), ([{"input-0": [1, 2]}], True), ([[1, 2, 3]], False), ([[1], [1, 2]], False),
        ([[1, True]], False), ([[1, "a"]], False), ([[1, None]], False), ([1, 2], False), ([[[1, 2]]], False),
        ([{"other": [1, 2]}], False), ([{"input-0": [1, 2], "x": 1}], False), ([[1, 1e300]], False),
    ],
)  # fmt: skip
def test_tensor_rows(instances: Any, good: bool) -> None:
    """A tensor signature checks shape and type just as strictly."""
    if good:
        arrays = decode_instances(TENSOR, instances, NONE).arrays
        assert arrays is not None
        assert arrays[0].dtype == np.float32
        assert arrays[0].shape == (len(instances), 2)
    else:
        with pytest.raises(BadRequest):
            decode_instances(TENSOR, instances, NONE)


def test_several_tensors_go_by_name() -> None:
    """Also integers without a sign, which JSON must not wrap."""
    schema = compile_schema(Signature((Tensor("a", "uint8", (-1,)), Tensor("b", "int64", (-1, 1)))))
    arrays = decode_instances(schema, [{"a": 255, "b": [1]}, {"a": 0, "b": [2]}], NONE).arrays
    assert arrays is not None
    assert arrays[0].tolist() == [255, 0]
    for wrong in ([{"a": 256, "b": [1]}], [{"a": -1, "b": [1]}], [{"a": 1}], [[1, 2]]):
        with pytest.raises(BadRequest):
            decode_instances(schema, wrong, NONE)


def test_keys_may_stand_in_place_of_columns() -> None:
    """What is given wins; what is absent is marked, row by row."""
    keys = frozenset({"id"})
    partial = decode_instances(DOUBLES, [{"id": 1, "a": 5}, {"id": 2, "a": 6}], keys)
    assert partial.arrays is None
    assert partial.keys == {"id": [1, 2]}
    assert partial.given["a"].tolist() == [5, 6]
    mixed = decode_instances(DOUBLES, [{"id": 1, "a": 5, "b": 1}, {"id": 2, "b": 2}], keys)
    assert mixed.absent["a"].tolist() == [False, True]
    with pytest.raises(BadRequest, match="'z'"):
        decode_instances(DOUBLES, [{"id": 1, "z": 5}], keys)


@pytest.mark.parametrize("kind", ["double", "float", "long", "integer", "boolean", "string", "binary", "datetime"])
def test_warm_up_without_an_example_uses_harmless_values(kind: str) -> None:
    """Zeros, empty strings, epochs."""
    schema = one(kind)
    arrays = complete(schema, Partial(2, given={c.name: blank(c, 2) for c in schema.columns}))
    assert len(arrays[0]) == 2
