"""The model of KServe's controller gives the traffic that KServe gives, also where that surprises."""

import pytest

from tests.deployment.clusters import REMOVE, VERSION, manifest, patched, percent, replace, running
from tests.deployment.controller import Cluster, Json, propagate, targets


def patch(cluster: Cluster, *operations: Json, settle: bool = True) -> dict[str, int]:
    """Patches in one request, and the traffic when all has settled."""
    cluster.apply(patched(cluster.service(), *operations))
    if settle:
        cluster.settle()
    return cluster.shares()


def test_the_traffic_list_splits_only_after_something_was_rolled_out() -> None:
    """Percent and a rolled-out revision: two targets; 100 %, no percent, or nothing rolled out: one."""
    assert [t["percent"] for t in targets(10, "r1")] == [10, 90]
    assert [t["percent"] for t in targets(0, "r1")] == [0, 100]
    assert targets(100, "r1") == [{"latestRevision": True, "percent": 100, "tag": "latest"}]
    assert targets(None, "r1") == targets(10, "") == [{"latestRevision": True, "percent": 100}]


def test_a_rolled_out_revision_steps_back_only_when_nothing_newer_is_on_its_way() -> None:
    """While a newer revision is being made, the shares of the old one add up to 100 as well, and mean nothing."""
    known = {"latestRolledoutRevision": "r2", "previousRolledoutRevision": "r1"}
    split = [
        {"latestRevision": True, "percent": 10, "revisionName": "r2"},
        {"percent": 90, "revisionName": "r2"},
    ]
    assert propagate(known, "r3", "r2", split)["latestRolledoutRevision"] == "r2"
    assert propagate(known, "r2", "r2", split)["latestRolledoutRevision"] == "r1"


def test_the_first_revision_gets_everything() -> None:
    """The percent is ignored on the first create."""
    cluster = Cluster()
    cluster.apply(patched(manifest(), percent(10)))
    cluster.settle()
    assert cluster.shares() == {"1": 100}


def test_a_canary_and_its_promotion() -> None:
    """Version and percent in one patch split; a larger percent widens; without the percent all goes to the new one."""
    cluster = running("1")
    assert patch(cluster, replace(VERSION, "2"), percent(10)) == {"2": 10, "1": 90}
    assert patch(cluster, percent(50)) == {"2": 50, "1": 50}
    assert patch(cluster, REMOVE) == {"2": 100}
    status = cluster.service()["status"]["components"]["predictor"]
    assert status["previousRolledoutRevision"] == "predictive-maintenance-predictor-00001"


def test_the_version_first_and_the_percent_later_is_no_canary() -> None:
    """The new version gets everything at once; the percent then steps back to the version before."""
    cluster = running("1")
    assert patch(cluster, replace(VERSION, "2")) == {"2": 100}
    assert patch(cluster, percent(10)) == {"2": 10, "1": 90}


def test_a_percent_on_a_rolled_out_revision_is_a_roll_back() -> None:
    """Without a changed template nothing new is cut: the rest goes to the revision before."""
    cluster = running("1", "2")
    assert patch(cluster, percent(10)) == {"2": 10, "1": 90}


def test_zero_rolls_back_and_the_version_can_then_be_restored() -> None:
    """Zero, the old version, no percent: at no time does the rejected version get anything again."""
    cluster = running("1")
    patch(cluster, replace(VERSION, "2"), percent(10))
    assert patch(cluster, percent(0)) == {"1": 100}
    assert patch(cluster, replace(VERSION, "1")) == {"1": 100}
    assert patch(cluster, REMOVE) == {"1": 100}


def test_zero_rolls_back_a_promotion_by_one() -> None:
    """Exactly one: the revision before the previous one is not remembered."""
    cluster = running("1", "2", "3")
    assert patch(cluster, percent(0)) == {"2": 100}


def test_to_restore_before_the_step_back_keeps_the_rejected_version() -> None:
    """Zero and the old version in quick succession: no step back happens, and version 2 keeps everything."""
    cluster = running("1", "2")
    patch(cluster, percent(0), settle=False)
    assert patch(cluster, replace(VERSION, "1")) == {"2": 100}


def test_restoring_and_removing_in_one_patch_gives_the_rejected_version_everything_for_a_while() -> None:
    """Until the restored revision is ready, the newest ready one is the rejected one."""
    cluster = running("1")
    patch(cluster, replace(VERSION, "2"), percent(10))
    cluster.apply(patched(cluster.service(), replace(VERSION, "1"), REMOVE))
    seen = []
    while cluster.step():
        seen.append(cluster.shares())
    assert {"2": 100} in seen
    assert cluster.shares() == {"1": 100}


def test_a_second_canary_drops_the_first() -> None:
    """Only the newest and the rolled-out revision are in the list."""
    cluster = running("1")
    patch(cluster, replace(VERSION, "2"), percent(10))
    assert patch(cluster, replace(VERSION, "3")) == {"3": 10, "1": 90}


def test_a_canary_that_never_gets_ready_gets_nothing() -> None:
    """Its percent, too, goes to the newest revision that is ready."""
    cluster = running("1")
    cluster.broken = ["2"]
    assert patch(cluster, replace(VERSION, "2"), percent(10)) == {"1": 100}
    status = cluster.service()["status"]["components"]["predictor"]
    assert (status["latestCreatedRevision"][-1], status["latestReadyRevision"][-1]) == ("2", "1")


@pytest.mark.parametrize("field", ["minReplicas", "scaleTarget"])
def test_scaling_cuts_a_revision_and_traffic_does_not(field: str) -> None:
    """The scaling of the predictor lies in the template, the percent does not."""
    cluster = running("1")
    cluster.apply(patched(cluster.service(), percent(10)))
    cluster.settle()
    assert len(cluster.revisions("predictive-maintenance")) == 1
    cluster.apply(patched(cluster.service(), {"op": "add", "path": f"/spec/predictor/{field}", "value": 3}))
    cluster.settle()
    assert len(cluster.revisions("predictive-maintenance")) == 2


def test_the_percent_beside_the_predictor_is_pruned() -> None:
    """`/spec/canaryTrafficPercent` is no field: the version rolls out to everybody."""
    cluster = running("1")
    misplaced = {"op": "add", "path": "/spec/canaryTrafficPercent", "value": 10}
    assert patch(cluster, replace(VERSION, "2"), misplaced) == {"2": 100}
    assert "canaryTrafficPercent" not in cluster.service()["spec"]


@pytest.mark.parametrize("mode", ["Standard", "RawDeployment"])
def test_the_percent_is_ignored_in_standard_mode(mode: str) -> None:
    """The new version rolls out to everybody, and the percent stays in the spec as if it held."""
    cluster = running("1", mode=mode)
    assert patch(cluster, replace(VERSION, "2"), percent(10)) == {"2": 100}
    assert cluster.service()["spec"]["predictor"]["canaryTrafficPercent"] == 10
