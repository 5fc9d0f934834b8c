"""Too slow, too many, too broken: each is answered by the contract, counted, and harms nobody else."""

import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import requests
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from serving.errors import FIXED
from tests.models import columns, puppet, register
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
SECRET = -4711.25


@pytest.fixture(scope="module")
def server(
    serve: Callable[..., Server], shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory, lane: str
) -> Server:
    """One registered model under three names, and two names that never get READY."""
    register(shared.uri, "puppet", puppet(), columns(("ms", "double")))
    tight = {"max_queue": 10, "high_watermark": 0.5, "max_rows": 1}
    models: list[dict[str, Any]] = [
        {"name": "patient", "uri": "models:/puppet/1", "timeout_ms": 0},
        {"name": "hasty", "uri": "models:/puppet/1", "timeout_ms": 200},
        {"name": "tight", "uri": "models:/puppet/1", "timeout_ms": 0, "batching": tight},
        {"name": "absent", "uri": "models:/puppet@nobody", "required": False},
        {"name": "refused", "uri": "models:/puppet/1", "required": False, "allow_code": False},
    ]
    config = {"models": models, "defaults": {"allow_code": True, "batching": {"inline_below_ms": 0}}}
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    file.write_text(json.dumps(config))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri, HEADWAY_SERVER__LANE=lane)
    server.until_ready()
    return server


def post(server: Server, model: str, ms: float, **headers: str) -> requests.Response:
    url = f"{server.base}/v1/models/{model}:predict"
    return requests.post(url, json={"instances": [[ms]]}, headers=headers, timeout=30)


def message(model: str, ms: float) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="ms", datatype="FP64", shape=[1], contents={"fp64_contents": [ms]}
    )
    return pb.ModelInferRequest(model_name=model, inputs=[tensor])


def check_error(answer: requests.Response, status: int, says: str) -> None:
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert says in answer.json()["error"]
    assert str(abs(SECRET)) not in answer.text


def count(server: Server, name: str, model: str) -> float:
    return server.metric(name, model_name=model) or 0.0


def test_the_operators_deadline_is_a_504(server: Server) -> None:
    """Over REST and gRPC, and counted as a timeout of that version."""
    before = count(server, "inference_request_timeouts_total", "hasty")
    check_error(post(server, "hasty", 700), 504, "deadline")
    with pytest.raises(grpc.RpcError) as error:
        server.infer(message("hasty", 700))
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "deadline" in error.value.details()
    assert count(server, "inference_request_timeouts_total", "hasty") == before + 2
    assert server.metric("model_prediction_errors_total", model_name="hasty", error_type="deadline") == before + 2


def test_a_client_may_ask_for_less_time(server: Server) -> None:
    """`x-request-timeout-ms`, or a gRPC deadline, which is not held against the model's own."""
    check_error(post(server, "patient", 700, **{"x-request-timeout-ms": "100"}), 504, "deadline")
    with pytest.raises(grpc.RpcError) as error:
        server.infer(message("patient", 700), timeout=0.1)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert post(server, "patient", 1).json()["predictions"] == [2.0]


def test_a_client_may_not_ask_for_more_time(server: Server) -> None:
    """The operator's deadline holds."""
    check_error(post(server, "hasty", 700, **{"x-request-timeout-ms": "60000"}), 504, "deadline")


def test_over_the_watermark_a_request_is_shed_and_told_when_to_come_back(server: Server) -> None:
    """503 with Retry-After and RESOURCE_EXHAUSTED; whoever was admitted is answered."""
    with ThreadPoolExecutor(8) as pool:
        admitted: list[Future[requests.Response]] = [pool.submit(post, server, "tight", 1500)]
        server.until(lambda: count(server, "model_predictions_total", "tight") == 1, "the first one runs")
        admitted += [pool.submit(post, server, "tight", 1) for _ in range(5)]
        server.until(lambda: count(server, "inference_queue_depth", "tight") == 5, "five wait")
        shed = post(server, "tight", 1)
        check_error(shed, 503, "watermark")
        assert int(shed.headers["retry-after"]) >= 1
        with pytest.raises(grpc.RpcError) as error:
            server.infer(message("tight", 1))
        assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert int(dict(error.value.trailing_metadata())["retry-after"]) >= 1
        assert server.get("/ready").status_code == 200
        assert [f.result().status_code for f in admitted] == [200] * 6
    assert count(server, "inference_queue_rejections_total", "tight") == 2
    assert count(server, "model_predictions_total", "tight") == 8
    assert count(server, "inference_queue_depth", "tight") == 0


def test_a_request_longer_than_the_watermark_passes_an_empty_queue(server: Server) -> None:
    """It runs in chunks of `max_rows` and is answered whole, in order."""
    rows = [[float(i % 3)] for i in range(40)]
    answer = server.post("/v1/models/tight:predict", {"instances": rows})
    assert answer.json()["predictions"] == [2 * r[0] for r in rows]


def test_a_model_that_raises_is_a_500_with_a_fixed_text(server: Server) -> None:
    """The log has the reason under the request's id; the caller learns neither the reason nor a value."""
    check_error(post(server, "patient", SECRET, **{"x-request-id": "poison-1"}), 500, FIXED)
    with pytest.raises(grpc.RpcError) as error:
        server.infer(message("patient", SECRET))
    assert (error.value.code(), error.value.details()) == (grpc.StatusCode.INTERNAL, FIXED)
    (line,) = [line for line in server.lines() if line.get("request_id") == "poison-1"]
    assert (line["level"], line["reason"]) == ("ERROR", "model_failed")
    assert "ValueError: cannot sleep" in line["exc_info"]
    assert server.metric("model_prediction_errors_total", model_name="patient", error_type="model_failed") == 2


def test_a_poison_row_fails_alone(server: Server) -> None:
    """Four requests form a batch while another runs; the three good ones are answered."""
    before = count(server, "model_predictions_total", "patient")
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(post, server, "patient", 600)
        server.until(lambda: count(server, "model_predictions_total", "patient") == before + 1, "one runs")
        others = [pool.submit(post, server, "patient", ms) for ms in (1, SECRET, 2, 3)]
        assert [f.result().status_code for f in others] == [200, 500, 200, 200]
        assert [f.result().json()["predictions"] for f in others if f is not others[1]] == [[2.0], [4.0], [6.0]]
        assert first.result().status_code == 200


@pytest.mark.parametrize(("model", "why"), [("absent", "does not exist"), ("refused", "allow_code")])
def test_without_a_ready_version_the_answer_is_a_503_that_says_why(server: Server, model: str, why: str) -> None:
    """On every route of the model, and UNAVAILABLE; a model that is not required does not hold readiness."""
    server.until(lambda: why in server.status(model)["error"], why)
    check_error(post(server, model, 1), 503, why)
    check_error(server.get(f"/v2/models/{model}"), 503, why)
    status = server.get(f"/v1/models/{model}")
    assert (status.status_code, status.json()["ready"], status.json()["version"]) == (503, False, None)
    ready = server.get(f"/v2/models/{model}/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    with pytest.raises(grpc.RpcError) as error:
        server.infer(message(model, 1))
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert why in error.value.details()
    assert server.get("/ready").status_code == 200


def test_a_failed_version_is_listed_with_its_reason(server: Server) -> None:
    """In the status, the repository index, the log and the metrics."""
    server.until(lambda: server.status("refused")["state"] == "FAILED", "refused")
    (version,) = server.status("refused")["versions"]
    assert (version["version"], version["state"]) == ("1", "FAILED")
    assert "allow_code" in version["reason"]
    rows = server.post("/v2/repository/index", {}).json()
    assert [r["state"] for r in rows if r["name"] == "refused"] == ["FAILED"]
    assert [r for r in server.post("/v2/repository/index", {"ready": True}).json() if r["name"] == "refused"] == []
    assert any("allow_code" in str(x.get("reason")) for x in server.lines() if x.get("to") == "FAILED")
    assert server.metric("headway_state_changes_total", model_name="refused", state="FAILED")
    assert server.metric("model_loaded", model_name="refused") == 0


def test_an_unknown_model_is_counted_without_its_name(server: Server) -> None:
    """Label sets are closed: callers cannot make series."""
    before = server.metric("model_prediction_errors_total", model_name="", error_type="not_found") or 0
    post(server, "nobody-4711", 1)
    with pytest.raises(grpc.RpcError):
        server.infer(message("nobody-4711", 1))
    assert server.metric("model_prediction_errors_total", model_name="", error_type="not_found") == before + 2
    assert "nobody-4711" not in server.get("/metrics").text
