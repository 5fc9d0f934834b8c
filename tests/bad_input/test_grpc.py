"""The same faults over gRPC, with its own statuses."""

import re
from typing import Any

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.bad_input.asking import LONG, MODEL, ROW, SECRET, typed
from tests.servers import Server

pytestmark = pytest.mark.e2e


def message(*inputs: Any, **more: Any) -> Any:
    return pb.ModelInferRequest(**{"model_name": MODEL, "inputs": inputs or [typed()], **more})


def parameter(**choice: Any) -> Any:
    return pb.InferParameter(**choice)


def untyped(datatype: str = "FP64", shape: list[int] | None = None, raw_: bytes = b"") -> Any:
    tensor_ = pb.ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape or [1, 10])
    return message(tensor_, raw_input_contents=[raw_])


DOUBLES = np.array(ROW, dtype="<f8").tobytes()
Code = grpc.StatusCode
MESSAGES: list[tuple[str, Any, grpc.StatusCode, str]] = [
    ("no model", message(model_name=""), Code.NOT_FOUND, "no model"),
    ("unknown model", message(model_name="nobody"), Code.NOT_FOUND, "no model 'nobody'"),
    ("long name", message(model_name=LONG), Code.NOT_FOUND, f"'{'n' * 64}'"),
    ("not loaded", message(model_version="2"), Code.NOT_FOUND, "no loaded version '2'"),
    ("unknown version", message(model_version="x"), Code.NOT_FOUND, "no loaded version 'x'"),
    ("no inputs", pb.ModelInferRequest(model_name=MODEL), Code.INVALID_ARGUMENT, "at least one tensor"),
    ("unknown datatype", message(typed(datatype="FP65")), Code.INVALID_ARGUMENT, "unknown datatype"),
    ("no datatype", message(typed(datatype="")), Code.INVALID_ARGUMENT, "unknown datatype"),
    ("no shape", message(typed(shape=[])), Code.INVALID_ARGUMENT, "do not fill its shape"),
    ("negative", message(typed(shape=[-1, 10])), Code.INVALID_ARGUMENT, "do not fill its shape"),
    ("no rows", message(typed(shape=[0, 10], data=[])), Code.INVALID_ARGUMENT, "no rows"),
    ("too few", message(typed(data=ROW[:-1])), Code.INVALID_ARGUMENT, "9 values"),
    ("another width", message(typed(shape=[2, 5])), Code.INVALID_ARGUMENT, r"shape \[-1, 10\]"),
    ("contents of another type", message(typed(int64_contents=[1] * 10)), Code.INVALID_ARGUMENT, "0 values"),
    ("BYTES", message(typed(datatype="BYTES", bytes_contents=[b"1"] * 10)), Code.INVALID_ARGUMENT, "numeric"),
    ("BOOL", message(typed(datatype="BOOL", bool_contents=[True] * 10)), Code.INVALID_ARGUMENT, "boolean|numeric|datatype"),
    ("out of INT8", message(typed(datatype="INT8", int_contents=[300] * 10)), Code.INVALID_ARGUMENT, "no INT8"),
    ("NaN", message(typed(data=[float("nan"), *ROW[1:]])), Code.INVALID_ARGUMENT, "'temperature' is required"),
    ("two of a name", message(typed(), typed()), Code.INVALID_ARGUMENT, "same name"),
    ("unknown column", message(typed(name="wear", shape=[1], data=[1])), Code.INVALID_ARGUMENT, "'wear' is no column"),
    ("raw: empty", untyped(), Code.INVALID_ARGUMENT, "0 values"),
    ("raw: half a double", untyped(raw_=DOUBLES[:-3]), Code.INVALID_ARGUMENT, "no whole number"),
    ("raw: one too few", untyped(raw_=DOUBLES[:-8]), Code.INVALID_ARGUMENT, "9 values"),
    ("raw: NaN", untyped(raw_=np.full(10, np.nan).tobytes()), Code.INVALID_ARGUMENT, "'temperature' is required"),
    ("raw: cut BYTES", untyped("BYTES", raw_=b"\xff\xff\xff\x7fa"), Code.INVALID_ARGUMENT, "end within an element"),
    ("raw: a cut length", untyped("BYTES", raw_=b"\x01\x00"), Code.INVALID_ARGUMENT, "end within an element"),
    ("raw: no BOOL", untyped("BOOL", raw_=b"\x02" * 10), Code.INVALID_ARGUMENT, "no BOOL"),
    ("raw and typed", message(raw_input_contents=[DOUBLES]), Code.INVALID_ARGUMENT, "both contents"),
    ("raw: one too many", message(raw_input_contents=[DOUBLES] * 2), Code.INVALID_ARGUMENT, "one entry per input"),
    ("unknown output", message(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="wear")]),
     Code.INVALID_ARGUMENT, "no output 'wear'"),
    ("unknown mode", message(parameters={"output": parameter(string_param=SECRET)}), Code.INVALID_ARGUMENT, "'output'"),
    ("mode a number", message(parameters={"output": parameter(int64_param=1)}), Code.INVALID_ARGUMENT, "'output'"),
    ("priority 4", message(parameters={"priority": parameter(int64_param=4)}), Code.INVALID_ARGUMENT, "'priority'"),
    ("17 MB", message(typed(shape=[212_500, 10], data=[1.0] * 2_125_000)), Code.RESOURCE_EXHAUSTED, "larger than max"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "code", "says"), [pytest.param(*case[1:], id=case[0]) for case in MESSAGES])
def test_grpc_answers_the_same_faults_with_its_own_statuses(
    server: Server, given: Any, code: grpc.StatusCode, says: str
) -> None:
    """The exact status, and one sentence without a value."""
    with pytest.raises(grpc.RpcError) as error:
        server.infer(given)
    assert error.value.code() is code, error.value.details()
    assert re.search(says, error.value.details()), error.value.details()
    assert SECRET not in error.value.details()


def call(server: Server, method: str, data: bytes) -> Any:
    """Any bytes to any method of the service."""
    with grpc.insecure_channel(server.grpc) as channel:
        return channel.unary_unary(f"/inference.GRPCInferenceService/{method}")(data, timeout=30)


@pytest.mark.parametrize(
    ("method", "data", "code"),
    [
        ("ModelInfer", b"\xff\xff\xff", Code.INVALID_ARGUMENT),
        ("ModelInfer", b"\x0a\x02\xff\xfe", Code.INVALID_ARGUMENT),
        ("ModelReady", b"\xff", Code.INVALID_ARGUMENT),
        ("ModelReady", pb.ModelReadyRequest(name="nobody").SerializeToString(), Code.NOT_FOUND),
        ("ModelReady", pb.ModelReadyRequest(name=MODEL, version="2").SerializeToString(), Code.NOT_FOUND),
        ("ModelMetadata", pb.ModelMetadataRequest(name="nobody").SerializeToString(), Code.NOT_FOUND),
        ("RepositoryModelLoad", b"", Code.PERMISSION_DENIED),
        ("RepositoryModelUnload", b"", Code.PERMISSION_DENIED),
        ("ModelExplain", b"", Code.UNIMPLEMENTED),
    ],
)
def test_the_other_calls_of_the_service(server: Server, method: str, data: bytes, code: grpc.StatusCode) -> None:
    """A message that is no message is the caller's fault; loading by request is refused; the rest does not exist."""
    with pytest.raises(grpc.RpcError) as error:
        call(server, method, data)
    assert error.value.code() is code, error.value.details()
