"""V1, V2 and gRPC against one server, with KServe's own clients, unchanged."""

import signal
from collections.abc import Callable

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig

from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]


async def test_kserves_clients_work_unchanged_and_the_protocols_agree(
    mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """V1 REST, V2 REST and V2 gRPC give the same numbers, binary or not."""
    server = headway("--model-uri", f"models:/{MODEL}/2", MLFLOW_TRACKING_URI=mlflow_server.uri)
    server.until_ready()
    v1, v2 = InferenceRESTClient(RESTConfig(protocol="v1")), InferenceRESTClient(RESTConfig(protocol="v2"))
    answer = await v1.infer(server.base, {"instances": [ROW]}, model_name=MODEL)
    for client in (v1, v2):
        assert await client.is_server_live(server.base)
        assert await client.is_model_ready(server.base, MODEL)
    assert await v2.is_server_ready(server.base)
    found = [(await v2.infer(server.base, _request(binary), model_name=MODEL)).outputs for binary in (True, False)]
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


def test_grpc_says_what_it_is_and_whether_it_is_ready(
    mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """The standard health service for the server, its liveness and each model; reflection; NOT_SERVING while draining."""
    uri = f"models:/{MODEL}/1"
    server = headway("--model-uri", uri, MLFLOW_TRACKING_URI=mlflow_server.uri, HEADWAY_SERVER__DRAIN_DELAY_SECONDS="3")
    server.until_ready()
    with grpc.insecure_channel(server.grpc) as channel:
        health = HealthStub(channel)
        names = ("", "liveness", MODEL, "inference.GRPCInferenceService")
        for name in names:
            assert health.Check(HealthCheckRequest(service=name)).status == HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            health.Check(HealthCheckRequest(service="nobody"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert {"inference.GRPCInferenceService", "grpc.health.v1.Health"} <= set(services)
        watched = health.Watch(HealthCheckRequest(service=""))
        assert next(watched).status == HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(watched).status == HealthCheckResponse.NOT_SERVING
        assert health.Check(HealthCheckRequest(service="liveness")).status == HealthCheckResponse.SERVING
    assert server.process.wait(30) == 0
