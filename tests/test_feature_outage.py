"""A server whose features lie in Redis, which is killed, frozen and started again under load."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from scripts.load import Load
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server
from tests.stores import ABSENT, NULL, STALE, RedisServer, build, frames, redis_yaml, remote

pytestmark = pytest.mark.e2e
NAMES = ("wear", "heat", "load")
WEIGHTS = (100.0, 1.0, 10.0)
STORED = frames()[2].set_index("machine")
DEFAULTS = {"heat": 50.0, "load": 0.5, "wear": 1.0}
POLICY = {
    "on_missing": "default", "on_null": "default", "on_stale": "default", "on_outage": "default", "max_age_seconds": 86400,
    "columns": {name: {"default": value} for name, value in DEFAULTS.items()},
}  # fmt: skip


@pytest.fixture(scope="module")
def model(shared: MlflowServer) -> str:
    """A model whose answer is a sum of its columns, tagged with the service of its features."""
    signature = columns(*((name, "double") for name in NAMES))
    version = register(shared.uri, "weighed", skops(linear(*WEIGHTS)), signature)
    shared.set_tag("weighed", version, "feast.feature_service", "machines_only")
    return f"models:/weighed/{version}"


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis-data"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def repositories(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The same features in every kind of store."""
    sqlite = build(tmp_path_factory.mktemp("sqlite"), "{type: sqlite, path: online.db}")
    redis = build(tmp_path_factory.mktemp("redis"), redis_yaml(redis_server))
    with remote(tmp_path_factory.mktemp("remote"), sqlite) as home:
        yield {"sqlite": sqlite, "redis": redis, "remote": home}


@pytest.fixture(scope="module")
def start(
    serve: Callable[..., Server], shared: MlflowServer, model: str, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Server]:
    """Starts a server on a repository: the model with policies as `lenient`, without any as `strict`."""

    def start(repository: Path, timeout_ms: float) -> Server:
        file = tmp_path_factory.mktemp("settings") / "headway.yaml"
        models = [{"name": "strict", "uri": model}, {"name": "lenient", "uri": model, "features": POLICY}]
        file.write_text(yaml.safe_dump({
            "features": {"repo_path": str(repository), "timeout_ms": timeout_ms}, "models": models,
            "defaults": {"timeout_ms": 20_000},
        }))  # fmt: skip
        server = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri)
        server.until_ready(90)
        return server

    return start


def expected(machines: list[int]) -> list[float]:
    """What the model must answer: the stored values, and the defaults where something is amiss."""
    rows = []
    for machine in machines:
        row = dict(DEFAULTS) if machine in (ABSENT, STALE) else STORED.loc[machine].to_dict()
        row["heat"] = DEFAULTS["heat"] if machine == NULL else row["heat"]
        rows.append(sum(w * row[name] for name, w in zip(NAMES, WEIGHTS, strict=True)))
    return rows


def entities(machines: list[int]) -> dict[str, Any]:
    return {"instances": [{"machine": machine} for machine in machines]}


def trailing(server: Server, machines: list[int]) -> str:
    """What a gRPC answer says of its rows."""
    message = pb.ModelInferRequest(model_name="lenient")
    tensor = message.inputs.add(name="machine", datatype="INT64", shape=[len(machines)])
    tensor.contents.int64_contents.extend(machines)
    with grpc.insecure_channel(server.grpc) as channel:
        _, call = GRPCInferenceServiceStub(channel).ModelInfer.with_call(message, timeout=20)
    return str(dict(call.trailing_metadata())["x-headway-features"])


@pytest.mark.parametrize("kind", ["sqlite", "redis", "remote"])
def test_keys_predict_what_their_features_do(
    start: Callable[..., Server], repositories: dict[str, Path], kind: str
) -> None:
    """For 1, 32 and 500 rows, with what is missing, null and stale among them; the answer says which rows those are."""
    server = start(repositories[kind], 10_000)
    for rows in (1, 32, 500):
        machines = list(range(20, 20 + rows))
        by_hand = [[float(v) for v in STORED.loc[m, list(NAMES)]] for m in machines]
        direct = server.post("/v1/models/strict:predict", {"instances": by_hand})
        looked_up = server.post("/v1/models/strict:predict", entities(machines))
        np.testing.assert_allclose(looked_up.json()["predictions"], direct.json()["predictions"])
        assert looked_up.headers["x-headway-features"] == "store;rows=" + ("0" if rows == 1 else f"0-{rows - 1}")
        assert "x-headway-features" not in direct.headers
    troubled = [ABSENT, 10, NULL, STALE, 11]
    answer = server.post("/v1/models/lenient:predict", entities(troubled))
    np.testing.assert_allclose(answer.json()["predictions"], expected(troubled))
    told = set(answer.headers["x-headway-features"].split(", "))
    assert "default;cause=null;columns=heat;rows=2" in told
    assert {part.rpartition(";")[2] for part in told if "cause=stale" in part} == {"rows=3"}
    assert {part.rpartition(";")[2] for part in told if "cause=missing" in part} == {"rows=0"}
    refused = server.post("/v1/models/strict:predict", entities([ABSENT]))
    assert (refused.status_code, "'machine'" in refused.json()["error"], str(ABSENT) in refused.text) == (
        400,
        True,
        False,
    )
    assert trailing(server, [ABSENT]).startswith("store;rows=0, default;cause=missing;columns=")
    assert server.metric("headway_feature_rows_total", model_name="lenient", cause="null", action="default") == 1
    assert server.metric("headway_feature_rows_total", model_name="strict", cause="missing", action="error") == 1


def test_redis_killed_frozen_and_started_again(
    start: Callable[..., Server], repositories: dict[str, Path], redis_server: RedisServer
) -> None:
    """A hundred requests per second: none is lost, the breaker opens and closes each time, and the pod stays ready."""
    server = start(repositories["redis"], 100)
    machines = [20, 21]
    right = {tuple(np.round(expected(machines), 6)), tuple(np.round(expected([ABSENT, ABSENT]), 6))}

    def known(body: Any) -> bool:
        return tuple(np.round(body["predictions"], 6)) in right

    def is_open() -> bool:
        return bool(server.metric("headway_feature_circuit", state="closed") == 0)

    def stored() -> bool:
        answer = server.post("/v1/models/lenient:predict", entities(machines))
        return answer.headers["x-headway-features"] == "store;rows=0-1"

    server.until(stored, "looked up")
    load = Load(f"{server.base}/v1/models/lenient:predict", entities(machines), rate=100, right=known)
    with load:
        for breaks, heals in ((redis_server.kill, redis_server.start), (redis_server.freeze, redis_server.thaw)):
            breaks()
            server.until(is_open, "open")
            refused = server.post("/v1/models/strict:predict", entities(machines))
            assert (refused.status_code, refused.json()["error"]) == (503, "The feature store did not answer.")
            assert server.post("/v1/models/strict:predict", {"instances": [[1, 2, 3]]}).status_code == 200
            assert server.get("/ready").status_code == 200
            heals()
            server.until(stored, "recovered")
            server.until(lambda: not is_open(), "closed")
    assert load.tally.lost == {}
    assert (server.metric("headway_feature_circuit_changes_total", state="open") or 0) >= 2
    assert (server.metric("headway_feature_circuit_changes_total", state="closed") or 0) >= 2
    assert not server.metric("inference_request_timeouts_total", model_name="lenient")
