"""A pod's life on one machine: the base's command, environment, configuration and probes, from start to a clean end."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.deployment.clusters import ROOT
from tests.deployment.controller import Json
from tests.deployment.pod import Callers, Pod
from tests.servers import MlflowServer

pytestmark = pytest.mark.e2e
BASE = ROOT / "kserve" / "base"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
BODY = json.dumps({"instances": [ROW]}).encode()


def read(name: str) -> Json:
    document: Json = yaml.safe_load((BASE / name).read_text("utf-8"))
    return document


@pytest.fixture
def start(tmp_path: Path, shared: MlflowServer) -> Iterator[Callable[..., Pod]]:
    """Starts a pod of the base, with another version or another delay if one is given."""
    pods: list[Pod] = []

    def start(version: str = "1", delay: int = 5) -> Pod:
        predictor, config = read("inference-service.yaml")["spec"]["predictor"], read("config-map.yaml")
        predictor["containers"][0]["env"][1]["value"] = version
        text = config["data"]["headway.yaml"]
        config["data"]["headway.yaml"] = text.replace("drain_delay_seconds: 5", f"drain_delay_seconds: {delay}")
        pods.append(Pod(predictor, config, tmp_path, shared.uri))
        pods[-1].start()
        assert pods[-1].passes("startupProbe"), pods[-1].log.read_text()[-3000:]
        return pods[-1]

    yield start
    for pod in pods:
        pod.kill()


def loaded(pod: Pod) -> Callers:
    """Callers of a pod that is ready."""
    assert pod.passes("readinessProbe", tries=60), pod.log.read_text()[-3000:]
    callers = Callers(pod, "/v1/models/predictive_maintenance:predict", BODY)
    callers.start()
    return callers


def test_a_pod_ends_under_load_without_losing_a_request(start: Callable[..., Pod]) -> None:
    """Startup probe, readiness, load, preStop, SIGTERM: exit 0 within the grace, and every answer a 200."""
    pod = start()
    callers = loaded(pod)
    assert pod.probe("livenessProbe")
    assert pod.delete() == 0
    callers.join()
    assert callers.lost == []
    assert {status for status, _ in callers.answers} == {200}
    assert (200, True) in callers.answers  # in the delay after SIGTERM
    assert not callers.endpoint.is_set()


@pytest.mark.slow
def test_without_the_delay_callers_are_lost(start: Callable[..., Pod]) -> None:
    """What the ConfigMap's five seconds are for: whoever connects before the endpoint is gone finds the port closed."""
    pod = start(delay=0)
    callers = loaded(pod)
    assert pod.delete() == 0
    callers.join()
    assert callers.lost


@pytest.mark.slow
def test_a_pod_whose_version_is_not_there_lives_and_is_not_ready(start: Callable[..., Pod]) -> None:
    """It is started and alive, so that nobody restarts it; it is no endpoint; and it ends at once when told to."""
    pod = start(version="99")
    assert pod.probe("livenessProbe")
    assert not pod.passes("readinessProbe")
    assert pod.delete() == 0
