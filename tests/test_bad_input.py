"""Every row of the contract's error table, over REST and gRPC: the right status, one sentence, and a server that lives on."""

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
GOOD = {"instances": [ROW]}
SECRET = "s3cret-4711"  # no answer may hold a value of the request
PREDICT, INFER = f"/v1/models/{MODEL}:predict", f"/v2/models/{MODEL}/infer"
LIMIT = 16_777_216
NAMES = ["temperature", "age_months", "vibration", "load", "humidity", "hours_since_maintenance",
         "type_press", "type_lathe", "type_mill", "type_pump"]  # fmt: skip
OBJECT = dict(zip(NAMES, ROW, strict=True))
TYPES = ("double", "float", "long", "integer", "boolean", "string", "datetime")


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Serves the champion, which is version 1, and a regression whose answers may be infinite or NaN."""
    register(shared.uri, "steep", skops(linear(10.0, 10.0)), columns(("a", "double"), ("b", "double")))
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    models = [{"name": MODEL, "uri": f"models:/{MODEL}@champion"}, {"name": "steep", "uri": "models:/steep/1"}]
    file.write_text(json.dumps({"models": models}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri)
    server.until_ready()
    return server


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


@pytest.fixture(autouse=True)
def alive(server: Server) -> Iterator[None]:
    """Whatever a test sends, the server is live and ready afterwards, and answers a good request."""
    yield
    check_alive(server)


def row(**changed: Any) -> dict[str, Any]:
    return {"instances": [{**OBJECT, **changed}]}


def without(name: str) -> dict[str, Any]:
    return {"instances": [{k: v for k, v in OBJECT.items() if k != name}]}


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
    ("parameters a list", {**GOOD, "parameters": [1]}, "'parameters' must be an object"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "says"), [pytest.param(*case[1:], id=case[0]) for case in BODIES])
def test_a_v1_body_that_does_not_fit_is_a_400_that_says_why(server: Server, body: Any, says: str) -> None:
    """It names the column or the key, never the value."""
    check_error(ask(server, "POST", PREDICT, body, {"content-type": "application/json"}), 400, says)


def tensor(**changed: Any) -> dict[str, Any]:
    return {"name": "x", "datatype": "FP64", "shape": [1, 10], "data": ROW, **changed}


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
    check_error(ask(server, "POST", INFER, body, {"content-type": "application/json"}), 400, says)


LONG = "n" * 5000
ROUTES: list[tuple[str, str, int, str]] = [
    ("POST", "/v1/models/nobody:predict", 404, "no model 'nobody'"),
    ("POST", f"/v1/models/{LONG}:predict", 404, f"'{'n' * 64}' here"),
    ("POST", "/v1/models/%2e%2e:predict", 404, "'..'"),
    ("POST", "/v1/models/..:predict", 404, "'..'"),
    ("POST", "/v1/models/../../etc/passwd:predict", 404, "no such route"),
    ("POST", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd:predict", 404, "no such route"),
    ("POST", "/v1/models/%00:predict", 404, "no model"),
    ("POST", "/v1/models/%ff%fe:predict", 404, "no model"),
    ("POST", "/v1/models/%0d%0aset-cookie:%20a=b:predict", 404, "no such route"),
    ("POST", f"/v1/models/{MODEL}/versions/2:predict", 404, "no loaded version '2'.*loaded versions: 1"),
    ("POST", f"/v1/models/{MODEL}/versions/77:predict", 404, "no loaded version '77'"),
    ("POST", f"/v1/models/{MODEL}/versions/{LONG}:predict", 404, f"'{'n' * 64}'"),
    ("POST", f"/v1/models/{MODEL}/labels/challenger:predict", 404, "no loaded label 'challenger'"),
    ("POST", f"/v1/models/{MODEL}/labels/nobody:predict", 404, "no loaded label 'nobody'"),
    ("POST", f"/v1/models/{MODEL}/labels/{LONG}:predict", 404, f"'{'n' * 64}'"),
    ("POST", "/v2/models/nobody/infer", 404, "no model 'nobody'"),
    ("POST", f"/v2/models/{MODEL}/versions/2/infer", 404, "no loaded version '2'"),
    ("GET", "/v1/models/nobody", 404, "no model 'nobody'"),
    ("GET", "/v2/models/nobody", 404, "no model 'nobody'"),
    ("GET", "/v2/models/nobody/ready", 404, "no model 'nobody'"),
    ("GET", f"/v2/models/{MODEL}/versions/2", 404, "no loaded version '2'"),
    ("GET", f"/v2/models/{MODEL}/versions/2/ready", 404, "no loaded version '2'"),
    ("GET", "/nowhere", 404, "no such route"),
    ("GET", "/docs", 404, "no such route"),
    ("GET", "/openapi.json", 404, "no such route"),
    ("GET", "/v2/health", 404, "no such route"),
    ("GET", "/v1/models/", 404, "no such route"),
    ("POST", "/webhooks/mlflow", 404, "no such route"),
    ("POST", "/v1/chat/completions", 404, "no such route"),
    ("OPTIONS", "*", 404, "no such route"),
    ("GET", PREDICT, 405, "method"),
    ("DELETE", PREDICT, 405, "method"),
    ("PUT", INFER, 405, "method"),
    ("GET", INFER, 405, "method"),
    ("DELETE", f"/v1/models/{MODEL}", 405, "method"),
    ("POST", "/health/live", 405, "method"),
    ("POST", "/metrics", 405, "method"),
    ("GET", "/v2/repository/index", 405, "method"),
    ("POST", f"/v1/models/{MODEL}:explain", 501, "explainer"),
    ("POST", f"/v1/models/{MODEL}/versions/1:explain", 501, "explainer"),
    ("POST", "/v1/models/nobody:explain", 404, "no model 'nobody'"),
    ("POST", f"/v2/repository/models/{MODEL}/load", 403, "security.repository_api"),
    ("POST", f"/v2/repository/models/{MODEL}/unload", 403, "security.repository_api"),
    ("POST", "/v2/repository/models/nobody/load", 403, "security.repository_api"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "status", "says"), ROUTES, ids=lambda v: str(v)[:40])
def test_a_route_that_is_not_there_or_not_allowed(
    server: Server, method: str, path: str, status: int, says: str
) -> None:
    """Unknown names, versions and labels, wrong methods, and what is not offered; a name is cut at 64 characters."""
    body = {"inputs": [tensor()]} if "/v2/" in path else GOOD
    check_error(ask(server, method, path, body if method != "GET" else b""), status, says)


def test_the_repository_index_answers_always(server: Server) -> None:
    """It lists what is there; only changing it by request is switched off."""
    for body in (b"", {}, {"ready": True}):
        rows = json.loads(ask(server, "POST", "/v2/repository/index", body).body)
        assert {"name": MODEL, "version": "1", "state": "READY", "reason": ""} in rows
    check_error(ask(server, "POST", "/v2/repository/index", b"["), 400, "not valid JSON")


@pytest.mark.parametrize(
    ("media", "status"),
    [
        (None, 200), ("application/json", 200), ("application/json; charset=utf-8", 200), ("APPLICATION/JSON", 200),
        ("application/json;charset=UTF-8", 200), ("application/octet-stream", 200), ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415), ("application/jsonp", 415),
        ("json", 415), (";", 200),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [PREDICT, INFER])
def test_the_content_type_may_be_absent_or_json(server: Server, path: str, media: str | None, status: int) -> None:
    """Anything else that is given is a 415."""
    body = GOOD if path == PREDICT else {"inputs": [tensor()]}
    answer = ask(server, "POST", path, body, {} if media is None else {"content-type": media})
    if status == 200:
        assert answer.status == 200
    else:
        check_error(answer, status, "content type")


@pytest.mark.parametrize("text", ["abc", "0", "-5", "1.5", "", "1e3", "NaN", "5 ms"])
def test_a_timeout_that_is_no_positive_number_is_a_400(server: Server, text: str) -> None:
    """`x-request-timeout-ms` is a whole number of milliseconds."""
    check_error(ask(server, "POST", PREDICT, GOOD, {"x-request-timeout-ms": text}), 400, "x-request-timeout-ms")


def test_a_timeout_is_only_ever_shorter_than_the_operators(server: Server) -> None:
    """However many digits it has."""
    for text in ("1000", "9" * 400):
        assert ask(server, "POST", PREDICT, GOOD, {"x-request-timeout-ms": text}).status == 200


def test_what_does_not_fit_is_counted_for_the_version_that_checked_it(server: Server) -> None:
    """A request that fails has reached the model; one that named none is counted without a name."""
    before = [server.metric("model_predictions_total", model_name=MODEL, model_version="1") or 0,
              server.metric("model_prediction_errors_total", model_name=MODEL, error_type="bad_request") or 0]  # fmt: skip
    for path in (PREDICT, INFER):
        ask(server, "POST", path, b"{")
    after = [server.metric("model_predictions_total", model_name=MODEL, model_version="1"),
             server.metric("model_prediction_errors_total", model_name=MODEL, error_type="bad_request")]  # fmt: skip
    assert after == [n + 2 for n in before]


# -- sizes and framing --------------------------------------------------------------------------------------------


def raw(server: Server, *pieces: bytes) -> bytes:
    """What the server says to bytes on a socket, until it closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for piece in pieces:
            connection.sendall(piece)
        heard = b""
        while chunk := connection.recv(65536):
            heard += chunk
    return heard


def request(body: bytes = b"", *headers: str, path: str = PREDICT, close: bool = True) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: localhost", *headers, *(["connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode() + body


def sized(document: Any, close: bool = True) -> bytes:
    body = json.dumps(document).encode()
    return request(body, f"content-length: {len(body)}", close=close)


def answers(heard: bytes) -> list[Answer]:
    """The answers in a stream, framed by their content lengths."""
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        length = int(headers.get("content-length", 0))
        found.append(Answer(int(first.split()[1]), headers, rest[:length]))
        heard = rest[length:]
    return found


def test_a_body_over_the_limit_is_a_413_that_the_client_hears(server: Server) -> None:
    """20 MB of digits; a client that sends all of it before it listens is answered as well."""
    check_error(ask(server, "POST", PREDICT, b"1" * 20_000_000), 413, "server.max_body_bytes")
    url = urllib.request.Request(server.base + PREDICT, b"1" * 20_000_000, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:  # it asks to close the connection
        urllib.request.urlopen(url, timeout=30)
    check_error(Answer(error.value.code, dict(error.value.headers), error.value.read()), 413, "max_body_bytes")


@pytest.mark.parametrize("path", ["/nowhere", "/v1/models/nobody:predict", f"/v1/models/{MODEL}"])
def test_a_large_body_for_nobody_does_not_cut_the_answer(server: Server, path: str) -> None:
    """Who is refused before the body was read still hears why."""
    url = urllib.request.Request(server.base + path, b"1" * 8_000_000, {"content-type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url, timeout=30)
    assert error.value.code in (404, 405)


def test_a_chunked_body_is_bounded_as_well(server: Server) -> None:
    """It names no length beforehand; what fits is answered, what does not is a 413, and the connection goes on."""
    body = json.dumps(GOOD).encode()
    chunked = "transfer-encoding: chunked"
    good = request(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body), chunked)
    chunk = b"100000\r\n" + b"1" * 0x100000 + b"\r\n"
    heard = answers(raw(server, request(b"", chunked, close=False), *[chunk] * 20, b"0\r\n\r\n", good))
    check_error(heard[0], 413, "max_body_bytes")
    assert heard[1].status == 200


def test_expect_continue_is_answered_before_the_body(server: Server) -> None:
    """100 for a body that will be read, 413 at once for one that will not."""
    body = json.dumps(GOOD).encode()
    heard = answers(raw(server, request(b"", "expect: 100-continue", f"content-length: {len(body)}"), body))
    assert [a.status for a in heard] == [100, 200]
    refused = raw(server, request(b"", "expect: 100-continue", "content-length: 20000000", close=False))
    (answer,) = answers(refused)
    check_error(answer, 413, "max_body_bytes")


def test_a_connection_goes_on_after_an_error_and_answers_in_order(server: Server) -> None:
    """Three requests in one piece, the first two of them wrong."""
    heard = raw(server, sized({"instances": SECRET}, False) + request(close=False) + sized(GOOD))
    wrong, empty, good = answers(heard)
    check_error(wrong, 400)
    check_error(empty, 400, "empty")
    assert json.loads(good.body)["predictions"] == [0]


@pytest.mark.parametrize(
    "bytes_",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        request(b"", "content-length: -5"),
        request(b"", "content-length: five"),
        request(b"", "content-length: 5", "transfer-encoding: chunked"),
        request(b"zz\r\n", "transfer-encoding: chunked"),
    ],
    ids=[
        "tls",
        "nonsense",
        "unknown verb",
        "long target",
        "negative length",
        "length in words",
        "two lengths",
        "chunk",
    ],
)
def test_what_is_no_http_is_a_400_in_the_same_shape(server: Server, bytes_: bytes) -> None:
    """Also where no request could be made out of it."""
    (answer,) = answers(raw(server, bytes_))
    check_error(answer, 400)


def test_a_client_that_leaves_in_the_middle_harms_nobody(server: Server) -> None:
    """Half a header, half a body, and a reset."""
    for piece in (b"POST /v1/mod", request(b'{"inst', "content-length: 100")):
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(piece)
    check_alive(server)


def test_a_websocket_is_answered_as_plain_http(server: Server) -> None:
    """There is none here, and the question does not hang."""
    asked = (b"GET /nowhere HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, close\r\nupgrade: websocket\r\n"
             b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n\r\n")  # fmt: skip
    check_error(answers(raw(server, asked))[0], 404, "no such route")


# -- headers and answers ------------------------------------------------------------------------------------------


def test_every_answer_carries_a_request_id(server: Server) -> None:
    """The caller's, or one made here; also on errors."""
    for path, body in ((PREDICT, GOOD), (PREDICT, {}), ("/nowhere", {})):
        assert ask(server, "POST", path, body, {"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
        made = {ask(server, "POST", path, body).headers["x-request-id"] for _ in range(2)}
        assert len(made) == 2
        assert "" not in made
    assert len(ask(server, "POST", PREDICT, GOOD, {"x-request-id": "x" * 5000}).headers["x-request-id"]) <= 128


@pytest.mark.parametrize(("path", "body"), [(PREDICT, GOOD), (INFER, {"inputs": [tensor()]})])
def test_an_answer_says_who_gave_it_and_how_long_it_took(server: Server, path: str, body: Any) -> None:
    """`x-model-version` and the stages of `server-timing`."""
    answer = ask(server, "POST", path, body)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-model-version"] == "1"
    assert re.fullmatch(r"(\w+;dur=[\d.]+(, )?)+", answer.headers["server-timing"])
    assert {"decode", "predict", "encode"} <= {s.split(";")[0] for s in answer.headers["server-timing"].split(", ")}


def test_an_answer_that_is_nan_or_infinite_is_null(server: Server) -> None:
    """JSON has neither; over gRPC the tensor keeps them."""
    rows = [[1.0, 2.0], [1e308, 0.0], [-1e308, 0.0], [1e308, -1e308]]
    v1 = json.loads(ask(server, "POST", "/v1/models/steep:predict", {"instances": rows}).body)
    assert v1["predictions"] == [30.0, None, None, None]
    wire = [{"name": "x", "datatype": "FP64", "shape": [4, 2], "data": rows}]
    v2 = json.loads(ask(server, "POST", "/v2/models/steep/infer", {"inputs": wire}).body)
    assert v2["outputs"][0]["data"] == [30.0, None, None, None]
    given = pb.ModelInferRequest(model_name="steep", inputs=[typed(shape=[4, 2], data=np.ravel(rows).tolist())])
    contents = server.infer(given).outputs[0].contents.fp64_contents
    assert np.array_equal(np.isfinite(contents), [True, False, False, False])


def test_a_regression_has_no_probabilities(server: Server) -> None:
    """Neither in the answer nor on request."""
    row_ = {"instances": [[1, 2]]}
    body = json.loads(ask(server, "POST", "/v1/models/steep:predict", row_).body)
    assert set(body) == {"predictions", "model_name", "model_version"}
    asked = {**row_, "parameters": {"output": "probabilities"}}
    check_error(ask(server, "POST", "/v1/models/steep:predict", asked), 400, "no probabilities")


# -- CloudEvents, which KServe's app answers ----------------------------------------------------------------------

EVENT = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "tests", "ce-type": "row",
         "content-type": "application/json"}  # fmt: skip
STRUCTURED = {"specversion": "1.0", "id": "1", "source": "tests", "type": "row", "time": "2026-01-02T03:04:05Z"}


def test_a_cloud_event_is_answered(server: Server) -> None:
    """In binary and in structured mode, by the same model."""
    binary = ask(server, "POST", PREDICT, GOOD, EVENT)
    structured = {"content-type": "application/cloudevents+json"}
    event = json.loads(ask(server, "POST", PREDICT, {**STRUCTURED, "data": GOOD}, structured).body)
    assert json.loads(binary.body)["predictions"] == event["data"]["predictions"] == [0]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"", 400, "empty"), (b"{", 400, ""), (SECRET.encode(), 400, ""), ([1], 400, "JSON object"),
        ({"instances": [[SECRET]]}, 400, "10 values"), ({"instances": [[*ROW[:3], SECRET, *ROW[4:]]]}, 400, "'load'"),
        (b"1" * 20_000_000, 413, "max_body_bytes"),
    ],
    ids=["empty", "not JSON", "text", "list", "width", "type", "20 MB"],
)  # fmt: skip
def test_a_cloud_event_fails_like_any_other_request(server: Server, body: Any, status: int, says: str) -> None:
    """The same statuses and the same shape, though KServe's app stands between."""
    check_error(ask(server, "POST", PREDICT, body, EVENT), status, says)
    assert ask(server, "POST", "/v1/models/nobody:predict", GOOD, EVENT).status == 404


# -- gRPC ---------------------------------------------------------------------------------------------------------


def typed(
    name: str = "x", datatype: str = "FP64", shape: list[int] | None = None, data: Any = None, **more: Any
) -> Any:
    contents = more or {"fp64_contents": ROW if data is None else data}
    return pb.ModelInferRequest.InferInputTensor(
        name=name, datatype=datatype, shape=[1, 10] if shape is None else shape, contents=contents
    )


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
