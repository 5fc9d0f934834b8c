"""Whatever a large body holds: the server answers others meanwhile, and says what was wrong."""

import gzip
import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.bad_input.asking import ask, check_error
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.audit("33")]
#: A stall took seconds, and now takes some hundredths of one; machines are shared.
STALL_SECONDS = 0.5


class Watch:
    """Asks for liveness again and again, and notes the longest answer."""

    def __init__(self, server: Server) -> None:
        self.longest, self._server, self._ends = 0.0, server, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ends.set()
        self._thread.join()

    def _run(self) -> None:
        connection = HTTPConnection("127.0.0.1", self._server.port, timeout=30)
        while not self._ends.wait(0.005):
            began = time.perf_counter()
            connection.request("GET", "/health/live")
            connection.getresponse().read()
            self.longest = max(self.longest, time.perf_counter() - began)
        connection.close()


def tensors(count: int) -> bytes:
    """A V2 body of so many tensors."""
    tensor = json.dumps({"name": "x%d", "datatype": "FP64", "shape": [1], "data": [1]})
    return b'{"inputs": [%b]}' % ",".join(tensor % i for i in range(count)).encode()


def many(element: bytes, size: int = 12_000_000) -> bytes:
    """A list of so many bytes."""
    return b"[%b]" % b",".join([element] * (size // (len(element) + 1)))


PREDICT, INFER = "/v1/models/steep:predict", "/v2/models/steep/infer"
GZIP = {"content-encoding": "gzip"}
ATTACKS: list[tuple[str, str, Callable[[], bytes], int, str]] = [
    ("empty objects", PREDICT, lambda: b'{"instances": %b}' % many(b"{}", 15_000_000), 413, "at most 1000000 elements"),
    ("ragged lists", PREDICT, lambda: b'{"instances": %b}' % many(b"[1],[1,2]"), 413, "at most 1000000 elements"),
    ("ragged at the end", PREDICT, lambda: b'{"instances": [%b, [1]]}' % many(b"[0.125, 1.5]")[1:-1], 400, "2 values"),
    (
        "unknown columns",
        PREDICT,
        lambda: b'{"instances": %b}' % many(b'{"a": 1, "b": 2, "c": 3}'),
        400,
        "'c' is not in",
    ),
    ("one row of lists", PREDICT, lambda: b'{"instances": [%b]}' % many(b"[]"), 413, "One row has at most"),
    ("something beside", PREDICT, lambda: b'{"x": %b}' % many(b"{}"), 413, "beside its rows"),
    ("100 000 tensors", INFER, lambda: tensors(100_000), 400, "more tensors"),
    ("lists for numbers", INFER, lambda: b'{"inputs": [{"name": "x", "data": %b}]}' % many(b"[]"), 413, "500000"),
]


@pytest.mark.parametrize(("path", "body", "status", "says"), [a[1:] for a in ATTACKS], ids=[a[0] for a in ATTACKS])
def test_others_are_answered_meanwhile(
    server: Server, path: str, body: Callable[[], bytes], status: int, says: str
) -> None:
    """What is large is decoded beside the loop, and counted before anything is built of it."""
    zipped = gzip.compress(body(), 1)
    with Watch(server) as watch:
        check_error(ask(server, "POST", path, zipped, GZIP), status, says)
    assert watch.longest < STALL_SECONDS


def test_a_large_request_that_is_right_is_answered(server: Server) -> None:
    """In its own time: others are answered meanwhile."""
    rows = [dict(zip(["a", "b"], [float(i), 2.0], strict=True)) for i in range(100_000)]
    body = json.dumps({"instances": rows}).encode()
    with Watch(server) as watch:
        answer = ask(server, "POST", PREDICT, body)
    assert answer.status == 200
    assert json.loads(answer.body)["predictions"] == pytest.approx([10.0 * (i + 2.0) for i in range(100_000)], abs=20)
    assert watch.longest < STALL_SECONDS


@pytest.mark.parametrize("structured", [True, False])
def test_an_event_has_a_bound_of_its_own(server: Server, structured: bool) -> None:
    """KServe's code parses it, on the loop."""
    if structured:
        headers = {"content-type": "application/cloudevents+json"}
    else:
        headers = {
            "ce-specversion": "1.0",
            "ce-id": "1",
            "ce-source": "s",
            "ce-type": "t",
            "content-type": "application/json",
        }
    with Watch(server) as watch:
        check_error(
            ask(server, "POST", PREDICT, b'{"instances": %b}' % many(b"{}"), headers), 413, "a CloudEvent may be"
        )
    assert watch.longest < STALL_SECONDS


def message(**contents: Any) -> Any:
    """A message with one tensor of typed contents."""
    ((_, values),) = contents.items()
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP64", shape=[len(values) // 2, 2])
    tensor.contents.MergeFrom(pb.InferTensorContents(**contents))
    return pb.ModelInferRequest(model_name="steep", inputs=[tensor])


MESSAGES: list[tuple[str, Callable[[], Any], str]] = [
    ("integers", lambda: message(int64_contents=[1] * 12_000_000), "raw_input_contents"),
    ("booleans", lambda: message(bool_contents=[True] * 12_000_000), "raw_input_contents"),
    ("texts", lambda: message(bytes_contents=[b""] * 4_000_000), "raw_input_contents"),
    ("no tensors", lambda: b"\x0a\x01x" + b"\x2a\x00" * 5_000_000, "raw_input_contents"),
]


@pytest.mark.parametrize(("made", "says"), [m[1:] for m in MESSAGES], ids=[m[0] for m in MESSAGES])
def test_others_are_answered_while_a_message_is_read(server: Server, made: Callable[[], Any], says: str) -> None:
    """It is looked through before it is parsed."""
    given = made()
    data = given if isinstance(given, bytes) else given.SerializeToString()
    with Watch(server) as watch, grpc.insecure_channel(server.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data, timeout=60)
    assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert says in refused.value.details()
    assert watch.longest < STALL_SECONDS


def test_a_large_message_of_doubles_is_answered(server: Server) -> None:
    """They are quick to parse, and become arrays beside the loop."""
    rows = 100_000
    with Watch(server) as watch:
        answer = server.infer(message(fp64_contents=[1.5] * (2 * rows)), timeout=60)
    assert list(answer.outputs[0].shape) == [rows]
    assert watch.longest < STALL_SECONDS
