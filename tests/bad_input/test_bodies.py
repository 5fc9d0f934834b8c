"""Bodies that do not fit, in V1 and V2 over REST: a 400 with one sentence that names no value."""

import json
from typing import Any

import pytest

from serving.transport.numeric import LEAST_BYTES
from tests.bad_input.asking import GOOD, INFER, OBJECT, PREDICT, ROW, SECRET, ask, check_error, tensor
from tests.servers import Server

pytestmark = pytest.mark.e2e


def row(**changed: Any) -> dict[str, Any]:
    return {"instances": [{**OBJECT, **changed}]}


def without(name: str) -> dict[str, Any]:
    return {"instances": [{k: v for k, v in OBJECT.items() if k != name}]}


def short_and_long(body: Any) -> tuple[bytes, bytes]:
    """The body, and the same at a length at which numbers are read another way."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return data, data + b" " * LEAST_BYTES


BODIES: list[tuple[str, Any, str]] = [
    ("empty", b"", "empty"),
    ("blank", b" \r\n", "empty"),
    ("not JSON", SECRET.encode(), "not valid JSON"),
    ("cut off", b'{"instances": [[1, 2', "not valid JSON"),
    ("two documents", b"{}{}", "not valid JSON"),
    ("invalid UTF-8", b'{"instances": [["\xff\xfe"]]}', "not valid JSON"),
    ("UTF-16", json.dumps(GOOD).encode("utf-16"), "not valid JSON"),
    ("lone surrogate", b'{"instances": [["\\ud800"]]}', "not valid JSON"),
    ("NaN", b'{"instances": [[NaN,1,1,1,1,1,1,1,1,1]]}', "not valid JSON"),
    ("Infinity", b'{"instances": [[-Infinity,1,1,1,1,1,1,1,1,1]]}', "not valid JSON"),
    ("larger than any double", b'{"instances": [[1e999,1,1,1,1,1,1,1,1,1]]}', "not valid JSON"),
    ("100 000 brackets", b"[" * 100_000 + b"]" * 100_000, "not valid JSON"),
    ("100 000 nested instances", b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "not valid JSON"),
    ("100 000 nested objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "not valid JSON"),
    ("an integer of 10 MB", b'{"instances": [[' + b"1" * 10_000_000 + b"]]}", "not valid JSON"),
    ("a string of 10 MB", json.dumps(row(load=SECRET * 900_000)).encode(), "'load' takes numbers"),
    ("a list", [SECRET], "JSON object"),
    ("a string", json.dumps(SECRET).encode(), "JSON object"),
    ("null", b"null", "JSON object"),
    ("a number", b"4711", "JSON object"),
    ("no instances", {}, "'instances'"),
    ("instances null", {"instances": None}, "'instances'"),
    ("instances a string", {"instances": SECRET}, "'instances'"),
    ("instances an object", {"instances": OBJECT}, "'instances'"),
    ("instances empty", {"instances": []}, "at least one row"),
    ("numbers for rows", {"instances": ROW}, "list in signature order"),
    ("lists and objects mixed", {"instances": [ROW, OBJECT]}, "list in signature order"),
    ("null for a row", {"instances": [ROW, None]}, "list in signature order"),
    ("ragged", {"instances": [ROW, ROW[:-1]]}, "10 values: temperature"),
    ("too few", {"instances": [ROW[:-1]]}, "10 values"),
    ("too many", {"instances": [[*ROW, 1.0]]}, "10 values"),
    ("an empty row", {"instances": [[]]}, "10 values"),
    ("one level too deep", {"instances": [[ROW]]}, "10 values"),
    ("a list in a column", {"instances": [[[75.3], *ROW[1:]]]}, "'temperature' takes numbers"),
    ("a string in a double", {"instances": [[*ROW[:3], SECRET, *ROW[4:]]]}, "'load' takes numbers"),
    ("a numeral as a string", {"instances": [[*ROW[:3], "0.5", *ROW[4:]]]}, "'load' takes numbers"),
    ("a boolean in a double", {"instances": [[*ROW[:3], True, *ROW[4:]]]}, "'load' takes numbers"),
    ("null in a required column", {"instances": [[*ROW[:3], None, *ROW[4:]]]}, "'load' is required"),
    ("by name: a string", row(load=SECRET), "'load' takes numbers"),
    ("by name: null", row(load=None), "'load' is required"),
    ("by name: an object", row(load={"value": SECRET}), "'load' takes numbers"),
    ("by name: a column less", without("load"), "'load' is missing"),
    ("by name: in one row only", {"instances": [OBJECT, *without("load")["instances"]]}, "'load' is (missing|required)"),
    ("by name: an unknown column", row(wear=SECRET), "'wear' is not in"),
    ("by name: a long unknown column", row(**{"w" * 4000: 1}), f"'{'w' * 64}' is not in"),
    ("an empty object", {"instances": [{}]}, "'temperature' is missing"),
    ("output unknown", {**GOOD, "parameters": {"output": SECRET}}, "'output' must be one of auto"),
    ("output a list", {**GOOD, "parameters": {"output": ["auto"]}}, "'output' must be one of auto"),
    ("per_instance a string", {**GOOD, "parameters": {"per_instance": "true"}}, "'per_instance'"),
    ("priority a string", {**GOOD, "parameters": {"priority": "high"}}, "'priority' must be 1"),
    ("parameters a list", {**GOOD, "parameters": [1]}, "'parameters' must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), [pytest.param(*case[1:], id=case[0]) for case in BODIES])
def test_a_v1_body_that_does_not_fit_is_a_400_that_says_why(server: Server, body: Any, says: str) -> None:
    """It names the column or the key, never the value."""
    for written in short_and_long(body):
        check_error(ask(server, "POST", PREDICT, written, {"content-type": "application/json"}), 400, says)


def by_column(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    plain = {n: {"name": n, "datatype": "FP64", "shape": [1], "data": [v]} for n, v in OBJECT.items()}
    return [{**t, **changed.get(n, {})} for n, t in plain.items()]


V2_BODIES: list[tuple[str, Any, str]] = [
    ("empty", b"", "empty"),
    ("not JSON", b"{", "not valid JSON"),
    ("a list", [1], "JSON object"),
    ("no inputs", {}, "'inputs'"),
    ("inputs an object", {"inputs": tensor()}, "'inputs'"),
    ("inputs empty", {"inputs": []}, "at least one tensor"),
    ("an input that is no object", {"inputs": [SECRET]}, "object with 'name'"),
    ("no name", {"inputs": [tensor(name=None)]}, "object with 'name'"),
    ("a name that is a list", {"inputs": [tensor(name=["x"])]}, "object with 'name'"),
    ("a name that is an object", {"inputs": [tensor(name={})]}, "object with 'name'"),
    ("no datatype", {"inputs": [tensor(datatype=None)]}, "'x' must have a 'datatype'"),
    ("unknown datatype", {"inputs": [tensor(datatype="FP65")]}, "'x' has an unknown datatype"),
    ("a datatype in small letters", {"inputs": [tensor(datatype="fp64")]}, "'x' has an unknown datatype"),
    ("no shape", {"inputs": [tensor(shape=None)]}, "'x' must have a 'shape'"),
    ("a shape of strings", {"inputs": [tensor(shape=["1", "10"])]}, "'x' must have a 'shape'"),
    ("a shape of floats", {"inputs": [tensor(shape=[1.0, 10.0])]}, "'x' must have a 'shape'"),
    ("a shape of booleans", {"inputs": [tensor(shape=[True, 10])]}, "'x' must have a 'shape'"),
    ("negative", {"inputs": [tensor(shape=[-1, 10])]}, "do not fill its shape"),
    ("twice negative", {"inputs": [tensor(shape=[-1, -10])]}, "do not fill its shape"),
    ("no dimensions", {"inputs": [tensor(shape=[])]}, "do not fill its shape"),
    ("no rows", {"inputs": [tensor(shape=[0, 10], data=[])]}, "no rows"),
    ("too large a shape", {"inputs": [tensor(shape=[2**62, 2**62])]}, "do not fill its shape"),
    ("too few data", {"inputs": [tensor(data=ROW[:-1])]}, "9 values, which do not fill its shape"),
    ("too many data", {"inputs": [tensor(data=[*ROW, 1])]}, "11 values, which do not fill its shape"),
    ("no data", {"inputs": [tensor(data=None)]}, "'data'"),
    ("data a string", {"inputs": [tensor(data=SECRET)]}, "'data'"),
    ("ragged data", {"inputs": [tensor(shape=[2, 5], data=[ROW[:5], ROW[:4]])]}, "ragged"),
    ("data of another shape", {"inputs": [tensor(data=[ROW[:5], ROW[5:]])]}, "do not have its shape"),
    ("another width", {"inputs": [tensor(shape=[1, 5], data=ROW[:5])]}, "must have the shape \\[-1, 10\\]"),
    ("three dimensions", {"inputs": [tensor(shape=[1, 10, 1])]}, "is no column|shape"),
    ("strings in FP64", {"inputs": [tensor(data=[SECRET, *ROW[1:]])]}, "'x' has values that are no FP64"),
    ("booleans in FP64", {"inputs": [tensor(data=[True, *ROW[1:]])]}, "'x' has values that are no FP64"),
    ("null in FP64", {"inputs": [tensor(data=[None, *ROW[1:]])]}, "'temperature' is required"),
    ("fractions in INT64", {"inputs": [tensor(datatype="INT64")]}, "'x' has values that are no INT64"),
    ("out of INT8", {"inputs": [tensor(datatype="INT8", data=[300] * 10)]}, "'x' has values that are no INT8"),
    ("BYTES for numbers", {"inputs": [tensor(datatype="BYTES", data=["1"] * 10)]}, "numeric"),
    ("BOOL for numbers", {"inputs": [tensor(datatype="BOOL", data=[True] * 10)]}, "numeric"),
    ("two of a name", {"inputs": [tensor(), tensor()]}, "same name"),
    ("a column less", {"inputs": by_column()[1:]}, "'temperature' is missing"),
    ("an unknown column", {"inputs": by_column(load={"name": "wear"})}, "'wear' is no column"),
    ("a column too many", {"inputs": [*by_column(), tensor(name="wear", shape=[1], data=[1])]}, "'wear' is no column"),
    ("rows that differ", {"inputs": by_column(load={"shape": [2], "data": [1, 2]})}, "same first dimension"),
    ("two columns in one", {"inputs": by_column(load={"shape": [1, 2], "data": [1, 2]})}, r"'load'.*\[n\] or \[n, 1\]"),
    ("a column of strings", {"inputs": by_column(load={"datatype": "BYTES", "data": [SECRET]})}, "'load' takes numbers"),
    ("a column of booleans", {"inputs": by_column(load={"datatype": "BOOL", "data": [True]})}, "'load' is a double"),
    ("an unknown output", {"inputs": [tensor()], "outputs": [{"name": "wear"}]}, "no output 'wear'"),
    ("outputs a list of names", {"inputs": [tensor()], "outputs": ["predictions"]}, "'outputs'"),
    ("outputs a string", {"inputs": [tensor()], "outputs": "predictions"}, "'outputs'"),
    ("probabilities as predictions and beside them",
     {"inputs": [tensor()], "outputs": [{"name": "probabilities"}], "parameters": {"output": "probabilities"}},
     "no output 'probabilities'"),
    ("an id that is a number", {"inputs": [tensor()], "id": 5}, "'id' must be a string"),
    ("output unknown", {"inputs": [tensor()], "parameters": {"output": SECRET}}, "'output' must be one of auto"),
    ("parameters a list", {"inputs": [tensor()], "parameters": [1]}, "'parameters' must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), [pytest.param(*case[1:], id=case[0]) for case in V2_BODIES])
def test_a_v2_body_that_does_not_fit_is_a_400_that_says_why(server: Server, body: Any, says: str) -> None:
    """Names, datatypes, shapes and values are checked before anything is computed."""
    for written in short_and_long(body):
        check_error(ask(server, "POST", INFER, written, {"content-type": "application/json"}), 400, says)
