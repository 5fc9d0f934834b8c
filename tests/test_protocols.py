"""V1, V2 and gRPC against one server, with KServe's own clients, unchanged."""

from collections.abc import Callable

import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]


async def test_kserves_clients_work_unchanged_and_the_protocols_agree(
    mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """V1 REST, V2 REST and V2 gRPC give the same numbers, raw or typed."""
    server = headway("--model-uri", f"models:/{MODEL}/2", MLFLOW_TRACKING_URI=mlflow_server.uri)
    server.until_ready()
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    answer = await v1.infer(server.base, {"instances": [ROW]}, model_name=MODEL)
    for client in (v1, v2):
        assert await client.is_server_live(server.base)
        assert await client.is_model_ready(server.base, MODEL)
    assert await v2.is_server_ready(server.base)
    found = [(await v2.infer(server.base, _request(False), model_name=MODEL)).outputs]
    async with InferenceGRPCClient(server.grpc) as grpc_client:
        assert await grpc_client.is_server_live()
        assert await grpc_client.is_server_ready()
        assert await grpc_client.is_model_ready(MODEL)
        found += [(await grpc_client.infer(_request(binary))).outputs for binary in (True, False)]
    for outputs in found:
        predictions, probabilities = (o.as_numpy() for o in outputs)
        assert predictions.tolist() == answer["predictions"]
        assert probabilities.tolist() == answer["probabilities"]


def _request(binary: bool) -> InferRequest:
    tensor = InferInput("x", [1, 10], "FP64")
    tensor.set_data_from_numpy(np.array([ROW]), binary_data=binary)
    return InferRequest(MODEL, [tensor])
