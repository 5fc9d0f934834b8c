"""The numbers of a request, on every wire: what is taken, as which array, and what is refused in whose name."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from registry.mlmodel import Column, Tensor
from serving.errors import BadRequest
from serving.transport.grpc import GrpcRequest
from serving.transport.v2 import V2Request
from tests.wires import JSON_WIRES, V1_WIRES, V2_WIRES, loaded_of, on_every_wire

INF, NAN = math.inf, math.nan


def carried(loaded: Any, rows: list[list[Any]], datatype: str = "FP64") -> dict[str, Any]:
    """The wires that can say these values."""
    finite = all(not (isinstance(v, float) and math.isinf(v)) for row in rows for v in row)
    every = on_every_wire(loaded, rows, datatype)
    return {wire: decode for wire, decode in every.items() if finite or wire.split(":")[0] not in JSON_WIRES}


@pytest.mark.audit("6")
@pytest.mark.parametrize(
    ("kind", "required", "value", "expected"),
    [
        ("long", True, 3.0, 3), ("long", True, -0.0, 0), ("long", True, -(2.0**63), -(2**63)),
        ("long", True, 2.0**62, 2**62), ("integer", True, 2.0**31 - 1, 2**31 - 1), ("integer", True, -(2.0**31), -(2**31)),
        ("long", False, 3.0, 3.0), ("long", False, 2.0**53, 2.0**53), ("integer", False, -1.0, -1.0),
        ("long", False, NAN, NAN), ("integer", False, NAN, NAN),
    ],
)  # fmt: skip
def test_integral_floats_are_integers_on_every_wire(kind: str, required: bool, value: float, expected: Any) -> None:
    """In one FP64 tensor of all columns, beside doubles, and in a tensor of the column's own."""
    loaded = loaded_of(Column("a", "double"), Column("n", kind, required))
    for wire, decode in carried(loaded, [[0.5, value], [1.5, 7.0]]).items():
        arrays = decode()
        assert arrays is not None, wire
        assert arrays[0].tolist() == [0.5, 1.5], wire
        expected_type = {"long": np.int64, "integer": np.int32}[kind] if required else np.float64
        assert arrays[1].dtype == expected_type, wire
        np.testing.assert_array_equal(arrays[1], np.array([expected, 7], expected_type), err_msg=wire)


@pytest.mark.audit("6")
@pytest.mark.parametrize(
    ("kind", "required", "value"),
    [
        ("long", True, 1.5), ("long", True, 2.0**63), ("long", True, -(2.0**64)), ("long", True, 1e300), ("long", True, NAN),
        ("long", True, INF), ("integer", True, 2.0**31), ("integer", True, -(2.0**31) - 1), ("integer", True, 5e-324),
        ("long", False, 0.5), ("long", False, 2.0**54), ("long", False, -INF), ("integer", False, 2.0**31),
    ],
)  # fmt: skip
def test_any_other_number_is_refused_in_the_name_of_its_column(kind: str, required: bool, value: float) -> None:
    """On every wire: a fraction, a number out of range, infinity, and a missing value that must not be."""
    loaded = loaded_of(Column("a", "double"), Column("n", kind, required))
    for wire, decode in carried(loaded, [[0.5, 7.0], [0.5, value]]).items():
        with pytest.raises(BadRequest, match="'n'"):
            pytest.fail(f"{wire}: {decode()}")


@pytest.mark.audit("35")
@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize("value", [INF, -INF])
def test_infinity_is_no_value_of_a_column(kind: str, required: bool, value: float) -> None:
    """JSON cannot carry it, so the same rows would not be taken on every wire. The column is named."""
    loaded = loaded_of(Column("a", kind), Column("b", kind, required))
    for wire, decode in carried(loaded, [[0.5, 7.0], [0.5, value]]).items():
        with pytest.raises(BadRequest, match="'b'"):
            pytest.fail(f"{wire}: {decode()}")


def test_what_overflows_a_float_names_its_column() -> None:
    """1e300 is a double and no float."""
    loaded = loaded_of(Column("a", "float"), Column("b", "float"))
    for wire, decode in carried(loaded, [[0.5, 1e300]]).items():
        with pytest.raises(BadRequest, match="'b'"):
            pytest.fail(f"{wire}: {decode()}")


@pytest.mark.parametrize("datatype", ["FP64", "FP32", "INT64", "INT32"])
@pytest.mark.parametrize("kind", ["double", "float", "long", "integer"])
def test_a_whole_number_is_taken_in_any_datatype(kind: str, datatype: str) -> None:
    """Into any column of numbers, alone or all at once."""
    loaded = loaded_of(Column("a", kind), Column("b", kind))
    for wire, decode in carried(loaded, [[1, 2], [3, 4]], datatype).items():
        arrays = decode()
        assert arrays is not None, wire
        assert np.column_stack(arrays).tolist() == [[1, 2], [3, 4]], wire


@pytest.mark.audit("35")
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_a_tensor_takes_finite_numbers_that_fit_it(dtype: str) -> None:
    """The same rule as for columns, whose numbers a tensor's are."""
    loaded = loaded_of(Tensor("t", dtype, (-1, 2)))
    for wire, decode in V2_WIRES.items():
        arrays = decode(loaded, [("t", [1, 2], [1.0, 2.0])], "FP64")
        assert arrays is not None
        assert (arrays[0].dtype, arrays[0].tolist()) == (np.dtype(dtype), [[1, 2]])
        for value in (NAN, INF, *([1e300] if dtype != "float64" else []), *([0.5] if "int" in dtype else [])):
            if wire not in JSON_WIRES or not math.isinf(value):
                with pytest.raises(BadRequest, match="'t'"):
                    pytest.fail(f"{wire}: {decode(loaded, [('t', [1, 2], [1.0, value])], 'FP64')}")


@pytest.mark.audit("35")
@pytest.mark.parametrize("wire", V2_WIRES.values(), ids=V2_WIRES.keys())
@pytest.mark.parametrize("shape", [[2, 0], [30, 0], [1, 30, 0], [0, 30], [0], [30], [30, 1]])
def test_a_shape_without_values_or_of_another_width_is_refused(wire: Any, shape: list[int]) -> None:
    """For columns and for tensors; where a tensor may have any width, one at least."""
    anything = [] if shape == [30, 1] else [loaded_of(Tensor(None, "float64", (-1, -1)))]
    columns = loaded_of(*[Column(f"c{i}", "double") for i in range(30)])
    for loaded in (columns, loaded_of(Tensor(None, "float64", (-1, 30))), *anything):
        with pytest.raises(BadRequest):
            pytest.fail(str(wire(loaded, [("x", shape, [0.5] * math.prod(shape))], "FP64")))


@pytest.mark.audit("35")
def test_rows_without_values_are_refused_in_v1_too() -> None:
    """Lists of nothing, for a tensor of any width."""
    for instances in ([[], []], [[]]):
        with pytest.raises(BadRequest, match="dimension of 0"):
            V1_WIRES["v1_lists"](loaded_of(Tensor(None, "float64", (-1, -1))), instances)


@pytest.mark.parametrize("sizes", [[1] * 33, [9] * 100_000, [2**62] * 4000])
def test_a_tensor_has_no_more_dimensions_than_an_array(sizes: list[int]) -> None:
    """They are counted before anything is made of them: their product may have a million digits."""
    loaded = loaded_of(Column("a", "double"))
    tensor = {"name": "a", "shape": sizes, "datatype": "FP64", "data": [1.0]}
    message = pb.ModelInferRequest()
    message.inputs.add(name="a", shape=sizes, datatype="FP64")
    message.raw_input_contents.append(bytes(8))
    for request in (V2Request(json.dumps({"inputs": [tensor]}).encode()), GrpcRequest(message)):
        with pytest.raises(BadRequest, match="more than 32 dimensions"):
            request.decode(loaded)
