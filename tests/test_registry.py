"""The registry is the control plane: what it says is done, and when it says nothing, what serves goes on serving."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from scripts.load import Load
from tests.models import columns, puppet, register
from tests.servers import ROOT, MlflowServer, Server, copy_registry, free_port, start_mlflow

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
GOOD = {"instances": [ROW]}


@pytest.fixture(scope="module")
def registry(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with start_mlflow(copy_registry(trained, tmp_path_factory.mktemp("registry"))) as server:
        yield server


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], registry: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Follows an alias and a stage of one registered model."""
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    uris = {"aliased": f"models:/{MODEL}@champion", "staged": f"models:/{MODEL}/Production"}
    file.write_text(json.dumps({"models": [{"name": name, "uri": uri} for name, uri in uris.items()]}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=registry.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2")
    server.until_ready()
    return server


@pytest.fixture(autouse=True)
def restored(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test leaves the alias on version 1."""
    yield
    if "server" in request.fixturenames:
        request.getfixturevalue("registry").set_alias(MODEL, "champion", "1")
        request.getfixturevalue("server").until_serves("1", "aliased")


def states(server: Server, model: str = "aliased") -> dict[str, str]:
    return {v["version"]: v["state"] for v in server.status(model)["versions"]}


def polls(server: Server, outcome: str, model: str = "aliased") -> float:
    return server.metric("headway_registry_polls_total", model_name=model, outcome=outcome) or 0.0


def test_the_status_says_what_answers(server: Server) -> None:
    """Every key of the contract, whatever it holds."""
    status = server.status("aliased")
    assert {k: status[k] for k in ("name", "version", "platform", "ready", "state", "uri", "alias", "stage")} == {
        "name": "aliased", "version": "1", "platform": "mlflow", "ready": True, "state": "READY",
        "uri": f"models:/{MODEL}@champion", "alias": "champion", "stage": "Production",
    }  # fmt: skip
    assert {"run_id", "digest", "since", "stale", "problem"} < set(status)
    assert (status["stale"], status["problem"]) == (False, None)
    assert datetime.fromisoformat(status["since"]).tzinfo is not None
    assert len(status["run_id"]) == 32
    assert status["versions"] == [{"version": "1", "state": "READY", "reason": None, "engine": "arrays"}]
    assert server.get("/v1/models").json() == {"models": ["aliased", "staged"]}


def test_a_version_answers_by_number_and_by_label(server: Server) -> None:
    """While it is loaded; both say who answered."""
    for path in ("/versions/1", "/labels/champion", ""):
        assert server.post(f"/v1/models/aliased{path}:predict", GOOD).json()["model_version"] == "1"
    assert server.get("/v2/models/aliased/versions/1/ready").json() == {"name": "aliased", "ready": True}


def test_a_stage_is_followed_as_well(server: Server, registry: MlflowServer) -> None:
    """The highest number in the stage, in any case of the word."""
    registry.set_stage(MODEL, "2", "Production")
    server.until_serves("2", "staged")
    assert server.status("staged")["stage"] == "Production"
    registry.set_stage(MODEL, "2", "Staging")
    server.until_serves("1", "staged")


def test_a_changed_tag_rebuilds_the_version_beside_the_old_one(server: Server, registry: MlflowServer) -> None:
    """The same number answers in the new way, and no request is lost; a tag of the team's own changes nothing."""
    since = server.status("aliased")["since"]
    registry.set_tag(MODEL, "1", "owner", "maintenance")
    done = polls(server, "ok")
    server.until(lambda: polls(server, "ok") >= done + 3, "three polls later")
    assert server.status("aliased")["since"] == since
    with Load(f"{server.base}/v1/models/aliased:predict", GOOD, rate=60) as load:
        registry.set_tag(MODEL, "1", "headway.output", "probabilities")
        server.until(lambda: "probabilities" not in server.post("/v1/models/aliased:predict", GOOD).json(), "rebuilt")
        assert len(server.post("/v1/models/aliased:predict", GOOD).json()["predictions"][0]) == 2
        registry.set_tag(MODEL, "1", "headway.output", "auto")
        server.until(lambda: "probabilities" in server.post("/v1/models/aliased:predict", GOOD).json(), "rebuilt again")
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1"}


def test_a_broken_version_leaves_the_old_one_serving(server: Server, registry: MlflowServer) -> None:
    """It shows in the status, the log and the metrics; readiness stays, and a way back needs no restart."""
    broken = register(registry.uri, MODEL, puppet(), columns(("ms", "double")))
    registry.set_alias(MODEL, "champion", broken)
    server.until(lambda: states(server).get(broken) == "FAILED", "failed")
    status = server.get("/v1/models/aliased")
    assert (status.status_code, status.json()["version"], status.json()["ready"]) == (200, "1", True)
    (failed,) = [v for v in status.json()["versions"] if v["version"] == broken]
    assert "allow_code" in failed["reason"]
    assert server.get("/ready").status_code == 200
    assert server.post("/v1/models/aliased:predict", GOOD).json()["model_version"] == "1"
    assert server.metric("model_loaded", model_name="aliased", model_version="1") == 1
    assert server.metric("model_loaded", model_name="aliased", model_version=broken) == 0
    assert server.metric("headway_state_changes_total", model_version=broken, state="FAILED")
    lines = [x for x in server.lines() if x.get("version") == broken and x.get("to") == "FAILED"]
    assert "allow_code" in lines[0]["reason"]
    answer = server.post(f"/v1/models/aliased/versions/{broken}:predict", GOOD)
    assert answer.status_code == 404
    assert "FAILED" in answer.json()["error"]
    registry.set_alias(MODEL, "champion", "1")
    server.until(lambda: states(server) == {"1": "READY"}, "forgotten")
    assert server.metric("model_loaded", model_name="aliased", model_version=broken) is None


def test_a_tag_that_cannot_be_understood_never_hurts_what_serves(server: Server, registry: MlflowServer) -> None:
    """On a new version, or on the one that serves: the tag's new configuration is FAILED, and the old one answers."""
    for number in ("2", "1"):
        registry.set_tag(MODEL, number, "headway.max_rows", "many")
        registry.set_alias(MODEL, "champion", number)
        server.until(lambda: "FAILED" in [v["state"] for v in server.status("aliased")["versions"]], "failed")
        (failed,) = [v for v in server.status("aliased")["versions"] if v["state"] == "FAILED"]
        assert (failed["version"], "headway.max_rows" in failed["reason"]) == (number, True)
        answer = server.post("/v1/models/aliased:predict", GOOD)
        assert (answer.status_code, answer.json()["model_version"]) == (200, "1")
        assert server.get("/ready").status_code == 200
        delete_tag(registry, number, "headway.max_rows")
        server.until_serves(number, "aliased")
        registry.set_alias(MODEL, "champion", "1")
        server.until(lambda: states(server) == {"1": "READY"}, "as before")


def delete_tag(registry: MlflowServer, number: str, key: str) -> None:
    MlflowClient(registry.uri).delete_model_version_tag(MODEL, number, key)


def test_a_vanished_alias_never_unloads_the_last_version(server: Server, registry: MlflowServer) -> None:
    """It shows in the status; the version serves on."""
    registry.delete_alias(MODEL, "champion")
    server.until(lambda: "does not exist" in (server.status("aliased")["problem"] or ""), "the alias is missed")
    assert server.get("/v1/models/aliased").status_code == 200
    assert server.get("/ready").status_code == 200
    assert server.post("/v1/models/aliased:predict", GOOD).json()["model_version"] == "1"
    registry.set_alias(MODEL, "champion", "1")
    server.until(lambda: server.status("aliased")["problem"] is None, "the alias is back")


def test_an_outage_of_the_registry(headway: Callable[..., Server], trained: Path, tmp_path: Path) -> None:
    """Down at the start: live, not ready, and says why. Up: ready. Down again: serves on, stays ready, and counts."""
    port = free_port()
    server = headway("--model-uri", f"models:/{MODEL}@champion", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}",
                     HEADWAY_REGISTRY__POLL_SECONDS="0.2")  # fmt: skip
    server.until(lambda: "did not answer" in server.status().get("error", ""), "the outage is known")
    assert server.get("/health/live").json() == {"status": "alive"}
    assert server.get("/ready").status_code == 503
    refused = server.post(f"/v1/models/{MODEL}:predict", GOOD)
    assert (refused.status_code, list(refused.json())) == (503, ["error"])
    with start_mlflow(copy_registry(trained, tmp_path), port):
        server.until_ready()
        server.until(lambda: polls(server, "ok", MODEL) > 0, "polls")
        assert (server.status()["stale"], server.status()["problem"]) == (False, None)
    before = polls(server, "error", MODEL)
    server.until(lambda: polls(server, "error", MODEL) > before, "the outage is counted")
    status = server.get(f"/v1/models/{MODEL}")
    assert (status.status_code, status.json()["ready"]) == (200, True)
    assert status.json()["stale"] is True
    assert "did not answer" in status.json()["problem"]
    assert server.get("/ready").status_code == 200
    assert server.post(f"/v1/models/{MODEL}:predict", GOOD).json()["model_version"] == "1"
    assert server.terminate() == 0


def fail_fast(registry: MlflowServer, uri: str) -> subprocess.CompletedProcess[str]:
    """A server that ends when it cannot serve a reference."""
    command = [sys.executable, "-m", "serving.cli", "serve", "--model-uri", uri, "--model-name", "m",
               "--host", "127.0.0.1", "--port", str(free_port()), "--grpc-port", str(free_port())]  # fmt: skip
    environ = {"HEADWAY_SERVER__FAIL_FAST": "true", "MLFLOW_TRACKING_URI": registry.uri}
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True, timeout=60)


def test_fail_fast_ends_the_process_when_a_version_fails(registry: MlflowServer) -> None:
    """The exit code is not 0, and the log says why."""
    register(registry.uri, "broken", puppet(), columns(("ms", "double")))
    done = fail_fast(registry, "models:/broken/1")
    assert done.returncode == 1
    assert "set allow_code" in done.stderr


@pytest.mark.audit("12")
@pytest.mark.parametrize("uri", ["/nowhere/at/all", "models:/nobody/1", f"models:/{MODEL}@nobody"])
def test_fail_fast_ends_the_process_when_there_is_nothing_to_serve(registry: MlflowServer, uri: str) -> None:
    """A folder that is not there, a model, or an alias: the registry has answered, and waiting would change nothing."""
    done = fail_fast(registry, uri)
    assert done.returncode == 1
    assert "nothing to aspire to" in done.stderr
