"""The main promise: moving an alias in MLflow switches the version, and no request is lost."""

import re
from collections.abc import Callable
from typing import Any

import mlflow
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from scripts.demo.machines import COLUMNS
from scripts.load import Load
from tests.direct import probabilities_of
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]


def test_a_moved_alias_switches_the_version_without_a_lost_request(
    mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """Up, and down again: every request is answered, by the version that it names."""
    server = headway("--model-uri", f"models:/{MODEL}@champion",
                     MLFLOW_TRACKING_URI=mlflow_server.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.3")  # fmt: skip
    server.until_ready()
    with Load(f"{server.base}/v1/models/{MODEL}:predict", {"instances": [ROW]}, rate=100) as load:
        for version in ("2", "1"):
            mlflow_server.set_alias(MODEL, "champion", version)
            server.until_serves(version)
            until_answered(server, load, version)
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1", "2"}
    assert server.terminate() == 0
    assert [line["to"] for line in server.lines() if line["message"] == "state changed"].count("UNLOADED") >= 1


def test_five_moves_under_load_with_a_broken_version_and_a_step_back(
    mlflow_server: MlflowServer, headway: Callable[..., Server]
) -> None:
    """16 clients, three thousand requests: no answer but 200, every number is that of the version which the answer names,
    the broken version never serves, and the objects of versions that went are really gone."""
    register_broken(mlflow_server.uri)
    expected = {v: probabilities_of(mlflow_server.uri, v, [ROW])[0] for v in ("1", "2", "3")}

    def right(body: Any) -> bool:
        found = body["probabilities"][0]
        return bool(np.allclose(found, expected[body["model_version"]], rtol=1e-5, atol=1e-9))

    server = headway("--model-uri", f"models:/{MODEL}@champion",
                     MLFLOW_TRACKING_URI=mlflow_server.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.5")  # fmt: skip
    server.until_ready()
    with Load(
        f"{server.base}/v1/models/{MODEL}:predict", {"instances": [ROW]}, rate=250, threads=16, right=right
    ) as load:
        for version in ("2", "3", "4", "1", "2"):
            mlflow_server.set_alias(MODEL, "champion", version)
            server.until(
                lambda v=version: state_of(server, v) == ("FAILED" if v == "4" else "READY"), f"{version} seen"
            )
            until_answered(server, load, "3" if version == "4" else version)
        server.until(lambda: load.tally.sent > 3000, "three thousand requests", 180)
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1", "2", "3"}
    server.until(lambda: gauge(server, "headway_servables_alive") == 1, "collected")


def until_answered(server: Server, load: Load, version: str) -> None:
    """Waits until the version has answered a hundred more requests."""
    enough = load.tally.versions[version] + 100
    server.until(lambda: load.tally.versions[version] >= enough, f"answered by {version}")


def state_of(server: Server, version: str) -> str | None:
    """The state of one version as the status route tells it."""
    return next((v["state"] for v in server.status()["versions"] if v["version"] == version), None)


def gauge(server: Server, name: str) -> float:
    """The one value of a metric."""
    match = re.search(rf"^{name}{{.*}} (.*)$", server.get("/metrics").text, re.MULTILINE)
    assert match is not None
    return float(match[1])


def register_broken(uri: str) -> None:
    """Version 4 says that it takes ten columns, and was fitted with nine."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment(MODEL)
    rows = np.random.default_rng(0).random((20, 10))
    model = LogisticRegression().fit(rows[:, :9], np.arange(20) % 2)
    signature = mlflow.models.infer_signature(dict(zip(COLUMNS, rows.T, strict=True)), np.arange(2))
    with mlflow.start_run():
        mlflow.sklearn.log_model(
            model, name="model", serialization_format="skops", signature=signature, registered_model_name=MODEL
        )
