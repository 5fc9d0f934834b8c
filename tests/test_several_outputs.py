"""A network with several outputs, over every wire: by name, selected by name, kept and cut like one."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.infer_type import RequestedOutput

from tests.networks import OUTPUTS, answers, graph, save_graph, signature
from tests.servers import Server

pytestmark = [pytest.mark.e2e, pytest.mark.audit("5")]
ROWS = [[float(i), 0.5 - i] for i in range(11)]
MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "cached": {"response_cache": {"max_bytes": 2**20}},
    "apart": {"isolation": "process"},
    "chunks": {"batching": {"max_rows": 4}},
}


@pytest.fixture(scope="module")
def server(lane: str, serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Two workers that serve the same graph in every state."""
    home = tmp_path_factory.mktemp("several")
    path = save_graph(home / "graph", graph(), signature(*OUTPUTS))
    entries = [{"name": name, "uri": str(path), "timeout_ms": 0, **said} for name, said in MODELS.items()]
    (home / "headway.yaml").write_text(json.dumps({"models": entries}))
    environ = {"HEADWAY_SERVER__LANE": lane, "HEADWAY_SERVER__WORKERS": "2" if lane == "protocol" else "1"}
    server = serve("--config", str(home / "headway.yaml"), **environ)
    server.until_ready()
    return server


def request(model: str, binary: bool = False, **more: Any) -> InferRequest:
    tensor = InferInput("x", [len(ROWS), 2], "FP32")
    tensor.set_data_from_numpy(np.array(ROWS, np.float32), binary_data=binary)
    return InferRequest(model, [tensor], **more)


def check(outputs: list[Any], names: list[str]) -> None:
    """Name, datatype, shape and numbers of each, in order."""
    assert [output.name for output in outputs] == names
    for output in outputs:
        datatype, shape = OUTPUTS[output.name]
        assert (output.datatype, list(output.shape)) == (datatype, [len(ROWS), *shape])
        np.testing.assert_allclose(output.as_numpy(), answers(ROWS)[output.name], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
def test_v1_answers_an_object_per_instance(server: Server, model: str) -> None:
    """By output name, each output's row in it; asked twice, for those who keep answers."""
    for _ in range(2):
        answer = server.post(f"/v1/models/{model}:predict", {"instances": [{"x": row} for row in ROWS]}).json()
        assert set(answer) == {"predictions", "model_name", "model_version"}
        for i, found in enumerate(answer["predictions"]):
            assert list(found) == list(OUTPUTS)
            for name, array in answers(ROWS).items():
                np.testing.assert_allclose(found[name], array[i], atol=1e-5)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binary", [False, True])
async def test_v2_answers_and_selects_each_output_by_name(server: Server, model: str, binary: bool) -> None:
    """Over HTTP as JSON or in binary, and over gRPC with typed or raw contents."""
    rest = InferenceRESTClient(RESTConfig(protocol="v2"))
    two = [RequestedOutput("best"), RequestedOutput("scores", parameters={"binary_data": binary})]
    check((await rest.infer(server.base, request(model, binary), model_name=model)).outputs, list(OUTPUTS))
    some = await rest.infer(server.base, request(model, binary, request_outputs=two), model_name=model)
    check(some.outputs, ["scores", "best"])
    async with InferenceGRPCClient(server.grpc) as client:
        check((await client.infer(request(model, binary))).outputs, list(OUTPUTS))
        one = request(model, binary).to_grpc()
        one.outputs.add(name="total")
        check((await client.infer(InferRequest.from_grpc(one))).outputs, ["total"])


def test_requests_that_share_a_batch_get_their_own_rows(server: Server) -> None:
    """Thirty at once, each with rows of its own, shorter and longer than a batch."""

    def predict(i: int) -> None:
        rows = ROWS[: 1 + i % 6]
        body = {"instances": [{"x": [row[0] + i, row[1]]} for row in rows]}
        answer = server.post("/v1/models/chunks:predict", body).json()
        expected = answers([[row[0] + i, row[1]] for row in rows])["scores"]
        np.testing.assert_allclose([p["scores"] for p in answer["predictions"]], expected, atol=1e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(predict, range(30)))


def test_an_unknown_output_is_a_400_that_says_what_there_is(server: Server) -> None:
    """`predictions` too: the network's outputs have names of their own."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
    for name in ("predictions", "other"):
        answer = server.post("/v2/models/plain/infer", {"inputs": [tensor], "outputs": [{"name": name}]})
        assert answer.status_code == 400
        assert answer.json()["error"] == f"There is no output '{name}'; this answer has scores, total, best."
        message = request("plain").to_grpc()
        message.outputs.add(name=name)
        with pytest.raises(grpc.RpcError) as error:
            server.infer(message)
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_metadata_lists_every_output(server: Server) -> None:
    """With datatype and shape, over both transports."""
    listed = server.get("/v2/models/plain").json()["outputs"]
    assert listed == [{"name": n, "datatype": t, "shape": [-1, *s]} for n, (t, s) in OUTPUTS.items()]
    with grpc.insecure_channel(server.grpc) as channel:
        ask = channel.unary_unary("/inference.GRPCInferenceService/ModelMetadata")
        data = ask(pb.ModelMetadataRequest(name="plain").SerializeToString(), timeout=30)
    found = pb.ModelMetadataResponse.FromString(data).outputs
    assert [(o.name, o.datatype, list(o.shape)) for o in found] == [(n, t, [-1, *s]) for n, (t, s) in OUTPUTS.items()]
