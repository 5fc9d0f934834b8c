"""`headway canary` and scripts/canary.sh, by a `kubectl` on the PATH: their words, what they print, and how they end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from serving.cli import main
from serving.rollout import status
from serving.rollout.kubectl import reason_of
from tests.deployment.acting import NAME, ROUTE, Model
from tests.deployment.clusters import ROOT, VERSION, Shell, patched, percent, replace, running, with_route
from tests.deployment.controller import Cluster, Json


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def in_flight() -> Cluster:
    cluster = running("1")
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(10)))
    cluster.settle()
    return cluster


def test_a_canary_by_the_script(shell: Shell) -> None:
    """Commands on standard output as they can be pasted, what is waited for beside it, and the result at the end."""
    shell.begin(running("1"))
    done = shell.run("scripts/canary.sh", "--timeout", "20", "start", "2", "10")
    assert done.returncode == 0, done.stderr
    [line] = done.stdout.splitlines()
    assert line.startswith("+ kubectl patch inferenceservice/predictive-maintenance --type=json -p '[{")
    assert line.endswith("-n headway")
    assert done.stderr.splitlines()[-1] == "Version 2 has its 10 %. Now version 2 has 10 %, version 1 has 90 %."
    assert shell.shares() == {"2": 10, "1": 90}


def test_the_verb_is_the_same(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`headway canary widen 50`, with the user's own kubectl."""
    shell.begin(in_flight())
    for name, value in {"PATH": f"{shell.folder}:{os.environ['PATH']}", "FAKE_CLUSTER": str(shell.file)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert main(["canary", "widen", "50"]) == 0
    assert shell.shares() == {"2": 50, "1": 50}
    assert main(["canary", "promote", "--timeout", "20"]) == 0
    assert shell.shares() == {"2": 100}
    assert 'Write MODEL_VERSION "2" into the manifest' in capsys.readouterr().err


def test_what_is_shown_is_what_runs(shell: Shell) -> None:
    """The command of a dry run, pasted, makes the canary; the dry run itself changes nothing, and says that it shows one."""
    shell.begin(running("1"))
    done = shell.run("scripts/canary.sh", "--dry-run", "start", "2", "10")
    assert done.returncode == 0
    assert "that would be the first change" in done.stderr
    assert shell.shares() == {"1": 100}
    assert shell.run("bash", "-c", done.stdout.removeprefix("+ ")).returncode == 0
    assert shell.shares() == {"2": 10, "1": 90}


def test_the_patch_fails_as_a_whole_if_somebody_else_was_faster(shell: Shell) -> None:
    """The tests in it compare the name of the variable and the version that was read."""
    shell.begin(running("1"))
    shown = shell.run("scripts/canary.sh", "--dry-run", "start", "2", "10").stdout.removeprefix("+ ")
    shell.begin(running("1", "5"))
    assert shell.run("bash", "-c", shown).returncode == 1
    assert shell.shares() == {"5": 100}


def test_a_canary_by_a_route(shell: Shell) -> None:
    """The same words; the weight moves when the pods are there."""
    shell.begin(with_route(stable="1", canary="1", weight=0))
    assert "2" in shell.canary("--route", ROUTE, "--timeout", "20", "start", "2", "10")
    assert shell.cluster().route_shares(ROUTE) == {"2": 10, "1": 90}


def test_who_is_missing_is_named(shell: Shell, tmp_path: Path) -> None:
    """No such InferenceService; no such route; no kubectl."""
    shell.begin(running("1"))
    assert 'inferenceservices "other" not found (in namespace headway; -n, --service' in shell.refused(
        "--service", "other", "status"
    )
    assert 'httproutes "other" not found' in shell.refused("--route", "other", "status")
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("bash", "dirname", "env"):
        (bare / tool).symlink_to(f"/usr/bin/{tool}")
    (bare / "python3").symlink_to(sys.executable)
    done = shell.run("scripts/canary.sh", "status", PATH=str(bare))
    assert (done.returncode, done.stderr) == (1, "There is no kubectl on the PATH.\n")


WRONG = [
    (["start", "2", "0"], "1 to 99"),
    (["start", "2", "100"], "1 to 99"),
    (["start", "2", "07"], "1 to 99"),
    (["widen", "1.5"], "1 to 99"),
    (["widen", "²"], "1 to 99"),
    (["start", "champion", "10"], "cuts no revision"),
    (["rollback", "@champion"], "cuts no revision"),
    (["start", "", "10"], "cuts no revision"),
    (["start", "02", "10"], "is a number of the registry, not '02'"),
    (["start", "0", "10"], "is a number of the registry, not '0'"),
    (["--timeout", "nan", "status"], "a number of seconds above 0"),
    ([], "start VERSION PERCENT, widen"),
    (["begin"], "start VERSION PERCENT, widen"),
    (["start", "2"], "start VERSION PERCENT, widen"),
    (["promote", "2"], "start VERSION PERCENT, widen"),
    (["--no", "status"], "unrecognized arguments"),
    (["--timeout", "soon", "status"], "a number of seconds above 0, not 'soon'"),
    (["--route"], "expected one argument"),
]


@pytest.mark.parametrize(("words", "why"), WRONG, ids=str)
def test_a_wrong_command_line_is_said_before_anything_is_looked_at(
    words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With exit code 2; there is not even a kubectl needed."""
    with pytest.raises(SystemExit) as ended:
        main(["canary", *words])
    assert ended.value.code == 2
    assert why in capsys.readouterr().err


def test_help_exits_0(shell: Shell) -> None:
    """Every word of it, on standard output."""
    done = shell.run("scripts/canary.sh", "--help")
    assert (done.returncode, done.stdout.startswith("usage: scripts/canary.sh")) == (0, True)
    assert all(word in done.stdout for word in ("start VERSION PERCENT", "widen", "promote", "rollback", "status"))


# -- status -----------------------------------------------------------------------------------------------------------


def shown(cluster: Cluster, route: str | None = None) -> list[str]:
    model = Model(cluster)
    seen = model.service(NAME) if route is None else model.route(route)
    return list(status.lines(seen, model))


def test_status_says_who_gets_what_and_who_is_there() -> None:
    """Share, version, role and pods of each revision that has any of them."""
    assert shown(in_flight()) == [
        "the spec: version 2, canaryTrafficPercent 10",
        f" 90 %  version 1  {NAME}-predictor-00001  rolled out, 2 of 2 pods",
        f" 10 %  version 2  {NAME}-predictor-00002  newest, 2 of 2 pods",
    ]


def test_status_says_why_a_revision_is_not_ready_and_what_is_stale() -> None:
    """By its pod; and that the controllers have not acted on the spec."""
    cluster = running("1")
    cluster.broken = ["2"]
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(10)))
    cluster.settle()
    assert [line.strip() for line in shown(cluster)][-2:] == [
        f"0 %  version 2  {NAME}-predictor-00002  newest, 0 of 2 pods",
        "pod p-1: CrashLoopBackOff",
    ]
    cluster.apply(patched(cluster.service(), percent(20)))
    assert shown(cluster)[-1] == "not settled yet: it is when the traffic is what the percent says"


def test_status_by_a_route_says_what_is_served_and_not_what_is_wished() -> None:
    """The spec of the canary has moved, its pods have not."""
    cluster = with_route(stable="1", canary="1", weight=10)
    cluster.broken = ["2"]
    canary = cluster.service(f"{NAME}-canary")
    cluster.apply(patched(canary, replace(VERSION, "2")))
    cluster.settle()
    assert [line.strip() for line in shown(cluster, ROUTE)] == [
        f"90 %  version 1  {NAME}-predictor  2 of 2 pods",
        f"10 %  version 1  {NAME}-canary-predictor  0 of 2 pods; the spec says version 2",
        "pod p-1: CrashLoopBackOff",
    ]


PODS: list[tuple[str, Json, str]] = [
    (
        "an image that is not there",
        {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]},
        "ImagePullBackOff: not found",
    ),
    (
        "killed for memory",
        {"containerStatuses": [{"state": {"waiting": {}}, "lastState": {"terminated": {"reason": "OOMKilled"}}}]},
        "OOMKilled",
    ),
    (
        "no node",
        {
            "conditions": [
                {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}
            ]
        },
        "Unschedulable: 0/1 nodes",
    ),
    (
        "still loading",
        {"phase": "Running", "containerStatuses": [{"state": {"running": {}}}]},
        "Running, not ready yet",
    ),
    ("ready", {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}, ""),
]


@pytest.mark.parametrize(("pod", "why"), [pytest.param(pod, why, id=id) for id, pod, why in PODS])
def test_why_a_pod_is_not_ready(pod: Json, why: str) -> None:
    """What its container waits for or ended with, or what keeps it from a node."""
    assert reason_of({"metadata": {"name": "p"}, "status": pod}) == why
