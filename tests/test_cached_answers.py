"""The response cache from outside: an answer that was given before is the same to the byte, and never another version's."""

import asyncio
import gc
import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pandas as pd
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from registry.versions import ModelVersion
from scripts.demo.machines import COLUMNS
from tests.lanes import INFER, Listening, answers, listening, predictions, rows, sized
from tests.servers import MlflowServer, Server

MODEL = "predictive_maintenance"
MUCH = 2**20


def binary(*values: float) -> bytes:
    """A V2 request whose tensor is binary, in and out."""
    raw = np.array(values, dtype="<f8").tobytes()
    tensor = {"name": "x", "datatype": "FP64", "shape": [len(values)], "parameters": {"binary_data_size": len(raw)}}
    document = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return sized(document + raw, f"inference-header-content-length: {len(document)}", path=INFER, close=True)


def plain(*values: float) -> bytes:
    """The same as JSON."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [len(values)], "data": values}
    return sized(json.dumps({"inputs": [tensor]}).encode(), path=INFER, close=True)


async def said(server: Listening, question: bytes) -> tuple[str | None, str, bytes]:
    """What the cache did, which version answered, and the body."""
    ((status, headers, body),) = answers(await server.say(question))
    assert status == 200, body
    return headers.get("x-cache"), headers["x-model-version"], body


async def test_one_entry_for_every_protocol(lane: str) -> None:
    """V1, V2 JSON and V2 binary ask for the same rows: computed once, and each body is that of a server without a cache."""
    questions = [sized(rows(1.5, -0.25), close=True), plain(1.5, -0.25), binary(1.5, -0.25)]
    async with listening(lane) as without:
        expected = [await said(without, question) for question in questions]
    assert {outcome for outcome, _, _ in expected} == {None}
    async with listening(lane, cache_bytes=MUCH) as server:
        found = [await said(server, question) for question in [*questions, *questions]]
        assert [outcome for outcome, _, _ in found] == ["miss", *["hit"] * 5]
        assert [body for _, _, body in found] == [body for _, _, body in expected] * 2
        assert server.runtime.seen == [1.5, -0.25]


async def test_another_version_answers_itself(lane: str) -> None:
    """After a promotion nothing of the old version's answers is left, in memory either, nor after the way back."""
    caches = []
    async with listening(lane, cache_bytes=MUCH) as server:
        question = sized(rows(1.0), close=True)
        for version in ("1", "2", "1"):
            server.manager.aspire((ModelVersion("echo", version),))
            await server.until(lambda v=version: serves(server) == v and len(server.manager.servables) == 1)
            assert [(await said(server, question))[:2] for _ in range(2)] == [("miss", version), ("hit", version)]
            assert server.manager.current is not None
            assert server.manager.current.cache is not None
            caches.append(weakref.ref(server.manager.current.cache))
        gc.collect()
        assert [cache() is None for cache in caches] == [True, True, False]


def serves(server: Listening) -> str:
    assert server.manager.current is not None
    return server.manager.current.version.version


async def test_a_client_that_leaves_takes_the_answer_from_nobody(lane: str) -> None:
    """The one whose request is computed hangs up; the one that shares it is answered, and nothing is computed twice."""
    async with listening(lane, cache_bytes=MUCH, inline=False) as server:
        server.runtime.gate.clear()
        _, leaving = await asyncio.open_connection("127.0.0.1", server.port)
        leaving.write(sized(rows(1.0)))
        await server.until(lambda: asked(server, "miss") == 1)
        staying = asyncio.create_task(server.say(sized(rows(1.0), close=True)))
        await server.until(lambda: asked(server, "hit") == 1)
        leaving.close()
        await server.until(lambda: server.failed("cancelled") == 1)
        server.runtime.gate.set()
        assert predictions(await staying) == [[1.0]]
        assert server.runtime.seen == [1.0]
        assert server.manager.current is not None
        assert server.manager.current.leases == 0


def asked(server: Listening, outcome: str) -> float:
    labels = {"model_name": "echo", "model_version": "1", "outcome": outcome}
    name = "headway_response_cache_requests_total"
    return server.metrics.registry.get_sample_value(name, labels) or 0.0


async def test_only_what_a_batch_computed_has_a_time_in_the_model(lane: str) -> None:
    """A hit counts as a request and as rows answered, not as a prediction's latency."""
    async with listening(lane, cache_bytes=MUCH) as server:
        for _ in range(3):
            await said(server, sized(rows(1.0), close=True))
        labels = {"model_name": "echo", "model_version": "1"}
        value = server.metrics.registry.get_sample_value
        assert value("model_prediction_latency_seconds_count", labels) == 1
        assert value("inference_request_latency_seconds_count", labels) == 3
        assert value("headway_rows_total", labels) == 3


def over_grpc(server: Server, row: list[float]) -> tuple[str, Any]:
    """What the cache did, from the trailing metadata, and the tensors."""
    message = pb.ModelInferRequest(model_name=MODEL)
    message.inputs.add(name="input-0", datatype="FP64", shape=[1, len(row)]).contents.fp64_contents.extend(row)
    with grpc.insecure_channel(server.grpc) as channel:
        answer, call = GRPCInferenceServiceStub(channel).ModelInfer.with_call(message, timeout=20)
    return str(dict(call.trailing_metadata())["x-cache"]), list(answer.outputs)


@pytest.mark.e2e
def test_a_real_server_keeps_answers_until_the_alias_moves(
    trained: Path, mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """By V1, by gRPC and by a key whose features are looked up: one computation for the same values, and its metrics.
    Another version computes anew, and the gauge of the old one is gone."""
    server = headway("--model-uri", f"models:/{MODEL}@champion", MLFLOW_TRACKING_URI=mlflow_server.uri,
                     HEADWAY_REGISTRY__POLL_SECONDS="0.3", HEADWAY_FEATURES__REPO_PATH=str(trained / "feast"),
                     HEADWAY_DEFAULTS__TIMEOUT_MS="0", HEADWAY_DEFAULTS__RESPONSE_CACHE__MAX_BYTES=str(MUCH))  # fmt: skip
    server.until_ready()
    frame = pd.read_parquet(trained / "feast" / "data" / "readings.parquet")
    latest = frame.sort_values("event_timestamp").groupby("machine_id").last()[list(COLUMNS)]
    row = [float(value) for value in latest.iloc[0]]
    by_key = {"instances": [{"machine_id": int(latest.index[0])}]}
    first = server.post(f"/v1/models/{MODEL}:predict", by_key)
    again = server.post(f"/v1/models/{MODEL}:predict", by_key)
    by_hand = server.post(f"/v1/models/{MODEL}:predict", {"instances": [row]})
    told = [answer.headers["x-cache"] for answer in (first, again, by_hand)]
    assert (told, over_grpc(server, row)[0]) == (["miss", "hit", "hit"], "hit")
    assert first.content == again.content == by_hand.content
    assert first.headers["x-headway-features"] == again.headers["x-headway-features"] == "store;rows=0"
    changed = [row[0] + 1, *row[1:]]
    (outcome, tensors), (same, equal) = over_grpc(server, changed), over_grpc(server, changed)
    assert (outcome, same, tensors) == ("miss", "hit", equal)
    counted = {o: server.metric("headway_response_cache_requests_total", outcome=o) for o in ("hit", "miss")}
    assert counted == {"hit": 4, "miss": 2}
    assert server.metric("headway_response_cache_bytes", model_version="1")
    mlflow_server.set_alias(MODEL, "champion", "2")
    server.until_serves("2")
    promoted = server.post(f"/v1/models/{MODEL}:predict", {"instances": [row]})
    assert (promoted.headers["x-cache"], promoted.json()["model_version"]) == ("miss", "2")
    server.until(lambda: server.metric("headway_response_cache_bytes", model_version="1") is None, "gone")
