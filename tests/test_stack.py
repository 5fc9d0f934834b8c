"""The stack of docker-compose.yml, as far as it can be had without an engine: its files, MLflow's command, and every query
of the dashboard answered by a real Prometheus that scrapes a real server under traffic."""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from scripts.load import Load
from serving.cli import parser
from serving.commands.serve import settings_from
from serving.settings import PREFIX
from tests.dockerfile import stages
from tests.servers import ROOT, Server, free_port, start_mlflow, wait_for
from tests.stores import RedisServer
from tests.test_folder import save

COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DASHBOARD = json.loads((ROOT / "monitoring" / "dashboards" / "headway.json").read_text())
TARGETS = [
    pytest.param(panel["title"], target["expr"], id=f"{panel['title']} {target['refId']}")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
GRAFANA = ROOT / "monitoring" / "grafana"


# -- what the files say -----------------------------------------------------------------------------------------------


def test_docker_compose_accepts_the_file() -> None:
    """With Compose's own parser, where there is one."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("there is no docker compose here")
    subprocess.run([docker, "compose", "config", "--quiet"], cwd=ROOT, check=True)


def test_every_mount_has_a_source() -> None:
    """A folder or file of the repository, mounted read-only, or a volume that is declared and used."""
    used = set()
    for service in SERVICES.values():
        for volume in service.get("volumes", []):
            source, mode = volume.partition(":")[0], volume.rpartition(":")[2]
            if source.startswith("."):
                assert ((ROOT / source).exists(), mode) == (True, "ro"), volume
            else:
                used.add(source)
    assert used == set(COMPOSE["volumes"])


def test_what_is_waited_for_says_when_it_is_healthy() -> None:
    """`service_healthy` without a health check never comes."""
    for service in SERVICES.values():
        waits = service.get("depends_on", {})
        said = {name: how["condition"] for name, how in waits.items()} if isinstance(waits, dict) else {}
        assert all("healthcheck" in SERVICES[name] for name, how in said.items() if how == "service_healthy")
        assert all(name in SERVICES for name in waits)


def test_nothing_is_published_beyond_this_machine_and_no_image_moves() -> None:
    """Ports are on loopback, images have a number, and no password stands in the file."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    assert all(re.search(r":v?\d", image) for image in images)
    assert not re.search(r"(PASSWORD|SECRET|TOKEN)\w*:", (ROOT / "docker-compose.yml").read_text())


def test_the_servers_own_settings_are_accepted() -> None:
    """The variables mean what they say, and the writable mounts are those that the image needs on a read-only root."""
    service = SERVICES["headway"]
    given = {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in service["environment"].items()}
    assert any(name.startswith(PREFIX) for name in given)
    flags = parser().parse_args(["serve"])
    assert [entry.uri for entry in settings_from(flags, given).models] == ["models:/predictive_maintenance@champion"]
    grace = float(service["stop_grace_period"].removesuffix("s"))
    server = settings_from(flags, given).server
    assert server.drain_delay_seconds + server.drain_seconds + 5 < grace
    final = stages()[-1]
    folder = f"{final.pairs('ENV')['XDG_CACHE_HOME']}/headway"
    assert service["read_only"] is True
    assert service["volumes"] == [
        f"cache:{folder}",
        f"feast:{service['environment']['HEADWAY_FEATURES__REPO_PATH']}:ro",
    ]
    assert service["tmpfs"] == [final.pairs("ENV")["HOME"]]
    assert folder in final.one("RUN")


def test_grafana_finds_what_it_is_provisioned_with() -> None:
    """The dashboard's data source is the provisioned one, which is the Prometheus of the stack; its folder is mounted."""
    (source,) = yaml.safe_load((GRAFANA / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert set(re.findall(r'"uid": "(\w+)"', json.dumps(DASHBOARD))) == {source["uid"], DASHBOARD["uid"]}
    (provider,) = yaml.safe_load((GRAFANA / "dashboards" / "headway.yaml").read_text())["providers"]
    assert f"./monitoring/dashboards:{provider['options']['path']}:ro" in SERVICES["grafana"]["volumes"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "monitoring" / "dashboards" / Path(home).name).exists()
    assert [panel["title"] for panel in DASHBOARD["panels"]] == ["Request rate", "Latency", "Error rate", "Replicas"]


# -- what can be executed ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.e2e
def test_mlflow_answers_by_its_name_in_the_stack(tmp_path: Path) -> None:
    """The command of the file, on a real MLflow: `mlflow:5000` is let in, another name is not, and its health check
    agrees."""
    port = str(free_port())
    said = SERVICES["mlflow"]["command"].replace("/mlflow/", f"{tmp_path}/").replace("5000", port)
    command = [sys.executable, "-m", *shlex.split(said), "--workers", "1"]
    log = tmp_path / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{url}/health", process, log)
        search = f"{url}/api/2.0/mlflow/registered-models/search"
        assert requests.get(search, headers={"Host": f"mlflow:{port}"}, timeout=10).status_code == 200
        assert requests.get(search, headers={"Host": f"elsewhere:{port}"}, timeout=10).status_code == 403
        check = [word.replace("5000", port) for word in SERVICES["mlflow"]["healthcheck"]["test"][1:]]
        assert subprocess.run([sys.executable, *check[1:]]).returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            subprocess.run(["kill", "-KILL", "--", f"-{process.pid}"], check=False)
        process.wait()


@pytest.mark.audit("24")
@pytest.mark.slow
@pytest.mark.e2e
def test_the_stack_comes_up_with_something_to_ask(tmp_path: Path, headway: Callable[..., Server]) -> None:
    """The seed's own command fills an empty MLflow and Redis, a second run changes nothing, and the server answers by key,
    with the environment of the file and a feature repository that it cannot write to."""
    redis = RedisServer(tmp_path)
    feast, home = tmp_path / "feast", tmp_path / "mlflow"
    home.mkdir()
    words = {"http://mlflow:5000": "", "redis:6379": f"127.0.0.1:{redis.port}", "/var/lib/feast": str(feast)}
    try:
        with start_mlflow(home) as registry:
            words["http://mlflow:5000"] = registry.uri
            seed = [*SERVICES["seed"]["entrypoint"][1:], *(words.get(w, w) for w in SERVICES["seed"]["command"])]
            for _ in range(2):
                subprocess.run([sys.executable, *seed], cwd=ROOT, check=True, timeout=240)
            said = {"HEADWAY_FEATURES__REPO_PATH": str(feast), "MLFLOW_TRACKING_URI": registry.uri}
            server = headway("--model-uri", "models:/predictive_maintenance@champion", **said)
            server.until_ready()
            answer = server.post("/v1/models/predictive_maintenance:predict", {"instances": [{"machine_id": 17}]})
            assert (answer.status_code, answer.json()["model_version"]) == (200, "1")
    finally:
        redis.close()


@pytest.fixture(scope="module")
def prometheus(serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with the stack's own configuration, but for the address of the server and the pace."""
    if shutil.which("prometheus") is None:
        pytest.skip("there is no prometheus here")
    home = tmp_path_factory.mktemp("prometheus")
    server = serve(
        "--model-uri", str(save(home / "sums", model_id="m-1")), "--model-name", "sums", MLFLOW_TRACKING_URI=""
    )
    server.until_ready()
    config = yaml.safe_load((ROOT / "monitoring" / "prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    (job,) = config["scrape_configs"]
    (found,) = job.pop("dns_sd_configs")
    assert (found["names"], found["port"]) == (["headway"], 8080)
    job["static_configs"] = [{"targets": [server.base.removeprefix("http://")]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    url, log = f"http://127.0.0.1:{free_port()}", home / "log"
    command = ["prometheus", f"--config.file={home}/prometheus.yml", f"--storage.tsdb.path={home}/data",
               f"--web.listen-address={url.removeprefix('http://')}"]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
    route = f"{server.base}/v1/models/sums:predict"
    try:
        wait_for(f"{url}/-/ready", process, log)
        with Load(route, {"instances": [[1.0, 2.0]]}, rate=50), Load(route, {"instances": [[1.0]]}, rate=5, threads=1):
            yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.e2e
@pytest.mark.parametrize(("panel", "query"), TARGETS)
def test_every_query_of_the_dashboard_is_answered(panel: str, query: str, prometheus: str) -> None:
    """With numbers, for the model that is under load."""
    assert values(prometheus, query)


@pytest.mark.e2e
def test_the_numbers_of_the_dashboard_are_those_of_the_load(prometheus: str) -> None:
    """One request in eleven is wrong, by the caller's fault; there is one replica, and it has the version READY."""
    caller, server, replicas, ready = (
        next(str(param.values[1]) for param in TARGETS if param.id == id)
        for id in ("Error rate B", "Error rate A", "Replicas A", "Replicas B")
    )
    assert values(prometheus, caller, above=0.03)[0] < 0.3
    assert [values(prometheus, query) for query in (server, replicas, ready)] == [[0], [1], [1]]


def values(prometheus: str, query: str, above: float = -1.0) -> list[float]:
    """The numbers that a panel's query gives; waited for, because a rate needs two scrapes."""
    asked = re.sub(r"\$(namespace|service|model)", ".*", query.replace("$__rate_interval", "10s"))
    assert "$" not in asked
    end = time.monotonic() + 60
    while time.monotonic() < end:
        answer = requests.get(f"{prometheus}/api/v1/query", params={"query": asked}, timeout=10).json()
        assert answer["status"] == "success", answer
        series = [float(one["value"][1]) for one in answer["data"]["result"]]
        found = [value for value in series if value > above]  # and so no NaN
        if found:
            return found
        time.sleep(0.2)
    raise AssertionError(f"no answer to {asked}")
