"""scripts/smoke.sh and scripts/deploy.sh against real servers."""

import json
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from tests.deployment.clusters import ROOT
from tests.models import columns, register
from tests.servers import MlflowServer, Server, free_port

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]
MIXED = columns(
    ("two words", "double"), ("n", "long"), ("s", "string"), ("t", "datetime"), ("b", "boolean"), ("raw", "binary")
)
TENSORS = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 2, 3), "x"), TensorSpec(np.dtype("int64"), (-1, 4), "y")]),
    Schema([TensorSpec(np.dtype("float64"), (-1,))]),
)


def counter() -> Callable[..., None]:
    """Logs a model that answers each row with 1, whatever it is given."""

    class Counter(mlflow.pyfunc.PythonModel):  # within a function, so that it is pickled by value
        def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]
            return [1.0] * len(model_input["x"] if isinstance(model_input, dict) else model_input)

    return partial(mlflow.pyfunc.log_model, python_model=Counter())


@pytest.fixture(scope="module")
def server(shared: MlflowServer, serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Serves a classifier, a model of every type of column, and one of tensors."""
    register(shared.uri, "mixed", counter(), MIXED)
    register(shared.uri, "tensors", counter(), TENSORS)
    file: Path = tmp_path_factory.mktemp("config") / "headway.yaml"
    names = ["predictive_maintenance", "mixed", "tensors"]
    models = [{"name": name, "uri": f"models:/{name}/1"} for name in names]
    file.write_text(json.dumps({"models": models, "defaults": {"allow_code": True, "isolation": "none"}}))
    started = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri)
    started.until_ready()
    return started


def smoke(url: str, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["scripts/smoke.sh", url, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("name", ["predictive_maintenance", "mixed", "tensors"])
def test_a_ready_server_passes(server: Server, name: str) -> None:
    """Every type of column and nested tensors: the requests are made from the model's metadata."""
    done = smoke(server.base, "--model", name)
    assert (done.returncode, "FAIL" in done.stdout) == (0, False), done.stdout
    assert f"pass  version 1 of {name} serves" in done.stdout.splitlines()
    assert {"pass  V1 predict", "pass  V2 infer", "pass  ready"} <= set(done.stdout.splitlines())


def test_without_a_name_it_is_the_first_model(server: Server) -> None:
    """A slash at the end of the URL does no harm."""
    assert "pass  status of predictive_maintenance" in smoke(server.base + "/").stdout


def test_what_is_wrong_is_said(server: Server) -> None:
    """Instances that the model does not take, and an unknown model: the server's own words, exit 1."""
    done = smoke(server.base, "--model", "mixed", "--instances", '[{"n": 1.5}]')
    assert done.returncode == 1
    assert "FAIL  V1 predict: HTTP 400" in done.stdout
    assert "pass  V2 infer" in done.stdout
    unknown = smoke(server.base, "--model", "nobody")
    assert unknown.returncode == 1
    assert "FAIL  status of nobody: HTTP 404" in unknown.stdout


def test_a_server_without_a_ready_model_fails(headway: Callable[..., Server], shared: MlflowServer) -> None:
    """It lives, is not ready, and the model's status says why."""
    server = headway("--model-uri", "models:/predictive_maintenance/99", MLFLOW_TRACKING_URI=shared.uri)
    done = smoke(server.base)
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert lines[0] == "pass  live"
    assert lines[1] == 'FAIL  ready: HTTP 503: {"ready":false}'
    assert "FAIL  status of predictive_maintenance: HTTP 503" in done.stdout


def test_where_nobody_listens_one_line_says_so() -> None:
    """No further question is asked."""
    done = smoke(f"http://127.0.0.1:{free_port()}")
    [line] = done.stdout.splitlines()
    assert (done.returncode, line.startswith("FAIL  live: HTTP 000: curl:")) == (1, True), line


@pytest.mark.parametrize("words", [(), ("http://a", "http://b"), ("http://a", "--model"), ("--no", "http://a")])
def test_a_wrong_command_line_shows_the_usage(words: tuple[str, ...]) -> None:
    """And exits 2, as deploy.sh does."""
    for script in ("scripts/smoke.sh", "scripts/deploy.sh"):
        done = subprocess.run([script, *words], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert (done.returncode, f"usage: {script}" in done.stderr) == (2, True)


KUBECTL = """#!/bin/sh
# Knows the base, one running pod, and a port that leads to a real server.
echo "$@" >> {log}
case $1 in
  kustomize) for file in "$2"/*.yaml; do cat "$file"; echo ---; done ;;
  get) echo a-pod ;;
  wait) exit {wait} ;;
  port-forward) echo "Forwarding from 127.0.0.1:{port} -> 8080"; exec sleep 60 ;;
esac
"""


def deploy(tmp_path: Path, *words: str, port: int = 0, wait: int = 0) -> tuple[int, str, list[str]]:
    """Exit code, output, and what kubectl was asked."""
    program, log = tmp_path / "kubectl", tmp_path / "calls"
    log.touch()
    program.write_text(KUBECTL.format(log=log, port=port, wait=wait))
    program.chmod(0o755)
    command = ["env", f"PATH={tmp_path}:/usr/bin:/bin", "scripts/deploy.sh", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr, log.read_text().splitlines()


def test_deploy_applies_waits_and_asks(server: Server, tmp_path: Path) -> None:
    """In this order; the smoke test reaches the newest pod through a forwarded port."""
    code, said, calls = deploy(tmp_path, "base", "--", "--model", "mixed", port=server.port)
    assert code == 0, said
    assert [call.split()[0] for call in calls] == ["kustomize", "apply", "wait", "get", "port-forward"]
    assert calls[1] == "apply -k kserve/base"
    assert "wait inferenceservice/predictive-maintenance -n headway" in calls[2]
    assert "pass  V2 infer" in said


def test_deploy_through_a_gateway_forwards_nothing(server: Server, tmp_path: Path) -> None:
    """--url is asked instead."""
    code, said, calls = deploy(tmp_path, "base", "--url", server.base)
    assert (code, [call.split()[0] for call in calls]) == (0, ["kustomize", "apply", "wait"]), said


def test_deploy_stops_where_something_fails(tmp_path: Path) -> None:
    """A wait that runs out ends it before the smoke test; an unknown overlay and one without pods before anything."""
    code, said, calls = deploy(tmp_path, "base", wait=1)
    assert (code, calls[-1].split()[0]) == (1, "wait"), said
    assert deploy(tmp_path, "nowhere")[:2] == (
        1,
        "There is no kustomization in kserve/overlays/nowhere, nor in nowhere.\n",
    )
    code, said, _ = deploy(tmp_path, "monitoring")
    assert (code, "no InferenceService and no Deployment" in said) == (1, True)


def test_a_dry_run_of_deploy_changes_nothing(tmp_path: Path) -> None:
    """It shows what it would do."""
    code, said, calls = deploy(tmp_path, "base", "--dry-run")
    assert (code, calls) == (0, ["kustomize kserve/base"])
    assert said.startswith("+ kubectl apply -k kserve/base\n+ kubectl wait")
