"""A model's folder, put there by KServe's storage initializer or by hand, is a version like any other."""

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.models import ModelSignature

from tests.models import REQUIREMENTS, columns, linear, puppet
from tests.servers import Server

pytestmark = pytest.mark.e2e
AB = columns(("a", "double"), ("b", "double"))


@pytest.fixture
def registry() -> Iterator[socket.socket]:
    """Listens where MLflow's variables point, and answers nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        yield listening


def save(folder: Path, estimator: Any = None, signature: ModelSignature = AB, **ids: str) -> Path:
    """A model, else one of the sum of two columns, and the ids that its MLmodel file says."""
    estimator = estimator or linear(1.0, 1.0)
    mlflow.sklearn.save_model(
        estimator, folder, serialization_format="skops", signature=signature, pip_requirements=REQUIREMENTS
    )
    said = yaml.safe_load((folder / "MLmodel").read_text())
    kept = {key: value for key, value in said.items() if key not in ("model_id", "model_uuid", "run_id")}
    (folder / "MLmodel").write_text(yaml.safe_dump(kept | ids))
    return folder


@pytest.mark.audit("23")
def test_what_the_storage_initializer_mounted_is_served_without_a_registry(
    headway: Callable[..., Server], registry: socket.socket, tmp_path: Path
) -> None:
    """It answers under the service's name, with its ids, digest and metrics; a registry that is configured is not even
    connected to, and none is missed."""
    save(tmp_path / "blob", model_id="m-1", run_id="r-1")
    mounted = tmp_path / "models"
    mounted.symlink_to(tmp_path / "blob")  # as KServe's modelcar mounts it
    url = f"http://127.0.0.1:{registry.getsockname()[1]}"
    server = headway(STORAGE_URI=str(mounted), INFERENCE_SERVICE_NAME="sums", MLFLOW_TRACKING_URI=url)
    server.until_ready()
    body = server.post("/v1/models/sums:predict", {"instances": [[1.0, 2.0]]}).json()
    assert (body["predictions"], body["model_version"]) == ([3.0], "m-1")
    status = server.status("sums")
    assert {key: status[key] for key in ("version", "uri", "run_id", "alias", "stage", "stale", "problem")} == {
        "version": "m-1", "uri": "models", "run_id": "r-1", "alias": None, "stage": None, "stale": False,
        "problem": None,
    }  # fmt: skip
    assert status["digest"].startswith("sha256:")
    assert server.metric("model_loaded", model_name="sums", model_version="m-1") == 1
    assert server.metric("headway_registry_polls_total", model_name="sums", outcome="error") is None
    with pytest.raises(BlockingIOError):
        registry.accept()
    (loaded,) = (line for line in server.lines() if line["message"] == "runtime loaded")
    assert loaded["model"] == "sums"  # a folder has no registered name


def test_the_trust_gate_is_the_same_for_a_folder(headway: Callable[..., Server], tmp_path: Path) -> None:
    """A folder that brings code is not run for having been mounted, and the reason names the setting."""
    mlflow.pyfunc.save_model(
        tmp_path / "models",
        python_model=puppet().keywords["python_model"],  # type: ignore[attr-defined]
        signature=columns(("ms", "double")),
        pip_requirements=REQUIREMENTS,
    )
    server = headway(STORAGE_URI=str(tmp_path / "models"), MODEL_NAME="puppet", MLFLOW_TRACKING_URI="")
    server.until(lambda: server.status("puppet")["state"] == "FAILED", "FAILED")
    assert "allow_code" in server.status("puppet")["error"]
    assert server.get("/ready").status_code == 503


@pytest.mark.audit("39")
def test_a_folder_that_is_not_there_yet_is_said_so(headway: Callable[..., Server], tmp_path: Path) -> None:
    """The server waits for it and names it, callers without the way there; it is no error of the registry."""
    server = headway(
        STORAGE_URI=str(tmp_path / "models"), MODEL_NAME="late", MLFLOW_TRACKING_URI="",
        HEADWAY_REGISTRY__PINNED_POLL_SECONDS="0.2",
    )  # fmt: skip
    server.until(lambda: "models has no MLmodel file" in server.status("late")["error"], "missed")
    for route in ("/v1/models/late", "/v2/models/late/ready", "/v2/models/late"):
        assert str(tmp_path) not in server.get(route).text
    assert f"{tmp_path}/models has no MLmodel file" in server.log.read_text()
    assert server.metric("headway_registry_polls_total", model_name="late", outcome="error") is None
    save(tmp_path / "models", model_id="m-2")
    server.until_serves("m-2", "late")
