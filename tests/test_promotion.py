"""The main promise: moving an alias in MLflow switches the version, and no request is lost."""

import time
from collections.abc import Callable

import pytest

from scripts.load import Load
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
        time.sleep(0.3)
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1", "2"}
    assert server.terminate() == 0
    assert [line["to"] for line in server.lines() if line["message"] == "state changed"].count("UNLOADED") >= 1
