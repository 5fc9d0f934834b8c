"""scripts/canary.sh, run against a model of KServe's controller: what each command does to the traffic."""

from pathlib import Path

import pytest

from tests.deployment.clusters import ROOT, Shell, manifest, patched, percent, running, with_route
from tests.deployment.controller import Cluster

ROUTE = ("--route", "predictive-maintenance-split")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def canary(shell: Shell) -> Shell:
    """Version 2 gets 10 %, version 1 the rest."""
    cluster = running("1")
    cluster.apply(patched(manifest(version="2"), percent(10)))
    cluster.settle()
    shell.begin(cluster)
    return shell


def test_start_gives_the_new_version_its_share(shell: Shell) -> None:
    """Version and percent are one patch, so that at no time the new version has more."""
    shell.begin(running("1"))
    said = shell.canary("start", "2", "10")
    assert shell.shares() == {"2": 10, "1": 90}
    assert [call["words"][0] for call in shell.calls()].count("patch") == 1
    assert said.startswith("+ kubectl patch inferenceservice/predictive-maintenance -n headway --type=json -p '[")


def test_what_is_shown_is_what_runs(shell: Shell) -> None:
    """The command of a dry run, pasted, makes the canary; the dry run itself changes nothing."""
    shell.begin(running("1"))
    shown = shell.canary("--dry-run", "start", "2", "10")
    assert shell.shares() == {"1": 100}
    assert shell.run("bash", "-c", shown.removeprefix("+ ")).returncode == 0
    assert shell.shares() == {"2": 10, "1": 90}


def test_widen_changes_the_share_alone(canary: Shell) -> None:
    """No revision is cut by it."""
    canary.canary("widen", "50")
    assert canary.shares() == {"2": 50, "1": 50}
    assert len(canary.cluster().revisions("predictive-maintenance")) == 2


def test_promote_gives_the_canary_everything(canary: Shell) -> None:
    """By removing the percent; the next canary can start then."""
    canary.canary("promote")
    assert canary.shares() == {"2": 100}
    canary.begin(canary.cluster())
    canary.canary("start", "3", "5")
    assert canary.shares() == {"3": 5, "2": 95}


def test_rollback_gives_everything_back_and_leaves_no_trace(canary: Shell) -> None:
    """The spec names the old version and no percent; the rejected version gets nothing from the first patch on."""
    canary.canary("rollback")
    assert canary.shares() == {"1": 100}
    predictor = canary.cluster().service()["spec"]["predictor"]
    assert "canaryTrafficPercent" not in predictor
    assert predictor["containers"][0]["env"][1] == {"name": "MODEL_VERSION", "value": "1"}
    assert all("2" not in shares for shares in canary.since_the_first_patch())


def test_rollback_after_a_promotion_restores_the_version_before(shell: Shell) -> None:
    """The controller steps back first: only then is the spec restored."""
    shell.begin(running("1", "2"))
    shell.canary("rollback")
    assert shell.shares() == {"1": 100}
    settled = shell.since_the_first_patch()
    assert all("2" not in shares for shares in settled[settled.index({"1": 100}) :])
    assert "canaryTrafficPercent" not in shell.cluster().service()["spec"]["predictor"]


def test_an_interrupted_rollback_can_be_run_again(shell: Shell) -> None:
    """After the 0 alone, whether or not the controller has stepped back already."""
    for settled in (True, False):
        cluster = running("1", "2")
        cluster.apply(patched(cluster.service(), percent(0)))
        if settled:
            cluster.settle()
        shell.begin(cluster)
        shell.canary("rollback")
        assert shell.shares() == {"1": 100}


def test_a_rollback_whose_revision_does_not_get_ready_keeps_the_percent_at_zero(shell: Shell) -> None:
    """The good revision has everything meanwhile; once the restored one is ready, the same command finishes."""
    cluster = running("1", "2")
    cluster.broken = ["predictive-maintenance-predictor-00003"]
    shell.begin(cluster)
    done = shell.run("scripts/canary.sh", "--timeout", "1", "rollback")
    assert (done.returncode, "run rollback again" in done.stderr) == (1, True)
    assert shell.shares() == {"1": 100}
    halfway = shell.cluster()
    assert halfway.service()["spec"]["predictor"]["canaryTrafficPercent"] == 0
    halfway.broken = []
    shell.begin(halfway)
    shell.canary("rollback")
    assert shell.shares() == {"1": 100}
    assert "canaryTrafficPercent" not in shell.cluster().service()["spec"]["predictor"]


def test_a_canary_of_more_than_the_version_is_not_restored_by_the_version_alone(shell: Shell) -> None:
    """Removing the percent then would promote the rest of it: the script stops before, with the percent at 0."""
    image = {"op": "replace", "path": "/spec/predictor/containers/0/image", "value": "headway:next"}
    version = {"op": "replace", "path": "/spec/predictor/containers/0/env/1/value", "value": "2"}
    cluster = running("1")
    cluster.apply(patched(cluster.service(), image, version, percent(10)))
    cluster.settle()
    shell.begin(cluster)
    done = shell.run("scripts/canary.sh", "rollback")
    assert done.returncode == 1
    assert "more than the version" in done.stderr
    assert shell.shares() == {"1": 100}
    assert shell.cluster().service()["spec"]["predictor"]["canaryTrafficPercent"] == 0


def test_status_says_who_gets_what(canary: Shell) -> None:
    """Share, version and revision of each target."""
    said = canary.canary("status").splitlines()
    assert " 10 %  version 2  predictive-maintenance-predictor-00002" in said
    assert " 90 %  version 1  predictive-maintenance-predictor-00001" in said
    assert "canaryTrafficPercent  10" in said


def test_start_is_refused_where_the_percent_would_mean_something_else(shell: Shell) -> None:
    """Before anything is rolled out it is ignored; without another version it rolls back."""
    fresh = Cluster(broken=["1"])
    fresh.apply(manifest())
    shell.begin(fresh)
    assert "Nothing of predictive-maintenance was ever rolled out" in shell.refused("start", "2", "10")
    shell.begin(running("1"))
    assert "takes the rolled-out one back" in shell.refused("start", "1", "10")


def test_a_second_canary_is_refused(canary: Shell) -> None:
    """It would drop the first."""
    assert "A canary is in flight" in canary.refused("start", "3", "10")


def test_widen_and_promote_are_refused_without_a_canary(shell: Shell) -> None:
    """A percent on a rolled-out revision would be a roll-back, and promoting after a 0 the rejected version."""
    shell.begin(running("1", "2"))
    assert "takes the rolled-out revision back" in shell.refused("widen", "50")
    assert "No canary is in flight" in shell.refused("promote")
    cluster = running("1", "2")
    cluster.apply(patched(cluster.service(), percent(0)))
    cluster.settle()
    shell.begin(cluster)
    assert "was rolled back" in shell.refused("promote")
    assert "was rolled back" in shell.refused("widen", "50")


def test_a_canary_that_is_not_ready_is_not_promoted(shell: Shell) -> None:
    """It would get everything the moment it is."""
    cluster = running("1")
    cluster.broken = ["2"]
    cluster.apply(patched(manifest(version="2"), percent(10)))
    cluster.settle()
    shell.begin(cluster)
    assert "predictive-maintenance-predictor-00002 is not ready" in shell.refused("promote")


def test_there_must_be_something_to_go_back_to(shell: Shell) -> None:
    """The first revision has none before it; nor has one that was restored from a step back."""
    shell.begin(running("1"))
    assert "no earlier revision" in shell.refused("rollback")


@pytest.mark.parametrize("words", [("start", "2", "10"), ("widen", "5"), ("promote",), ("rollback",), ("status",)])
def test_standard_mode_is_refused_with_the_way_that_works(shell: Shell, words: tuple[str, ...]) -> None:
    """KServe ignores the percent there; the message names --route."""
    shell.begin(running("1", mode="Standard"))
    said = shell.refused(*words)
    assert "mode Standard" in said
    assert "--route" in said


@pytest.mark.parametrize("given", ["0", "100", "07", "ten", "1.5", ""])
def test_a_percent_outside_1_to_99_is_refused(shell: Shell, given: str) -> None:
    """0 is rollback, 100 is promote; the exit code is that of a wrong command line."""
    shell.begin(running("1"))
    assert "1 to 99" in shell.refused("start", "2", given)
    assert shell.run("scripts/canary.sh", "widen", given).returncode == 2


@pytest.mark.parametrize("given", ["champion", "@champion", "latest", ""])
def test_only_numbers_are_versions(shell: Shell, given: str) -> None:
    """An alias that moves cuts no revision."""
    shell.begin(running("1"))
    assert "cuts no revision" in shell.refused("start", given, "10")


@pytest.mark.parametrize("words", [(), ("begin",), ("start", "2"), ("promote", "2"), ("--no", "status"), ("--route",)])
def test_a_wrong_command_line_shows_the_usage(shell: Shell, words: tuple[str, ...]) -> None:
    """And exits 2."""
    shell.begin(running("1"))
    done = shell.run("scripts/canary.sh", *words)
    assert (done.returncode, "usage: scripts/canary.sh" in done.stderr) == (2, True)


def test_help_exits_0(shell: Shell) -> None:
    """Usage on standard output."""
    done = shell.run("scripts/canary.sh", "--help")
    assert (done.returncode, done.stdout.startswith("usage: scripts/canary.sh")) == (0, True)


def test_who_is_missing_is_named(shell: Shell, tmp_path: Path) -> None:
    """No such InferenceService; no such route; no MODEL_VERSION; no kubectl."""
    shell.begin(running("1"))
    assert 'inferenceservices "other" not found' in shell.refused("--service", "other", "status")
    assert 'httproutes "other" not found' in shell.refused("--route", "other", "status")
    nameless = running("1")
    del nameless.service()["spec"]["predictor"]["containers"][0]["env"][1]
    nameless.settle()
    shell.begin(nameless)
    assert "has no MODEL_VERSION" in shell.refused("start", "2", "10")
    bare = tmp_path / "bin"
    bare.mkdir()
    for tool in ("bash", "dirname", "env"):
        (bare / tool).symlink_to(f"/usr/bin/{tool}")
    done = shell.run("scripts/canary.sh", "status", PATH=str(bare))
    assert (done.returncode, done.stderr) == (1, "There is no kubectl on the PATH.\n")


def test_the_patch_fails_as_a_whole_if_somebody_else_was_faster(shell: Shell) -> None:
    """The tests in it compare the name of the variable and the version that was read."""
    shell.begin(running("1"))
    shown = shell.canary("--dry-run", "start", "2", "10").removeprefix("+ ")
    shell.begin(running("1", "5"))
    assert shell.run("bash", "-c", shown).returncode == 1
    assert shell.shares() == {"5": 100}


def test_a_canary_by_the_weights_of_a_route(shell: Shell) -> None:
    """Start, widen, promote: the weight moves only after the pods of the version are there."""
    shell.begin(with_route(stable="1", canary="1", weight=0))
    shell.canary(*ROUTE, "start", "2", "10")
    assert [call["words"][0] for call in shell.calls()][-3:] == ["wait", "rollout", "patch"]
    assert all(call["shares"] == {"1": 100} for call in shell.calls()[:-1])
    assert shell.cluster().route_shares(ROUTE[1]) == {"2": 10, "1": 90}
    shell.canary(*ROUTE, "widen", "50")
    assert shell.cluster().route_shares(ROUTE[1]) == {"2": 50, "1": 50}
    assert " 50 %  version 2  predictive-maintenance-canary-predictor" in shell.canary(*ROUTE, "status").splitlines()
    shell.canary(*ROUTE, "promote")
    assert shell.cluster().route_shares(ROUTE[1]) == {"2": 100}
    weights = [
        b["weight"] for b in shell.cluster().objects[f"httproute/{ROUTE[1]}"]["spec"]["rules"][-1]["backendRefs"]
    ]
    assert weights == [100, 0]


def test_a_rollback_by_the_weights_of_a_route(shell: Shell) -> None:
    """Before the promotion it is one patch; after it, the version to go back to must be said."""
    shell.begin(with_route(weight=10))
    shell.canary(*ROUTE, "rollback")
    assert shell.cluster().route_shares(ROUTE[1]) == {"1": 100}
    shell.begin(with_route(stable="2", canary="2", weight=0))
    assert "No canary is in flight" in shell.refused(*ROUTE, "rollback")
    shell.canary(*ROUTE, "rollback", "1")
    assert shell.cluster().route_shares(ROUTE[1]) == {"1": 100}


def test_a_route_refuses_what_makes_no_sense(shell: Shell) -> None:
    """A second canary; widening or promoting none; a route without two weighted backends."""
    shell.begin(with_route(weight=10))
    assert "A canary is in flight" in shell.refused(*ROUTE, "start", "3", "10")
    cluster = with_route(weight=0)
    shell.begin(cluster)
    assert "No canary is in flight" in shell.refused(*ROUTE, "widen", "50")
    assert "No canary is in flight" in shell.refused(*ROUTE, "promote")
    del cluster.objects[f"httproute/{ROUTE[1]}"]["spec"]["rules"][-1]
    shell.begin(cluster)
    assert "no rule with two weighted backends" in shell.refused(*ROUTE, "status")


def test_the_scripts_are_executable() -> None:
    """Every script that the documentation calls by its path."""
    for name in ("canary.sh", "deploy.sh", "smoke.sh"):
        assert (ROOT / "scripts" / name).stat().st_mode & 0o111
