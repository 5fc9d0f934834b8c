"""SIGTERM: readiness goes first, nobody in flight is lost, and the drain is a bound."""

import json
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import requests
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.models import columns, fiend, puppet, register
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
PREDICT = "/v1/models/sleeper:predict"


@pytest.fixture(scope="module")
def sleeper(shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flags and environment of a server whose model sleeps as long as a request says."""
    register(shared.uri, "sleeper", puppet(), columns(("ms", "double")))
    file: Path = tmp_path_factory.mktemp("config") / "headway.yaml"
    defaults = {"allow_code": True, "timeout_ms": 0, "batching": {"inline_below_ms": 0}}
    file.write_text(json.dumps({"models": [{"name": "sleeper", "uri": "models:/sleeper/1"}], "defaults": defaults}))
    return {"config": str(file), "MLFLOW_TRACKING_URI": shared.uri}


def start(headway: Callable[..., Server], sleeper: dict[str, str], **environ: str) -> Server:
    server = headway("--config", sleeper["config"], MLFLOW_TRACKING_URI=sleeper["MLFLOW_TRACKING_URI"], **environ)
    server.until_ready()
    return server


def post(server: Server, ms: float) -> requests.Response:
    return requests.post(server.base + PREDICT, json={"instances": [[ms]]}, timeout=60)


def message(ms: float) -> pb.ModelInferRequest:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="ms", datatype="FP64", shape=[1], contents={"fp64_contents": [ms]}
    )
    return pb.ModelInferRequest(model_name="sleeper", inputs=[tensor])


def in_flight(server: Server, count: int) -> None:
    server.until(lambda: server.metric("model_predictions_total", model_name="sleeper") == count, f"{count} in flight")


def test_whoever_is_in_flight_is_answered(headway: Callable[..., Server], sleeper: dict[str, str]) -> None:
    """Fifty over REST and three over gRPC; then the port is closed and the exit code is 0."""
    server = start(headway, sleeper)
    with ThreadPoolExecutor(53) as pool:
        asked = [pool.submit(post, server, 1500) for _ in range(50)]
        called = [pool.submit(server.infer, message(1500)) for _ in range(3)]
        in_flight(server, 53)
        server.process.send_signal(signal.SIGTERM)
        assert [f.result().json()["predictions"] for f in asked] == [[3000.0]] * 50
        assert [list(f.result().outputs[0].contents.fp64_contents) for f in called] == [[3000.0]] * 3
    assert server.process.wait(30) == 0
    with pytest.raises(requests.ConnectionError):
        post(server, 1)
    assert [line["exit_code"] for line in server.lines() if line["message"] == "stopped"] == [0]


def test_during_the_delay_the_port_stays_open_and_says_that_it_will_close(
    headway: Callable[..., Server], sleeper: dict[str, str]
) -> None:
    """Readiness is 503 at once, liveness stays, and inference is answered with `Connection: close`."""
    server = start(headway, sleeper, HEADWAY_SERVER__DRAIN_DELAY_SECONDS="3")
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert "connection" not in post(server, 1).headers
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: server.get("/ready").status_code == 503, "draining")
        assert server.get("/health/ready").json() == {"ready": False}
        assert server.get("/v2/health/ready").status_code == 503
        assert server.get("/health/live").status_code == 200
        answer = post(server, 1)
        assert (answer.json()["predictions"], answer.headers["connection"]) == ([2.0], "close")
        assert not stub.ServerReady(pb.ServerReadyRequest()).ready
        assert list(stub.ModelInfer(message(2)).outputs[0].contents.fp64_contents) == [4.0]
        assert server.process.poll() is None
    assert server.process.wait(30) == 0


def test_the_drain_is_a_bound(headway: Callable[..., Server], sleeper: dict[str, str]) -> None:
    """Past it, who is still in flight is told so, and the process ends without waiting for the model."""
    server = start(headway, sleeper, HEADWAY_SERVER__DRAIN_SECONDS="0.5")
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(post, server, 60_000) for _ in range(2)]
        called = pool.submit(server.infer, message(60_000))
        in_flight(server, 3)
        server.process.send_signal(signal.SIGTERM)
        for answer in (f.result() for f in asked):
            assert (answer.status_code, list(answer.json())) == (503, ["error"])
        with pytest.raises(grpc.RpcError) as error:
            called.result()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    assert server.process.wait(20) == 0


def test_who_still_asks_at_the_bound_is_told_so(headway: Callable[..., Server], sleeper: dict[str, str]) -> None:
    """Half a head and half a body are answered, and the log knows of no error."""
    server = start(headway, sleeper, HEADWAY_SERVER__DRAIN_SECONDS="1")
    head = f"POST {PREDICT} HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n".encode()
    asking = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(2)]
    asking[0].sendall(head[:20])
    asking[1].sendall(head + b"{")
    assert post(server, 1).status_code == 200  # by then those have been read
    server.process.send_signal(signal.SIGTERM)
    for each in asking:
        with each:
            assert each.recv(1000).startswith(b"HTTP/1.1 503 ")
    assert server.process.wait(20) == 0
    assert [line for line in server.lines() if line["level"] == "ERROR"] == []


def test_the_drain_is_no_wait(headway: Callable[..., Server], sleeper: dict[str, str]) -> None:
    """With nothing in flight the process ends at once, idle connections and watchers of its health or not; Ctrl-C is the
    same."""
    server = start(headway, sleeper, HEADWAY_SERVER__DRAIN_SECONDS="600")
    assert server.get("/ready").status_code == 200  # on a connection that stays open
    with grpc.insecure_channel(server.grpc) as channel:
        GRPCInferenceServiceStub(channel).ServerLive(pb.ServerLiveRequest())
        watching = HealthStub(channel).Watch(HealthCheckRequest(service="liveness"))
        assert next(watching).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_a_server_that_is_still_loading_stops_as_well(headway: Callable[..., Server]) -> None:
    """The registry does not even answer: a listening socket that says nothing."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        server = headway("--model-uri", "models:/sleeper/1", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
        assert server.get("/ready").status_code == 503
        silent.accept()
        assert server.terminate(20) == 0


@pytest.mark.audit("29")
@pytest.mark.parametrize(
    ("does", "inline"),
    [(["hang"], True), (["hang"], False), (["linger"], True), (["hang", "interrupt"], False)],
)
def test_the_process_ends_whatever_hangs(
    headway: Callable[..., Server], shared: MlflowServer, tmp_path: Path, does: list[str], inline: bool
) -> None:
    """A model that hangs on the event loop, where nobody hears a signal; in a thread; one whose code leaves a thread behind
    that Python would wait for; and one that raises KeyboardInterrupt beside one that hangs."""
    register(shared.uri, "fiend", fiend(), columns(("do", "string")))
    defaults = {"allow_code": True, "isolation": "none", "timeout_ms": 0, "batching": {"inline_below_ms": 1e6 * inline}}
    entries = [{"name": f"fiend-{what}", "uri": "models:/fiend/1"} for what in does]
    file = tmp_path / "headway.yaml"
    file.write_text(json.dumps({"server": {"drain_seconds": 0.5}, "models": entries, "defaults": defaults}))
    server = headway("--config", str(file), MLFLOW_TRACKING_URI=shared.uri)
    server.until_ready()
    with ThreadPoolExecutor(len(does)) as pool:
        for what in does:
            body = {"instances": [[what]]}
            pool.submit(requests.post, f"{server.base}/v1/models/fiend-{what}:predict", json=body, timeout=60)
            time.sleep(1)  # it is being computed: there may be nobody left to ask whether it is
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(30)
