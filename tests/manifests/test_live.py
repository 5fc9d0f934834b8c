"""The manifests beside a real server: probes that turn red and green, ports that listen, queries that find something."""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.manifests.cluster import Pod
from tests.manifests.rendering import ADAPTER, KUBECTL, folder
from tests.manifests.rules import bundle
from tests.servers import MlflowServer, Server, free_port, wait_for

PROMETHEUS = shutil.which("prometheus")
POD = "predictive-maintenance-predictor-6f7d8-abcde"

pytestmark = pytest.mark.e2e


def base_pod() -> Pod:
    return bundle("base").ours[0]


def as_in_the_manifest(serve: Callable[..., Server], config: Path, tracking_uri: str) -> Server:
    """A server with the words, the variables and the file of the base; only the registry's address is another."""
    pod, tree = base_pod(), bundle("base").named("ConfigMap", "headway-config")
    assert tree is not None
    config.write_text(tree["data"]["headway.yaml"], "utf-8")
    assert pod.container["args"] == ["serve", "--config", "/etc/headway/headway.yaml"]
    given = {e["name"]: e["value"] for e in pod.container["env"] if "value" in e and e["name"] != "HOME"}
    return serve("--config", str(config), **given, HEADWAY_REGISTRY__TRACKING_URI=tracking_uri)


def probe(server: Server, name: str) -> int:
    """What the kubelet is answered."""
    return server.get(base_pod().container[name]["httpGet"]["path"]).status_code


@pytest.fixture(scope="module")
def ready(serve: Callable[..., Server], shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server of the base, with its pinned version, READY and asked once."""
    server = as_in_the_manifest(serve, tmp_path_factory.mktemp("config") / "headway.yaml", shared.uri)
    server.until_ready()
    row = [0.0] * len(server.get("/v2/models/predictive_maintenance").json()["inputs"])
    assert server.post("/v1/models/predictive_maintenance:predict", {"instances": [row]}).status_code in {200, 400}
    return server


def test_without_a_registry_the_pod_lives_and_gets_no_traffic(serve: Callable[..., Server], tmp_path: Path) -> None:
    """Nothing can be loaded: startup and liveness stay green, so that nobody restarts it; readiness is red."""
    server = as_in_the_manifest(serve, tmp_path / "headway.yaml", f"http://127.0.0.1:{free_port()}")
    server.until(lambda: server.metric("headway_registry_polls_total", outcome="error"), "refused by the registry")
    assert [probe(server, name) for name in ("startupProbe", "livenessProbe", "readinessProbe")] == [200, 200, 503]


def test_with_its_version_the_pod_gets_traffic(ready: Server) -> None:
    """All probes are green, and the version that answers is the one that the manifest pins."""
    assert {probe(ready, name) for name in ("startupProbe", "livenessProbe", "readinessProbe")} == {200}
    variables = {e["name"]: e.get("value") for e in base_pod().container["env"]}
    assert ready.status(variables["MODEL_NAME"])["version"] == variables["MODEL_VERSION"]


def test_both_ports_listen(ready: Server) -> None:
    """HTTP and gRPC, the ports that the manifests declare by name, each have a socket."""
    for port in (ready.port, ready.grpc_port):
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            pass


@pytest.fixture(scope="module")
def prometheus(ready: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real Prometheus that scrapes the server, with the labels that the PodMonitor gives."""
    if PROMETHEUS is None:
        pytest.skip("prometheus is not here")
    home, port = tmp_path_factory.mktemp("prometheus"), free_port()
    scraped = {"targets": [f"127.0.0.1:{ready.port}"], "labels": {"namespace": "headway", "pod": POD}}
    job = {"job_name": "headway", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [scraped]}
    (home / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    command = [PROMETHEUS, f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
               f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/-/ready", process, home / "log")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()


def answered(prometheus: str, query: str, seconds: float = 30) -> list[Any]:
    """The answer to a query, as soon as there is one."""
    end = time.monotonic() + seconds
    while True:
        answer = requests.get(f"{prometheus}/api/v1/query", params={"query": query}, timeout=5).json()
        assert answer["status"] == "success", answer
        if answer["data"]["result"] or time.monotonic() > end:
            return list(answer["data"]["result"])
        time.sleep(0.2)


def test_the_adapters_query_finds_the_pods_requests(prometheus: str) -> None:
    """prometheus-adapter's query, filled in as it does, answers with one value for the pod."""
    (rule,) = yaml.safe_load(ADAPTER.read_text("utf-8"))["rules"]["custom"]
    assert answered(prometheus, rule["seriesQuery"])
    query = rule["metricsQuery"].replace("<<.Series>>", "model_predictions_total").replace("<<.GroupBy>>", "pod")
    found = answered(prometheus, query.replace("<<.LabelMatchers>>", f'namespace="headway",pod="{POD}"'))
    assert [each["metric"]["pod"] for each in found] == [POD]


@pytest.mark.skipif(KUBECTL is None, reason="kubectl is not here: overlays cannot be rendered")
def test_kedas_query_finds_them_too(prometheus: str) -> None:
    """KEDA's query answers with one value."""
    (metric,) = [m for m in bundle("keda").ours[0].component["autoScaling"]["metrics"] if m["type"] == "External"]
    assert len(answered(prometheus, metric["external"]["metric"]["query"])) == 1


@pytest.mark.parametrize("alert", ["HeadwayNotServing", "HeadwayVersionFails", "HeadwayRegistrySilent"])
def test_an_alert_compares_something(prometheus: str, alert: str) -> None:
    """What the alert compares has a value on a healthy server, and the alert is silent there."""
    groups = yaml.safe_load((folder("monitoring") / "prometheus-rule.yaml").read_text("utf-8"))["spec"]["groups"]
    (expression,) = [rule["expr"] for group in groups for rule in group["rules"] if rule["alert"] == alert]
    assert answered(prometheus, expression, seconds=0) == []
    compared = re.split(r" (?:==|>) ", expression)[0].replace('state="FAILED"', 'state="READY"')
    assert answered(prometheus, compared)
