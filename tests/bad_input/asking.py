"""What the tests of bad input ask with, and what an error must look like."""

from __future__ import annotations

import json
import re
from http.client import HTTPConnection
from typing import Any, NamedTuple

from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.servers import Server

MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
GOOD = {"instances": [ROW]}
SECRET = "s3cret-4711"  # no answer may hold a value of the request
PREDICT, INFER = f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"
NAMES = ["temperature", "age_months", "vibration", "load", "humidity", "hours_since_maintenance",
         "type_press", "type_lathe", "type_mill", "type_pump"]  # fmt: skip
OBJECT = dict(zip(NAMES, ROW, strict=True))
LONG = "n" * 5000


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(server: Server, method: str, path: str, body: Any = b"", headers: dict[str, str] | None = None) -> Answer:
    """One request, its path and body sent as they stand."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request(method, path, data, headers or {})
    response = connection.getresponse()
    answer = Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    connection.close()
    return answer


def check_error(answer: Answer, status: int, says: str = "") -> None:
    """The contract's shape: one sentence, exactly JSON, none of the request's values."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/json"
    document = json.loads(answer.body)
    assert list(document) == ["error"]
    check_sentence(document["error"], says)


def check_sentence(text: str, says: str) -> None:
    assert re.search(says, text), text
    assert re.fullmatch(r"[A-Z'].{5,400}\.", text), text
    assert SECRET not in text
    assert "Traceback" not in text


def check_alive(server: Server) -> None:
    assert ask(server, "GET", "/health/live").status == 200
    assert ask(server, "GET", "/ready").status == 200
    assert json.loads(ask(server, "POST", PREDICT, GOOD).body)["model_version"] == "1"


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP64", "shape": [1, 10], "data": ROW, **changed}


def typed(
    name: str = "x", datatype: str = "FP64", shape: list[int] | None = None, data: Any = None, **more: Any
) -> Any:
    contents = more or {"fp64_contents": ROW if data is None else data}
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=[1, 10] if shape is None else shape, contents=contents
    )
