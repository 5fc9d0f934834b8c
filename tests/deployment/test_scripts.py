"""scripts/smoke.sh and scripts/deploy.sh against real servers."""

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from scripts.deploy import _port_of
from serving.rollout.canary import Failed
from tests.deployment.clusters import ROOT, Shell, running
from tests.deployment.controller import Cluster
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
    [status] = [line for line in lines if line.startswith("FAIL  status of predictive_maintenance: HTTP 503: ")]
    assert "models:/predictive_maintenance/99" in status
    assert "{" not in status
    assert "FAIL  metrics: predictive_maintenance is loaded: HTTP 200: the answer does not say so" in lines


def test_the_version_that_serves_is_not_the_last_of_those_that_are_known() -> None:
    """Version 3 serves, version 4 has failed, and the status of the model names both."""
    status = {"name": "m", "version": "3", "ready": True, "versions": [{"version": "3"}, {"version": "4"}]}

    class Status(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said = {"/v2/health/live": {"live": True}, "/v2/health/ready": {"ready": True}}.get(self.path, status)
            body = json.dumps(said, separators=(",", ":")).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Status) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        done = smoke(f"http://127.0.0.1:{httpd.server_port}", "--model", "m", "--version", "4")
        httpd.shutdown()
    assert "FAIL  version 3 of m serves, and not 4" in done.stdout.splitlines()
    assert done.returncode == 1


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


def deploy(shell: Shell, *words: str, port: int = 0) -> tuple[int, str, list[list[str]]]:
    """Exit code, output, and the words of each kubectl."""
    real = {"REAL_KUBECTL": real} if (real := shutil.which("kubectl")) else {}
    done = shell.run("scripts/deploy.sh", "--timeout", "20", *words, FAKE_PORT=str(port), **real)
    return done.returncode, done.stdout + done.stderr, [call["words"] for call in shell.calls()]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def test_deploy_applies_waits_and_asks(server: Server, shell: Shell) -> None:
    """Namespaces first, then all; the smoke test reaches a pod of what was applied, and wants the manifest's version."""
    shell.begin(Cluster())
    code, said, calls = deploy(shell, "base", port=server.port)
    assert code == 0, said
    assert [call[:3] for call in calls[:3]] == [["kustomize", str(ROOT / "kserve/base")], ["apply", "-f", "-"], ["apply", "-k", str(ROOT / "kserve/base")]]  # fmt: skip
    assert "+ kubectl port-forward pod/predictive-maintenance-predictor-00001-pod -n headway :8080" in said
    assert "pass  version 1 of predictive_maintenance serves" in said
    assert "pass  V2 infer" in said


def test_deploy_waits_for_the_pods_of_this_template(server: Server, shell: Shell) -> None:
    """While an update rolls, the pods of before are Ready, and are not what is asked for."""
    shell.begin(running("2", mode="Standard"))
    code, said, _ = deploy(shell, "base", port=server.port)
    assert code == 0, said
    assert "# waits until Deployment predictive-maintenance-predictor takes version 1" in said
    assert "+ kubectl port-forward pod/predictive-maintenance-predictor-00002-pod -n headway :8080" in said


def test_deploy_fails_for_a_version_that_does_not_exist(shell: Shell) -> None:
    """Though the pods of before serve on; it says what is missing, and what the cluster warns of."""
    cluster = running("2", mode="Standard")
    cluster.broken = ["1"]
    cluster.service()["status"]["conditions"] = [
        {"type": "PredictorReady", "status": "False", "message": "minimum availability"}
    ]
    about = {"involvedObject": {"name": "predictive-maintenance-predictor-00002-x"}, "metadata": {"name": "e"}}
    cluster.objects["event/e"] = {**about, "reason": "Unhealthy", "message": "Readiness probe failed: statuscode: 503"}
    shell.begin(cluster)
    code, said, calls = deploy(shell, "base", "--timeout", "3")
    assert code == 1
    assert (
        "Waited in vain for 3 seconds until 2 pods of Deployment predictive-maintenance-predictor are ready; 0 are"
        in said
    )
    assert "Next: `scripts/deploy.sh base` again when that is mended.\n" in said
    assert "  PredictorReady is False: minimum availability" in said
    assert "Unhealthy: Readiness probe failed: statuscode: 503" in said
    assert not [call for call in calls if call[0] == "port-forward"]


def test_deploy_through_a_gateway_forwards_nothing(server: Server, shell: Shell) -> None:
    """--url is asked instead; and what answers there must be the version of the manifest."""
    shell.begin(Cluster())
    code, said, calls = deploy(shell, "base", "--url", server.base)
    assert code == 0, said
    assert not [call for call in calls if call[0] == "port-forward"]
    code, said, _ = deploy(shell, "base", "--url", server.base, "--", "--model", "mixed", "--version", "7")
    assert (code, "FAIL  version 1 of mixed serves, and not 7" in said) == (1, True)


def test_deploy_says_what_it_cannot_find(shell: Shell) -> None:
    """An unknown overlay, before anything."""
    shell.begin(Cluster())
    code, said, calls = deploy(shell, "nowhere")
    assert (code, said, calls) == (1, "There is no kustomization in kserve/overlays/nowhere, nor in nowhere.\n", [])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here: overlays cannot be rendered")
def test_deploy_applies_what_has_no_pods(shell: Shell) -> None:
    """`monitoring` has rules and a dashboard; there is nobody to wait for."""
    shell.begin(Cluster())
    code, said, calls = deploy(shell, "monitoring")
    assert (code, "applied; nothing of it answers predictions" in said) == (0, True)
    assert [call[0] for call in calls] == ["kustomize", "apply"]


def test_the_scripts_work_from_any_folder(shell: Shell, tmp_path: Path) -> None:
    """Also from one with packages of the names that they import, and by a Python with nothing installed."""
    shell.begin(running("1"))
    for name in ("scripts", "serving", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('the wrong one')\n")
    environ = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_CLUSTER": str(shell.file)}
    bare = [
        "-I",
        "-S",
        "-c",
        "import sys; sys.path.insert(0, sys.argv[1]); import serving.rollout.command, scripts.deploy",
    ]
    commands = [
        [str(ROOT / "scripts/canary.sh"), "--help"],
        [str(ROOT / "scripts/deploy.sh"), "--help"],
        [sys.executable, *bare, str(ROOT)],
    ]
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_port_that_is_never_forwarded_ends_the_command() -> None:
    """Reading from a kubectl that says nothing has a bound."""
    silent = subprocess.Popen(["sleep", "30"], stdout=subprocess.PIPE, text=True)
    with pytest.raises(Failed, match="The port was not forwarded: kubectl said nothing"):
        _port_of(silent, 0.3)
    silent.wait(10)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here: overlays cannot be rendered")
@pytest.mark.parametrize("namespace", [None, "theirs"])
def test_an_overlay_without_a_namespace_lies_where_it_is_told(
    shell: Shell, tmp_path: Path, namespace: str | None
) -> None:
    """By -n; beside a namespace that an object names kubectl would refuse it."""
    shell.begin(Cluster())
    said = {"resources": ["map.yaml"], **({"namespace": namespace} if namespace else {})}
    (tmp_path / "kustomization.yaml").write_text(json.dumps(said))
    (tmp_path / "map.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: m\n")
    code, said_then, calls = deploy(shell, str(tmp_path), "-n", "other", "--timeout", "5s")
    assert code == 0, said_then
    assert [call[-2:] == ["-n", "other"] for call in calls if call[0] == "apply"] == [namespace is None]


def test_a_dry_run_of_deploy_changes_nothing(shell: Shell) -> None:
    """It shows what it would do."""
    shell.begin(Cluster())
    code, said, calls = deploy(shell, "base", "--dry-run")
    assert (code, [call[0] for call in calls]) == (0, ["kustomize"])
    assert said.startswith("+ kubectl apply -k kserve/base\n# nothing was changed;")
    assert "applied;" not in said
