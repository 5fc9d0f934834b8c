"""Whatever the protocol and the form of the rows, the numbers are those of the model called directly in Python."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import requests
import yaml
from kserve import InferenceGRPCClient, InferInput, InferRequest

from scripts.demo.machines import COLUMNS, EXAMPLE
from tests.direct import probabilities_of
from tests.servers import Server, start_headway, start_mlflow

pytestmark = pytest.mark.e2e
VERSIONS = ("1", "2", "3")
ROWS = (1, 7, 100)


@pytest.fixture(scope="module")
def tracking_uri(trained: Path) -> Iterator[str]:
    """The trained registry, read only."""
    with start_mlflow(trained) as server:
        yield server.uri


@pytest.fixture(scope="module")
def server(trained: Path, tracking_uri: str, tmp_path_factory: pytest.TempPathFactory, lane: str) -> Iterator[Server]:
    """One server with every kind of model: a pipeline, a forest, a network, as `v1`, `v2`, `v3`."""
    home = tmp_path_factory.mktemp("same")
    models = [{"name": f"v{v}", "uri": f"models:/predictive_maintenance/{v}", "timeout_ms": 0} for v in VERSIONS]
    (home / "headway.yaml").write_text(
        yaml.safe_dump({"features": {"repo_path": str(trained / "feast")}, "models": models})
    )
    server = start_headway(
        home / "headway.log",
        "--config",
        str(home / "headway.yaml"),
        MLFLOW_TRACKING_URI=tracking_uri,
        HEADWAY_SERVER__LANE=lane,
    )
    server.until_ready(90)
    yield server
    server.kill()


@pytest.fixture(scope="module")
def latest(trained: Path) -> pd.DataFrame:
    """What Feast must know of each machine: its last reading, by machine_id."""
    frame = pd.read_parquet(trained / "feast" / "data" / "readings.parquet")
    return frame.sort_values("event_timestamp").groupby("machine_id").last()[list(COLUMNS)]


@pytest.fixture(scope="module")
def direct(tracking_uri: str, latest: pd.DataFrame) -> dict[str, np.ndarray]:
    """Probabilities of 100 machines by version, without a server."""
    return {v: probabilities_of(tracking_uri, v, latest.to_numpy()[:100]) for v in VERSIONS}


def check(answer: dict[str, Any], expected: np.ndarray) -> None:
    """A V1 body against the direct probabilities."""
    np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-5, atol=1e-8)
    assert answer["predictions"] == expected.argmax(axis=1).tolist()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("version", VERSIONS)
def test_v1_lists_objects_and_entity_rows(
    server: Server, latest: pd.DataFrame, direct: dict[str, np.ndarray], version: str, rows: int
) -> None:
    """Lists in signature order, objects in any order, and machine_id alone."""
    frame = latest[:rows]
    lists = frame.to_numpy().tolist()
    objects = [dict(reversed(list(zip(COLUMNS, row, strict=True)))) for row in lists]
    entities = [{"machine_id": int(m)} for m in frame.index]
    for instances in (lists, objects, entities):
        answer = server.post(f"/v1/models/v{version}:predict", {"instances": instances})
        assert answer.status_code == 200, answer.text
        check(answer.json(), direct[version][:rows])


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("version", VERSIONS)
async def test_v2_matrix_columns_and_entity_tensors(
    server: Server, latest: pd.DataFrame, direct: dict[str, np.ndarray], version: str, rows: int
) -> None:
    """One `[n, 10]` tensor, ten `[n]` or `[n, 1]` tensors, a tensor of machine_id: over REST, and over gRPC typed or raw."""
    frame = latest[:rows]
    matrix = tensor("anything", frame.to_numpy())
    columns = [tensor(c, frame[c].to_numpy()[:, None] if i % 2 else frame[c].to_numpy()) for i, c in enumerate(COLUMNS)]
    entity = tensor("machine_id", frame.index.to_numpy(dtype=np.int64))
    async with InferenceGRPCClient(server.grpc) as client:
        for tensors in ([matrix], columns, [entity]):
            body = {"inputs": [t.to_dict() for t in tensors]}
            outputs = server.post(f"/v2/models/v{version}/infer", body).json()["outputs"]
            named = {o["name"]: np.reshape(o["data"], o["shape"]) for o in outputs}
            check({k: v.tolist() for k, v in named.items()}, direct[version][:rows])
            for binary in (False, True):
                request = InferRequest(f"v{version}", [with_data(t, binary) for t in tensors])
                typed = {o.name: o.as_numpy().tolist() for o in (await client.infer(request)).outputs}
                check(typed, direct[version][:rows])


def tensor(name: str, array: np.ndarray) -> InferInput:
    """A JSON tensor."""
    made = InferInput(name, list(array.shape), "INT64" if array.dtype.kind == "i" else "FP64")
    made.set_data_from_numpy(array, binary_data=False)
    return made


def with_data(old: InferInput, binary: bool) -> InferInput:
    """The same tensor for gRPC, typed or raw."""
    made = InferInput(old.name, old.shape, old.datatype)
    made.set_data_from_numpy(old.as_numpy(), binary_data=binary)
    return made


def test_what_a_row_brings_wins_over_what_is_stored(server: Server, tracking_uri: str, latest: pd.DataFrame) -> None:
    """Rows with all, some or none of their columns may stand in one request; only the gaps are looked up."""
    stored = latest.loc[[5, 6]].to_numpy().tolist()
    hot = [120.0, *stored[0][1:]]
    instances = [
        {"machine_id": 5, "temperature": 120.0},
        dict(zip(COLUMNS, EXAMPLE, strict=True)),
        {"machine_id": 6},
        {"machine_id": 999_999, **dict(zip(COLUMNS, EXAMPLE, strict=True))},
    ]
    answer = server.post("/v1/models/v1:predict", {"instances": instances})
    assert answer.status_code == 200, answer.text
    check(answer.json(), probabilities_of(tracking_uri, "1", [hot, list(EXAMPLE), stored[1], list(EXAMPLE)]))


@pytest.mark.parametrize(("instance", "text"), [
    ({"machine_id": 999_999}, "No features are stored for a value of the entity key 'machine_id'"),
    ({"machine_id": "17"}, "entity key 'machine_id' takes integers"),
    ({"machine_id": True}, "entity key 'machine_id' takes integers"),
    ({"machine_id": 1.5}, "entity key 'machine_id' takes integers"),
    ({"machine_id": None}, "entity key 'machine_id' is missing"),
    ({"machine_id": 10**30}, "entity key 'machine_id' takes integers"),
    ({"machine_id": 17, "colour": 1}, "'colour' is not in the model's signature"),
    ({"machine_id": 17, "load": "0.5"}, "'load' takes numbers"),
    ({"machine_id": 17, "load": None}, "'load' is required"),
])  # fmt: skip
def test_entity_rows_that_cannot_be_completed_are_a_400(server: Server, instance: dict[str, Any], text: str) -> None:
    """The key or the column is named, never a value, alone and beside a good row."""
    for instances in ([instance], [{"machine_id": 1}, instance]):
        answer = server.post("/v1/models/v1:predict", {"instances": instances})
        assert answer.status_code == 400
        assert text in answer.json()["error"]
        assert "999999" not in answer.text


def test_a_row_without_key_and_column_names_what_is_missing(server: Server) -> None:
    """Beside a row with a key, and alone."""
    bare = dict(zip(COLUMNS[1:], EXAMPLE[1:], strict=True))
    answer = server.post("/v1/models/v1:predict", {"instances": [{"machine_id": 1}, bare]})
    assert (answer.status_code, "'machine_id' is missing" in answer.text) == (400, True)
    answer = server.post("/v1/models/v1:predict", {"instances": [bare]})
    assert (answer.status_code, "'temperature' is missing" in answer.text) == (400, True)


def test_a_store_that_is_down_is_a_503_and_hurts_nobody_else(
    trained: Path, tracking_uri: str, headway: Callable[..., Server]
) -> None:
    """Entity rows are 503 (the cause in the log), full rows are served, readiness stays, lookups are counted."""
    home = trained.parent / "broken-store"
    home.mkdir()
    for name in ("feature_store.yaml", "data"):
        (home / name).symlink_to(trained / "feast" / name)
    text = (trained / "feast" / "feature_store.yaml").read_text().replace("data/online.db", "data/nowhere.db")
    (home / "feature_store.yaml").unlink()
    (home / "feature_store.yaml").write_text(text)
    server = headway("--model-uri", "models:/predictive_maintenance/1",
                     MLFLOW_TRACKING_URI=tracking_uri, HEADWAY_FEATURES__REPO_PATH=str(home))  # fmt: skip
    server.until_ready()
    path = "/v1/models/predictive_maintenance:predict"
    answer = server.post(path, {"instances": [{"machine_id": 1}]})
    assert (answer.status_code, answer.json()) == (503, {"error": "The feature store did not answer."})
    assert server.post(path, {"instances": [list(EXAMPLE)]}).status_code == 200
    assert server.get("/ready").status_code == 200
    metrics = requests.get(server.base + "/metrics", timeout=10).text
    assert (
        'headway_feature_lookups_total{model_name="predictive_maintenance",model_version="1",outcome="error"} 1.0'
        in metrics
    )
    assert [line for line in server.lines() if line["message"] == "feature store does not answer"]
