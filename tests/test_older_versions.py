"""Versions and labels in the path load what is not loaded, for a model on demand; for any other they say so."""

import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest
import requests
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
V1 = {"instances": [[1.0]]}
V2 = {"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [1.0]}]}


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """`past` and `fixed`, four versions each that answer their number, the champion being 4; `past` is on demand too."""
    for name in ("past", "fixed"):
        for answer in range(1, 5):
            register(shared.uri, name, skops(linear(float(answer))), columns(("a", "double")))
        shared.set_alias(name, "champion", "4")
        shared.set_alias(name, "challenger", "2")
    models = [{"name": "past", "uri": "models:/past@champion", "required": True, "on_demand": True},
              {"name": "fixed", "uri": "models:/fixed@champion"}]  # fmt: skip
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    file.write_text(json.dumps({"models": models, "defaults": {"timeout_ms": 0}}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri)
    server.until_ready()
    return server


def message(version: str) -> Any:
    request = pb.ModelInferRequest(model_name="past", model_version=version)
    request.inputs.add(name="a", datatype="FP64", shape=[1]).contents.fp64_contents.append(1.0)
    return request


def test_versions_and_labels_over_every_protocol(server: Server) -> None:
    """V1, V2 and gRPC each load a version of their own; the model itself goes on as it is."""
    answers = [
        requests.post(f"{server.base}/{path}", json=body, timeout=60)
        for path, body in (
            ("v1/models/past/versions/1:predict", V1),
            ("v1/models/past/labels/challenger:predict", V1),
            ("v2/models/past/versions/3/infer", V2),
        )
    ]
    assert [(a.status_code, a.headers["x-model-version"]) for a in answers] == [(200, "1"), (200, "2"), (200, "3")]
    assert [a.json()["predictions"] for a in answers[:2]] == [[1.0], [2.0]]
    assert server.infer(message("1")).model_version == "1"
    with pytest.raises(grpc.RpcError) as refused:
        server.infer(message("77"))
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert server.post("/v1/models/past:predict", V1).json()["model_version"] == "4"
    status = server.status("past")
    assert (status["version"], status["state"], status["aspired"], status["problem"]) == ("4", "READY", ["4"], None)
    assert {v["version"] for v in status["versions"]} == {"1", "2", "3", "4"}
    rows = server.post("/v2/repository/index", {"ready": True}).json()
    assert sorted(row["version"] for row in rows if row["name"] == "past") == ["1", "2", "3", "4"]


@pytest.mark.parametrize("what", ["versions/77", "versions/nonsense", "labels/nobody"])
def test_what_does_not_exist_is_a_404(server: Server, what: str) -> None:
    """Whether or not the model would load it."""
    answer = server.post(f"/v1/models/past/{what}:predict", V1)
    assert (answer.status_code, list(answer.json())) == (404, ["error"])


@pytest.mark.parametrize("what", ["versions/1", "labels/challenger"])
def test_a_model_that_is_not_on_demand_loads_nothing_for_a_request(server: Server, what: str) -> None:
    """A version that exists is a 404 that says it is not loaded."""
    answer = server.post(f"/v1/models/fixed/{what}:predict", V1)
    assert (answer.status_code, "has no loaded" in answer.json()["error"]) == (404, True)
    assert [v["version"] for v in server.status("fixed")["versions"]] == ["4"]
