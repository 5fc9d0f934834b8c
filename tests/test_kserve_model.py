"""What KServe's users build around a predictor goes on working: transformers in front of us, and our model in their server."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.servers import ROOT, Server, free_port, wait_for
from tests.test_folder import save

pytestmark = pytest.mark.e2e


@contextlib.contextmanager
def program(log: Path, ready: str, *command: str) -> Iterator[None]:
    """Runs a program of these tests until the block ends."""
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(ready, process, log)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def sums(serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """A predictor of the sum of two columns."""
    folder = save(tmp_path_factory.mktemp("model") / "sums", model_id="m-1")
    server = serve("--model-uri", str(folder), "--model-name", "sums", MLFLOW_TRACKING_URI="")
    server.until_ready()
    return server


@pytest.mark.parametrize("protocol", ["v1", "v2", "grpc-v2"])
def test_a_transformer_of_kserves_sdk_asks_us_in_every_protocol(protocol: str, sums: Server, tmp_path: Path) -> None:
    """Its flags and its client are unchanged; we are the predictor host. What we refuse it reports in our words."""
    port = free_port()
    host = sums.grpc if protocol == "grpc-v2" else sums.base.removeprefix("http://")
    command = ["tests.transformer", "--model_name", "sums", "--predictor_host", host, "--predictor_protocol", protocol,
               "--http_port", str(port), "--grpc_port", str(free_port())]  # fmt: skip
    with program(tmp_path / "log", f"http://127.0.0.1:{port}/v1/models/sums", *command):
        route = f"http://127.0.0.1:{port}/v1/models/sums:predict"
        answer = requests.post(route, json={"pairs": [[1, 2], [3.5, 4]]}, timeout=10)
        assert (answer.status_code, answer.json()) == (200, {"sums": [3.0, 7.5]})
        if protocol != "grpc-v2":
            assert "400 Bad Request" in requests.post(route, json={"pairs": []}, timeout=10).json()["error"]


async def test_our_model_in_kserves_own_server(tmp_path: Path) -> None:
    """A `RegistryModel` with steps of its own answers V1, V2 and gRPC of the unchanged `kserve.ModelServer`."""
    folder, port, grpc_port = save(tmp_path / "sums", model_id="m-1"), free_port(), free_port()
    base = f"http://127.0.0.1:{port}"
    command = ["tests.stock", "--folder", str(folder), "--http_port", str(port), "--grpc_port", str(grpc_port)]
    with program(tmp_path / "log", f"{base}/v1/models/sums", *command):
        v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
        answer = await v1.infer(base, {"instances": [[1.0, 2.0]]}, model_name="sums")
        assert answer == {
            "predictions": [30.0], "model_name": "sums", "model_version": "m-1", "steps": "before and after",
        }  # fmt: skip
        wrong = {"inputs": [{"name": "rows", "shape": [1, 2], "datatype": "FP64", "data": ["a", "b"]}]}
        assert requests.post(f"{base}/v2/models/sums/infer", json=wrong, timeout=10).status_code == 400
        rest = [await v2.infer(base, infer_request(binary), model_name="sums") for binary in (True, False)]
        async with InferenceGRPCClient(f"127.0.0.1:{grpc_port}") as client:
            over_grpc = [await client.infer(infer_request(binary)) for binary in (True, False)]
        assert {response.model_version for response in over_grpc} == {"m-1"}  # KServe's REST client drops it
        assert [response.outputs[0].as_numpy().tolist() for response in rest + over_grpc] == [[3.0]] * 4


def infer_request(binary: bool) -> InferRequest:
    tensor = InferInput("rows", [1, 2], "FP64")
    tensor.set_data_from_numpy(np.array([[1.0, 2.0]]), binary_data=binary)
    return InferRequest("sums", [tensor])
