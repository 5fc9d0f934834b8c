"""Routes, methods, media types and headers; what stands on an answer; and CloudEvents."""

import json
import re
from typing import Any

import numpy as np
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.bad_input.asking import GOOD, INFER, LONG, MODEL, PREDICT, ROW, SECRET, ask, check_error, tensor, typed
from tests.servers import Server

pytestmark = pytest.mark.e2e
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


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", PREDICT, "POST"), ("DELETE", INFER, "POST"), ("GET", "/v2/repository/index", "POST"),
        ("DELETE", f"/v1/models/{MODEL}", "GET, HEAD"), ("POST", "/metrics", "GET, HEAD"), ("PUT", "/", "GET, HEAD"),
    ],
)  # fmt: skip
def test_a_wrong_method_is_told_the_right_ones(server: Server, method: str, path: str, allow: str) -> None:
    """In `Allow`, which RFC 9110 wants on a 405."""
    answer = ask(server, method, path)
    assert (answer.status, answer.headers["allow"]) == (405, allow)


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
        (b"1" * 20_000_000, 413, "a CloudEvent may be"),
    ],
    ids=["empty", "not JSON", "text", "list", "width", "type", "20 MB"],
)  # fmt: skip
def test_a_cloud_event_fails_like_any_other_request(server: Server, body: Any, status: int, says: str) -> None:
    """The same statuses and the same shape, though KServe's app stands between."""
    check_error(ask(server, "POST", PREDICT, body, EVENT), status, says)
    assert ask(server, "POST", "/v1/models/nobody:predict", GOOD, EVENT).status == 404


def binary(**changed: str | None) -> dict[str, str]:
    given = {**EVENT, **{k.replace("_", "-"): v for k, v in changed.items()}}
    return {k: v for k, v in given.items() if v is not None}


def structured(**changed: Any) -> dict[str, Any]:
    event = {**STRUCTURED, "data": GOOD, **changed}
    return {k: v for k, v in event.items() if v is not None}


def nested(depth: int) -> list[Any]:
    return [nested(depth - 1)] if depth else []


IN_ONE = {"content-type": "application/cloudevents+json"}
NO_EVENTS: list[tuple[str, Any, dict[str, str], int]] = [
    ("a specversion that is none", GOOD, binary(ce_specversion=SECRET), 400),
    ("no specversion, but the mark", GOOD, binary(ce_specversion=""), 400),
    ("a time that is none", GOOD, binary(ce_time=SECRET), 200),
    ("no id", GOOD, binary(ce_id=None), 200),
    ("no source and no type", GOOD, binary(ce_source=None, ce_type=None), 200),
    ("another type of data", SECRET.encode(), binary(content_type="text/plain"), 400),
    ("bytes that are no UTF-8", b"\xff" + SECRET.encode(), binary(), 400),
    ("a body that is gzip by name", GOOD, binary(content_encoding="gzip"), 200),
    ("structured: no JSON", SECRET.encode(), IN_ONE, 400),
    ("structured: a list", [SECRET], IN_ONE, 400),
    ("structured: a charset", structured(), {"content-type": "application/cloudevents+json; charset=utf-8"}, 400),
    ("structured: no data", structured(data=None), IN_ONE, 400),
    ("structured: data in base64", structured(data=None, data_base64="e30="), IN_ONE, 400),
    ("structured: data that are text", structured(data=SECRET), IN_ONE, 400),
    ("structured: no time", structured(time=None), IN_ONE, 400),
    ("structured: half a character", structured(data={"instances": [["\ud83d"]]}), IN_ONE, 400),
    ("structured: nested a thousand deep", structured(data={"instances": nested(900)}), IN_ONE, 400),
    ("structured: a time that is none", structured(time=SECRET), IN_ONE, 200),
    ("structured: an id that is a number", structured(id=5), IN_ONE, 200),
    ("structured: an extension that is an object", structured(extra={SECRET: 1}), IN_ONE, 200),
]  # fmt: skip


@pytest.mark.audit("36")
@pytest.mark.parametrize(("body", "headers", "status"), [pytest.param(*case[1:], id=case[0]) for case in NO_EVENTS])
def test_what_is_no_cloud_event_is_told_so_without_an_echo(
    server: Server, body: Any, headers: dict[str, str], status: int
) -> None:
    """In the same shape as everywhere, whatever KServe's code says of it."""
    answer = ask(server, "POST", PREDICT, body, headers)
    if status == 200:
        assert answer.status == 200, answer.body
    else:
        check_error(answer, status, "CloudEvent|'instances'")


@pytest.mark.audit("36")
@pytest.mark.parametrize("path", ["versions/1", "versions/7", "labels/champion"])
def test_a_cloud_event_asks_for_what_is_current(server: Server, path: str) -> None:
    """Elsewhere KServe's app has no route, and its word for that is not ours."""
    check_error(ask(server, "POST", f"/v1/models/{MODEL}/{path}:predict", GOOD, EVENT), 404, "current")
    check_error(ask(server, "POST", f"/v1/models/nobody/{path}:predict", GOOD, EVENT), 404, "model")
    check_error(ask(server, "POST", "/v1/models/nobody:predict", GOOD, EVENT), 404, "model")
