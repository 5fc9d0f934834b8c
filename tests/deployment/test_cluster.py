"""The scripts and overlays on a real cluster with KServe. Nobody has run these yet: there was no cluster.

KUBECONFIG names the cluster and HEADWAY_CLUSTER its mode, `knative` or `standard`. It needs the image, a registry where
kserve/base/config-map.yaml says, and versions 1 and 2 of `predictive_maintenance` in it.
"""

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest

from tests.deployment.clusters import ROOT

MODE = os.environ.get("HEADWAY_CLUSTER", "")
SERVICES = ["inferenceservice/predictive-maintenance", "inferenceservice/predictive-maintenance-canary"]
ROUTE = ["--route", "predictive-maintenance-split"]
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(
        not (MODE and os.environ.get("KUBECONFIG")),
        reason="needs a cluster with KServe: KUBECONFIG, and HEADWAY_CLUSTER=knative or standard",
    ),
]
knative = pytest.mark.skipif(MODE != "knative", reason="needs HEADWAY_CLUSTER=knative")
standard = pytest.mark.skipif(MODE != "standard", reason="needs HEADWAY_CLUSTER=standard")


def run(*command: str) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def deploy() -> Iterator[Callable[[str], str]]:
    """Applies an overlay to a namespace without our services, which are removed again; the rest of it stays."""
    remove = ("kubectl", "delete", *SERVICES, "-n", "headway", "--ignore-not-found", "--wait")
    run(*remove)
    yield lambda overlay: run("scripts/deploy.sh", overlay)
    run(*remove)


def until_shares(expected: dict[str, int], *flags: str, seconds: float = 300) -> None:
    """Waits until the cluster's own traffic, by version, is this."""
    end, shares = time.monotonic() + seconds, {}
    while shares != expected:
        assert time.monotonic() < end, f"{shares}, not {expected}"
        shares = {}
        for share, version in re.findall(r"(\d+) %  version (\d+)", run("scripts/canary.sh", *flags, "status")):
            if int(share):
                shares[version] = shares.get(version, 0) + int(share)
        time.sleep(2)


@knative
def test_a_canary_on_knative(deploy: Callable[[str], str]) -> None:
    """Start, widen, promote, back by one, and a canary that is rolled back: the model of the controller is right."""
    assert "FAIL" not in deploy("knative")
    until_shares({"1": 100})
    for words, expected in [
        ("start 2 10", {"2": 10, "1": 90}),
        ("widen 50", {"2": 50, "1": 50}),
        ("promote", {"2": 100}),
        ("rollback", {"1": 100}),
        ("start 2 10", {"2": 10, "1": 90}),
        ("rollback", {"1": 100}),
    ]:
        run("scripts/canary.sh", *words.split())
        until_shares(expected)


@knative
def test_removing_the_percent_promotes(deploy: Callable[[str], str]) -> None:
    """The most widespread of the commands that do the opposite."""
    deploy("knative")
    until_shares({"1": 100})
    run("scripts/canary.sh", "start", "2", "10")
    until_shares({"2": 10, "1": 90})
    path = "/spec/predictor/canaryTrafficPercent"
    patch = f'[{{"op": "remove", "path": "{path}"}}]'
    run("kubectl", "patch", SERVICES[0], "-n", "headway", "--type=json", "-p", patch)
    until_shares({"2": 100})


@knative
@pytest.mark.parametrize("overlay", ["knative-grpc"])
def test_other_overlays_of_knative_apply(overlay: str) -> None:
    """As far as the API server's own checks: a dry run on the server."""
    run("kubectl", "apply", "-k", f"kserve/overlays/{overlay}", "--dry-run=server")


@standard
@pytest.mark.parametrize("overlay", ["base", "standard-hpa"])
def test_an_overlay_of_standard_mode_serves(deploy: Callable[[str], str], overlay: str) -> None:
    """Applied, ready, smoke test passed."""
    assert "pass  V1 predict" in deploy(overlay)


@standard
def test_a_canary_by_a_route(deploy: Callable[[str], str]) -> None:
    """The overlay begins at 90 and 10; widen, promote, back, and the next one."""
    deploy("standard-canary")
    until_shares({"1": 90, "2": 10}, *ROUTE)
    for words, expected in [
        ("widen 50", {"2": 50, "1": 50}),
        ("promote", {"2": 100}),
        ("rollback 1", {"1": 100}),
        ("start 2 5", {"2": 5, "1": 95}),
        ("rollback", {"1": 100}),
    ]:
        run("scripts/canary.sh", *ROUTE, *words.split())
        until_shares(expected, *ROUTE)


@standard
def test_the_percent_is_refused_in_standard_mode(deploy: Callable[[str], str]) -> None:
    """The script says so before anything is patched."""
    deploy("base")
    done = subprocess.run(
        ["scripts/canary.sh", "start", "2", "10"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, "--route" in done.stderr) == (1, True)
