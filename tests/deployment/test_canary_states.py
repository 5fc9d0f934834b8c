"""States that others have made: the verbs find them, and end in a sentence that says what to type, or put them right."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from serving.rollout import revisions, status
from serving.rollout.kubectl import Kubectl
from tests.deployment.acting import NAME, Model, session
from tests.deployment.clusters import REMOVE, VERSION, patched, percent, replace, running
from tests.deployment.controller import Cluster, version_of

FIRST = f"{NAME}-predictor-00001"


def in_flight(share: int = 10, old: str = "1", new: str = "2") -> Cluster:
    cluster = running(old)
    cluster.apply(patched(cluster.service(), replace(VERSION, new), percent(share)))
    cluster.settle()
    return cluster


def spec(cluster: Cluster) -> tuple[str, int | None]:
    """Version and percent."""
    predictor = cluster.service()["spec"]["predictor"]
    return version_of(predictor), predictor.get("canaryTrafficPercent")


# -- a percent that splits nothing ----------------------------------------------------------------------------------


def promoted_by_100() -> Cluster:
    cluster = in_flight()
    cluster.apply(patched(cluster.service(), percent(100)))
    cluster.settle()
    return cluster


def test_a_percent_of_100_is_a_promotion() -> None:
    """KServe makes the same of it as of none: `rollback` goes by 99, the next `start` replaces it, `promote` has nothing to do."""
    cluster = promoted_by_100()
    assert cluster.shares() == {"2": 100}
    assert "No canary is in flight" in session(deepcopy(cluster)).refused("promote")
    assert "No canary is in flight" in session(deepcopy(cluster)).refused("widen", "50")
    one = session(deepcopy(cluster))
    one.run("start", "3", "10")
    assert one.model.cluster.shares() == {"3": 10, "2": 90}
    two = session(cluster)
    two.run("rollback")
    assert [o["value"] for o in two.model.patches[0].operations if o["op"] == "add"] == [99]
    assert (cluster.shares(), spec(cluster)) == ({"1": 100}, ("1", None))


def test_a_percent_beside_the_first_revision_is_no_canary() -> None:
    """As after a first apply that carried one: what is refused names `start`, and `start` works."""
    cluster = running("1")
    cluster.apply(patched(cluster.service(), percent(10)))
    cluster.settle()
    for words in (["promote"], ["widen", "50"], ["rollback"]):
        one = session(deepcopy(cluster))
        assert one.refused(*words).endswith("Now version 1 has 100 %. Next: `start VERSION PERCENT`.")
        assert one.now == 0
    one = session(cluster)
    one.run("start", "2", "10")
    assert cluster.shares() == {"2": 10, "1": 90}


# -- applied without a percent --------------------------------------------------------------------------------------


def test_a_version_that_was_applied_to_everybody_and_never_got_ready_is_rolled_back() -> None:
    """The revision before has everything still; at no time would the broken one have got it."""
    cluster = running("0", "1")
    cluster.broken = ["99"]
    cluster.apply(patched(cluster.service(), replace(VERSION, "99")))
    cluster.settle()
    one = session(cluster)
    assert "Version 1 is rolled out" in one.run("rollback")
    assert (cluster.shares(), spec(cluster)) == ({"1": 100}, ("1", None))
    assert all(shares == {"1": 100} for shares in one.model.shares)


def test_where_nothing_was_ever_rolled_out_there_is_nothing_to_go_back_to() -> None:
    """It is said at once; and `start`, which waits, says why its pod is not ready."""
    cluster = Cluster(broken=["1"])
    cluster.apply(running("1").service())
    cluster.service()["status"] = {"components": {}}
    cluster.settle()
    one = session(cluster)
    assert "Nothing was ever rolled out" in one.refused("rollback")
    assert one.now == 0
    assert "(pod p-1: CrashLoopBackOff)" in one.refused("start", "2", "10")


# -- the wrong version to go back to --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["2", "5"])
@pytest.mark.parametrize("promote", [True, False])
def test_a_roll_back_to_the_rejected_version_or_to_another_is_refused(version: str, promote: bool) -> None:
    """`rollback 2` of a canary of version 2 would have rolled it out to everybody."""
    cluster = in_flight()
    if promote:
        cluster.apply(patched(cluster.service(), REMOVE))
        cluster.settle()
    one = session(cluster)
    why = one.refused("rollback", version)
    assert f"A roll-back goes to revision {FIRST}, which has version 1, and not to version {version}" in why
    assert why.endswith("Next: `rollback`.")
    assert one.model.patches == []
    one.run("rollback", "1")
    assert cluster.shares() == {"1": 100}


def test_a_roll_back_that_was_cut_off_is_named_as_one() -> None:
    """The next `start` says so, and what to type."""
    cluster = in_flight(0)
    assert (
        session(cluster)
        .refused("start", "3", "10")
        .startswith("A canary was rolled back, and the spec not yet restored.")
    )


# -- what there is to read ------------------------------------------------------------------------------------------


def test_revisions_of_a_transformer_are_not_the_predictors() -> None:
    """They have the same label of the service, and names that sort behind."""
    cluster = in_flight()
    theirs: list[Any] = []
    for found in cluster.revisions(NAME).values():
        other = deepcopy(found)
        other["metadata"]["name"] = other["metadata"]["name"].replace("-predictor-", "-transformer-")
        other["metadata"]["labels"]["component"] = "transformer"
        other["spec"]["containers"][0]["env"] = []
        theirs.append(other)
    seen = revisions.observe(cluster.service(), [*theirs, *cluster.revisions(NAME).values()])
    assert (seen.stale, seen.newest and seen.newest.version) == (None, "2")


@pytest.mark.parametrize(
    "predictor",
    [
        {"model": {"modelFormat": {"name": "mlflow"}}},
        {"containers": [{"env": []}, {"env": [{"name": "MODEL_VERSION", "value": "1"}]}]},
        {
            "containers": [
                {"env": [{"name": "MODEL_VERSION", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "v"}}}]}
            ]
        },
    ],
    ids=["a model", "another container", "from a ConfigMap"],
)
def test_a_version_that_is_not_the_specs_own_is_not_moved(predictor: Any) -> None:
    """There is no value to replace; every verb says so before it changes anything."""
    cluster = running("1")
    service = cluster.service()
    service["spec"]["predictor"] = predictor
    seen = revisions.observe(service, [*cluster.revisions(NAME).values()])
    assert seen.env is None
    assert (seen.version, seen.mode) == ("", "Knative")


def test_a_revision_that_knative_has_given_up_says_why() -> None:
    """An image that cannot be resolved makes no pod that could say it."""
    cluster = running("1")
    cluster.broken = ["2"]
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(10)))
    cluster.settle()
    said = {"type": "Ready", "status": "False", "message": "failed to resolve image to digest"}
    cluster.revisions(NAME)[f"{NAME}-predictor-00002"]["status"]["conditions"] = [said]
    assert "it has 0: failed to resolve image to digest" in session(cluster).refused("promote")
    model = Model(cluster)
    assert "       failed to resolve image to digest" in list(status.lines(model.service(NAME), model))


# -- modes ----------------------------------------------------------------------------------------------------------


class Answers(Kubectl):
    """A kubectl of a cluster without Knative, which knows no revisions."""

    def run(self, *words: str, given: str | None = None) -> str:
        assert words[1] == f"inferenceservice/{NAME}", "error: the server doesn't have a resource type revisions"
        return json.dumps(running("1", mode="Standard").service())


def test_without_knative_nobody_asks_for_revisions() -> None:
    """A cluster with KServe in Standard mode alone: the refusal names --route, and so does the status."""
    kubectl = Answers("headway")
    seen = kubectl.service(NAME)
    assert "is in mode Standard" in "".join(status.lines(seen, kubectl))


def test_a_stopped_service_is_named() -> None:
    """It has no pods, and will have none."""
    cluster = running("1")
    cluster.service()["status"]["conditions"] = [{"type": "Stopped", "status": "True"}]
    for words in (["start", "2", "10"], ["rollback"]):
        assert "serving.kserve.io/stop" in session(cluster).refused(*words)


def test_a_service_that_kserve_has_not_looked_at_is_in_no_mode() -> None:
    """There is neither an annotation nor a status."""
    cluster = running("1")
    service = deepcopy(cluster.service())
    service["metadata"]["annotations"], service["status"] = {}, {}
    seen = revisions.observe(service, [])
    assert ["KServe has not looked at" in line for line in status.lines(seen, Model(cluster))] == [True]
