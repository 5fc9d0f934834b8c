"""The verbs of a canary, against a model of the controllers that a recorded cluster agrees with: what each does to the traffic."""

from __future__ import annotations

import random
from contextlib import suppress
from typing import Any

import pytest

from serving.rollout.canary import Failed
from tests.deployment.acting import NAME, ROUTE, Killed, Model, Session, all_shares, session
from tests.deployment.clusters import REMOVE, VERSION, manifest, patched, percent, replace, running, with_route
from tests.deployment.controller import Cluster, version_of


def in_flight(share: int = 10) -> Cluster:
    """Version 2 has a share, version 1 the rest."""
    cluster = running("1")
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(share)))
    cluster.settle()
    return cluster


def predictor(cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = cluster.service()["spec"]["predictor"]
    return spec


def steps(one: Session) -> list[list[Any]]:
    """What each patch changed, without its tests."""
    return [[o.get("value", o["op"]) for o in patch.operations if o["op"] != "test"] for patch in one.model.patches]


# -- each verb ------------------------------------------------------------------------------------------------------


def test_start_gives_the_new_version_its_share() -> None:
    """Version and percent are one patch, so that at no time the new version has more; it ends when the share is there."""
    one = session(running("1"))
    assert one.run("start", "2", "10") == "Version 2 has its 10 %. Now version 2 has 10 %, version 1 has 90 %."
    assert steps(one) == [["2", 10]]
    assert all(shares.get("2", 0) <= 10 for shares in one.model.shares)
    assert one.model.cluster.shares() == {"2": 10, "1": 90}


def test_widen_changes_the_share_alone() -> None:
    """No revision is cut by it."""
    one = session(in_flight())
    one.run("widen", "50")
    assert one.model.cluster.shares() == {"2": 50, "1": 50}
    assert len(one.model.cluster.revisions(NAME)) == 2


def test_promote_gives_the_canary_everything() -> None:
    """By removing the percent; it says what to write down, and the next canary can start then."""
    one = session(in_flight())
    assert 'Write MODEL_VERSION "2" into the manifest, and no canaryTrafficPercent' in one.run("promote")
    assert one.model.cluster.shares() == {"2": 100}
    one.run("start", "3", "5")
    assert one.model.cluster.shares() == {"3": 5, "2": 95}


def test_rollback_gives_everything_back_and_leaves_no_trace() -> None:
    """The spec names the old version and no percent; the rejected version gets nothing once the 0 has arrived."""
    one = session(in_flight())
    one.run("rollback")
    assert steps(one) == [[0], ["1"], ["remove"]]
    assert one.model.cluster.shares() == {"1": 100}
    assert "canaryTrafficPercent" not in predictor(one.model.cluster)
    assert version_of(predictor(one.model.cluster)) == "1"
    settled = one.model.shares[one.model.shares.index({"1": 100}) :]
    assert all("2" not in shares for shares in settled)


@pytest.mark.parametrize("scaled_down", [True, False])
def test_rollback_after_a_promotion_waits_for_pods_at_99(scaled_down: bool) -> None:
    """The revision before has lost its pods: it gets everything only when it has them again."""
    cluster = running("1", "2") if scaled_down else in_flight()
    if not scaled_down:
        cluster.apply(patched(cluster.service(), REMOVE))
        while cluster.shares() != {"2": 100}:
            cluster.step()
    one = session(cluster)
    pods: list[int] = []

    def note(model: Model) -> None:
        if all_shares(model.cluster) == {"1": 100} and len(model.cluster.revisions(NAME)) == 2:
            pods.append(model.cluster.revisions(NAME)[f"{NAME}-predictor-00001"]["status"]["actualReplicas"])

    one.model.each_look = note
    assert "Version 1 is rolled out" in one.run("rollback")
    assert steps(one) == [[99], [0], ["1"], ["remove"]]
    assert set(pods) == {2}
    assert one.model.cluster.shares() == {"1": 100}
    assert "There is no earlier" in one.refused("rollback") or "has version 1 too" in one.refused("rollback")


def test_a_revision_that_cannot_come_up_again_gets_no_more_than_1_percent() -> None:
    """The roll-back stays at 99, and says why and what to type."""
    cluster = running("1", "2")
    cluster.broken = [f"{NAME}-predictor-00001"]
    one = session(cluster)
    why = one.refused("rollback")
    assert "has 2 pods; it has 0" in why
    assert "pod p-1: CrashLoopBackOff" in why
    assert "Now version 2 has 99 %, version 1 has 1 %. Next: `rollback` again" in why
    assert predictor(one.model.cluster)["canaryTrafficPercent"] == 99
    cluster.broken = []
    one.run("rollback")
    assert one.model.cluster.shares() == {"1": 100}


def test_a_smaller_share_waits_for_the_pods_that_take_the_rest() -> None:
    """After a roll-back that was cut off at 99: the revision before is still on its way."""
    one = session(running("1", "2"))

    def die(model: Model) -> None:
        raise Killed

    one.model.after_patch = die
    with pytest.raises(Killed):
        one.run("rollback")
    one.model.after_patch = lambda model: None
    one.model.each_look = check
    one.run("widen", "50")
    assert one.model.cluster.shares() == {"2": 50, "1": 50}
    assert any("so that nobody waits for it" in line for line in one.said)


# -- what lies ------------------------------------------------------------------------------------------------------


def test_promote_right_after_start_waits_for_the_canary() -> None:
    """`latestReadyRevision` is that of before: the version that nobody has seen ready does not get everything."""
    cluster = running("1")
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(10)))
    one = session(cluster)
    one.run("promote")
    waited = next(i for i, line in enumerate(one.said) if line.startswith("+"))
    assert any("has 2 pods; it has 0" in line for line in one.said[:waited])
    assert one.model.cluster.shares() == {"2": 100}


def test_a_canary_without_a_pod_is_not_promoted() -> None:
    """Ready is history: its pods went after it had been ready."""
    cluster = in_flight()
    revision = cluster.revisions(NAME)[f"{NAME}-predictor-00002"]
    revision["status"]["actualReplicas"] = 0
    cluster.broken = ["2"]
    one = session(cluster)
    assert "has 2 pods; it has 0" in one.refused("promote")
    assert steps(one) == []


def test_rollback_right_after_start_takes_the_right_revision() -> None:
    """The status still names the revision before as the newest."""
    cluster = running("0", "1")
    cluster.apply(patched(cluster.service(), replace(VERSION, "2"), percent(10)))
    one = session(cluster)
    one.run("rollback")
    assert one.model.cluster.shares() == {"1": 100}
    assert all(set(shares) == {"1"} for shares in one.model.shares)


@pytest.mark.parametrize("passes", range(8))
def test_rollback_right_after_promote_never_keeps_the_rejected_version(passes: int) -> None:
    """However far the controllers have come with the promotion; and a second roll-back changes nothing."""
    cluster = in_flight()
    cluster.apply(patched(cluster.service(), REMOVE))
    for _ in range(passes):
        cluster.step()
    one = session(cluster)
    one.run("rollback")
    assert one.model.cluster.shares() == {"1": 100}
    assert "has version 1 too" in one.refused("rollback")


def test_a_dead_controller_is_said() -> None:
    """Nothing moves: the wait has a bound, lines on its way, and an end that says who has what."""
    cluster = running("1")
    one = session(cluster)
    one.model.after_patch = lambda model: setattr(cluster, "dead", True)
    why = one.refused("start", "2", "10")
    assert why.startswith("Waited in vain for 60 seconds until a revision with version 2 is cut")
    assert why.endswith("Now version 1 has 100 %. Next: `start 2 10` again when that is mended, or `status`.")
    assert len([line for line in one.said if "until a revision with version 2 is cut" in line]) >= 4
    cluster.dead = False
    one.model.after_patch = lambda model: None
    one.run("start", "2", "10")
    assert cluster.shares() == {"2": 10, "1": 90}


def test_two_people_at_once() -> None:
    """The patch fails as a whole if somebody else was faster; what somebody changes later is not waited for."""
    one = session(running("1"))
    one.model.before_patch = lambda model: model.cluster.apply(patched(model.cluster.service(), replace(VERSION, "5")))
    why = one.refused("start", "2", "10")
    assert "nothing of it was made" in why
    assert version_of(predictor(one.model.cluster)) == "5"
    two = session(running("1"))
    two.model.after_patch = lambda model: model.cluster.apply(patched(model.cluster.service(), percent(0)))
    why = two.refused("start", "2", "10")
    assert "Somebody else changed predictive-maintenance meanwhile: it says version 2 and 0 percent" in why


def test_a_revision_that_is_gone_is_named() -> None:
    """There is nothing to go back to; what serves now and what to type is said."""
    cluster = running("1", "2")
    del cluster.objects[f"revision/{NAME}-predictor-00001"]
    why = session(cluster).refused("rollback")
    assert why == (
        f"Revision {NAME}-predictor-00001 cannot be read: it is gone, and with it what it served. Now version 2 has 100 %. "
        "Next: `start VERSION PERCENT`."
    )


def test_a_canary_of_more_than_the_version_is_not_restored_by_the_version_alone() -> None:
    """Removing the percent then would promote the rest of it: it stops before, with the percent at 0."""
    image = replace("/spec/predictor/containers/0/image", "headway:next")
    cluster = running("1")
    cluster.apply(patched(cluster.service(), image, replace(VERSION, "2"), percent(10)))
    cluster.settle()
    one = session(cluster)
    assert "differs from predictive-maintenance-predictor-00001 in more than the version" in one.refused("rollback")
    assert cluster.shares() == {"1": 100}
    assert predictor(cluster)["canaryTrafficPercent"] == 0


def test_a_restored_revision_that_does_not_get_ready_keeps_the_percent_at_zero() -> None:
    """The good revision has everything meanwhile; once the restored one is ready, the same command finishes."""
    cluster = in_flight()
    cluster.broken = [f"{NAME}-predictor-00003"]
    one = session(cluster)
    assert f"{NAME}-predictor-00001 has everything meanwhile" in one.refused("rollback")
    assert (cluster.shares(), predictor(cluster)["canaryTrafficPercent"]) == ({"1": 100}, 0)
    cluster.broken = []
    one.run("rollback")
    assert "canaryTrafficPercent" not in predictor(cluster)


# -- refusals -------------------------------------------------------------------------------------------------------


def never_rolled_out() -> Cluster:
    cluster = Cluster(broken=["1"])
    cluster.apply(manifest())
    return cluster


def rolled_back() -> Cluster:
    cluster = in_flight()
    cluster.apply(patched(cluster.service(), percent(0)))
    cluster.settle()
    return cluster


def nameless() -> Cluster:
    cluster = running("1")
    del predictor(cluster)["containers"][0]["env"][1]
    cluster.settle()
    return cluster


REFUSALS: list[tuple[str, Any, str, str]] = [
    ("a second canary", in_flight, "start 3 10", "A canary is in flight, and a second one would replace it. Now version 2 has 10 %"),
    ("the same version", lambda: running("1"), "start 1 10", "takes the rolled-out one back. Now version 1 has 100 %"),
    ("nothing to split with", never_rolled_out, "start 2 10", "until then KServe ignores the percent"),
    ("nothing to widen", lambda: running("1", "2"), "widen 50", "No canary is in flight. A percent alone would not make one"),
    ("nothing to promote", lambda: running("1", "2"), "promote", "No canary is in flight"),
    ("promote a rejected one", rolled_back, "promote", "This canary was rolled back. Now version 1 has 100 %. Next: `rollback`"),
    ("widen a rejected one", rolled_back, "widen 50", "This canary was rolled back"),
    ("nothing before", lambda: running("1"), "rollback", "There is no earlier revision to go back to"),
    ("no version", nameless, "start 2 10", "has no MODEL_VERSION in its first container, or none"),
    ("no version to go back to", nameless, "rollback", "has no MODEL_VERSION in its first container, or none"),
    *(("Standard", lambda: running("1", mode="Standard"), words, "is in mode Standard") for words in ("start 2 10", "promote", "rollback")),
]  # fmt: skip


@pytest.mark.parametrize(("begin", "words", "why"), [pytest.param(*r[1:], id=f"{r[0]}: {r[2]}") for r in REFUSALS])
def test_what_makes_no_sense_is_refused_before_anything_changes(begin: Any, words: str, why: str) -> None:
    """With who has how much, and what to type."""
    one = session(begin())
    assert why in one.refused(*words.split())
    assert steps(one) == []


# -- by a route -----------------------------------------------------------------------------------------------------


def test_a_canary_by_the_weights_of_a_route() -> None:
    """Start, widen, promote: the weight moves only after the pods of the version are there."""
    one = session(with_route(stable="1", canary="1", weight=0), ROUTE)
    one.run("start", "2", "10")
    assert one.model.shares[-1] == {"2": 10, "1": 90}
    assert all(shares in ({"1": 100}, {"2": 10, "1": 90}) for shares in one.model.shares)
    one.run("widen", "50")
    assert one.model.cluster.route_shares(ROUTE) == {"2": 50, "1": 50}
    assert "weights 100 and 0 into the route's" in one.run("promote")
    assert one.model.cluster.route_shares(ROUTE) == {"2": 100}
    weights = [b["weight"] for b in one.model.cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]["backendRefs"]]
    assert weights == [100, 0]


def test_promote_checks_the_canary_of_a_route() -> None:
    """Whose pods are gone is not made the stable one."""
    cluster = with_route(weight=10)
    cluster.broken = ["2"]
    canary = f"{NAME}-canary-predictor"
    cluster.objects[f"replicaset/{canary}-00001"]["status"]["availableReplicas"] = 0
    cluster.step()
    one = session(cluster, ROUTE)
    assert "pods of version 2; it has 0" in one.refused("promote")
    assert steps(one) == []


@pytest.mark.parametrize("patches", [1, 2])
def test_a_rollback_repairs_the_stable_spec(patches: int) -> None:
    """A promotion was cut off after its first change, or its second: the version that was stable before comes back."""
    one = session(with_route(weight=10), ROUTE)

    def die(model: Model) -> None:
        if len(model.patches) == patches:
            raise Killed

    one.model.after_patch = die
    with pytest.raises(Killed):
        one.run("promote")
    one.model.after_patch = lambda model: None
    one.run(*(["rollback"] if patches == 1 else ["rollback", "1"]))
    one.model.cluster.settle()
    assert one.model.cluster.route_shares(ROUTE) == {"1": 100}
    assert version_of(one.model.cluster.service()["spec"]["predictor"]) == "1"


def test_a_rollback_by_the_weights_of_a_route() -> None:
    """Before the promotion it is one patch; after it, the version to go back to is named and must be said."""
    one = session(with_route(weight=10), ROUTE)
    one.run("rollback")
    assert one.model.cluster.route_shares(ROUTE) == {"1": 100}
    assert len(one.model.patches) == 1
    two = session(with_route(weight=10), ROUTE)
    two.run("promote")
    assert "Next: `rollback 1`." in two.refused("rollback")
    two.run("rollback", "1")
    assert two.model.cluster.route_shares(ROUTE) == {"1": 100}


def test_a_route_that_no_gateway_goes_by_splits_nobody() -> None:
    """Its weights say 90 and 10, and every request is a 404."""
    cluster = with_route(weight=0)
    route = cluster.objects[f"httproute/{ROUTE}"]
    route["spec"]["parentRefs"] = []
    cluster.settle()
    why = session(cluster, ROUTE).refused("start", "2", "10")
    assert f"a gateway goes by route {ROUTE} (it has no parent)" in why
    assert "nobody is split by it" in why


def test_a_change_over_by_hand_is_understood() -> None:
    """Everything goes to the second service: it is promoted or rolled back, and no other canary starts."""
    one = session(with_route(weight=100), ROUTE)
    assert "as after a change-over by hand" in one.refused("start", "3", "10")
    one.run("promote")
    assert one.model.cluster.route_shares(ROUTE) == {"2": 100}
    assert version_of(one.model.cluster.service()["spec"]["predictor"]) == "2"


def test_a_route_refuses_what_makes_no_sense() -> None:
    """A second canary; widening or promoting none; a route without two weighted backends."""
    assert "A canary is in flight" in session(with_route(weight=10), ROUTE).refused("start", "3", "10")
    assert "No canary is in flight" in session(with_route(), ROUTE).refused("widen", "50")
    assert "No canary is in flight" in session(with_route(), ROUTE).refused("promote")
    cluster = with_route()
    del cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]
    assert "no rule with two weighted backends" in session(cluster, ROUTE).refused("promote")


# -- whatever happens -----------------------------------------------------------------------------------------------

WORDS = ["start 2 10", "start 3 20", "start 9 10", "widen 50", "widen 99", "promote", "rollback", "rollback 1",
         "rollback 2", "apply 9", "apply 3"]  # fmt: skip


@pytest.mark.parametrize("seed", range(150))
def test_a_version_that_never_had_a_ready_pod_never_gets_a_share(seed: int) -> None:
    """Whatever is typed, wherever it is cut off, and however far the controllers are; version 9 exists nowhere. And nothing
    has more than the one percent at which it gets its pods back while it has none."""
    dice = random.Random(seed)
    cluster = running("1")
    cluster.broken = ["9"]
    one = session(cluster, timeout=20)
    one.model.each_look = check
    for _ in range(8):
        cluster.dead = dice.random() < 0.1
        one.model.after_patch = dying(dice)
        with suppress(Failed, Killed):
            typed(one, *dice.choice(WORDS).split())
        check(one.model)
        for _ in range(dice.randrange(4)):
            cluster.step()
            check(one.model)
    cluster.dead = False
    cluster.settle()
    check(one.model)


def typed(one: Session, verb: str, *words: str) -> None:
    """A command; or an apply by hand, without a percent, of a version that gets everything when it is ready."""
    if verb != "apply":
        one.run(verb, *words)
    elif "canaryTrafficPercent" not in predictor(one.model.cluster):
        one.model.cluster.apply(patched(one.model.cluster.service(), replace(VERSION, *words)))


def dying(dice: random.Random) -> Any:
    left = dice.randrange(1, 8)

    def after(model: Model) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Killed

    return after


def check(model: Model) -> None:
    shares = model.cluster.shares()
    assert "9" not in shares
    assert sum(shares.values()) == 100
    traffic = model.cluster.service()["status"]["components"]["predictor"]["traffic"]
    for name, revision in model.cluster.revisions(NAME).items():
        if sum(entry["percent"] for entry in traffic if entry["revisionName"] == name) > 1:
            assert revision["status"]["actualReplicas"] > 0
