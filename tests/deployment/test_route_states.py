"""Routes and Deployments as others have left them: what the verbs with --route make of them."""

from __future__ import annotations

import random
from contextlib import suppress
from copy import deepcopy
from typing import Any

import pytest

from serving.rollout import backends, route
from serving.rollout.canary import Failed
from serving.rollout.decisions import Decision, Done, Patch, Refuse, Wait
from tests.deployment.acting import NAME, ROUTE, Killed, Model, session
from tests.deployment.clusters import with_route
from tests.deployment.controller import Cluster, Json, version_of

STABLE, CANARY = f"{NAME}-predictor", f"{NAME}-canary-predictor"


def weights(cluster: Cluster, stable: int, canary: int) -> Cluster:
    refs = cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]["backendRefs"]
    refs[0]["weight"], refs[1]["weight"] = stable, canary
    return cluster


def seen(cluster: Cluster, **status: Any) -> backends.Route:
    """The route as it is observed; `status` is what the stable Deployment's says, in place of the model's."""
    cluster = deepcopy(cluster)
    cluster.settle()
    if status:
        cluster.objects[f"deployment/{STABLE}"]["status"].update(status)
    return Model(cluster).route(ROUTE)


# -- weights --------------------------------------------------------------------------------------------------------


def test_weights_of_another_sum_are_shares_and_not_percents() -> None:
    """9 and 1 are 10 percent: `widen 1` is not done by them."""
    cluster = weights(with_route(), 9, 1)
    cluster.settle()
    one = session(cluster, ROUTE)
    assert one.run("widen", "1") == "Version 2 has its 1 %. Now version 1 has 99 %, version 2 has 1 %."
    assert len(one.model.patches) == 1


def test_a_weight_that_somebody_else_has_moved_fails_the_patch() -> None:
    """Who widens while another rolls back does not bring the canary back."""
    one = session(with_route(weight=10), ROUTE)
    one.model.cluster.settle()
    one.model.before_patch = lambda model: weights(model.cluster, 100, 0) and None
    assert "nothing of it was made" in one.refused("widen", "50")
    assert one.model.cluster.route_shares(ROUTE) == {"1": 100}


def test_nothing_is_given_back_to_a_service_without_a_pod() -> None:
    """After a change-over by hand: half of it, or all, waits until the stable service has one. More for the canary does not."""
    gone = {"updatedReplicas": 2, "replicas": 2, "availableReplicas": 0}
    for percent in (100, 60):
        found = seen(with_route(weight=percent), **gone)
        for decision in (route.widen(found, 50, begun=False), route.roll_back(found, None, begun=False)):
            assert isinstance(decision, Wait)
            assert decision.until == f"{STABLE} has a pod"
    assert isinstance(route.widen(found, 90, begun=False), Patch)


def test_pods_of_before_that_do_not_answer_take_nothing() -> None:
    """A rolling update in which neither the old pods nor the new ones are available."""
    found = seen(with_route(weight=60), updatedReplicas=1, replicas=3, availableReplicas=0)
    assert isinstance(route.roll_back(found, None, begun=False), Wait)


# -- versions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "why"), [("2", "Version 2 is the canary's"), ("7", "goes to version 1, and not to version 7")]
)
def test_a_roll_back_to_the_rejected_version_or_to_another_is_refused(version: str, why: str) -> None:
    """`rollback 2` of a canary of version 2 moved the stable service to it."""
    one = session(with_route(weight=10), ROUTE)
    one.model.cluster.settle()
    said = one.refused("rollback", version)
    assert why in said
    assert said.endswith("Next: `rollback`.")
    assert one.model.patches == []


def test_the_stable_version_is_no_canary() -> None:
    """Its roll-back could not be told from that of a promotion on its way, which repairs the stable service."""
    one = session(with_route(), ROUTE)
    assert "Version 1 is the stable one already" in one.refused("start", "1", "10")
    assert one.model.patches == []


def test_a_promotion_can_be_typed_again_when_it_was_cut_off_behind_its_last_change() -> None:
    """It says what to write down, as it would have."""
    one = session(with_route(weight=10), ROUTE)
    one.run("promote")
    assert "Version 2 is the stable one. Write MODEL_VERSION" in one.run("promote")


def test_a_service_with_a_model_has_no_version_to_move() -> None:
    """There are no containers to look at; it is said, by every verb that would move one."""
    cluster = with_route(weight=10)
    predictor = cluster.service(f"{NAME}-canary")["spec"]["predictor"]
    services = {STABLE: cluster.service(), CANARY: deepcopy(cluster.service(f"{NAME}-canary"))}
    services[CANARY]["spec"]["predictor"] = {"model": {"modelFormat": {"name": "mlflow"}}}
    assert version_of(predictor) == "2"
    found = backends.observe(cluster.objects[f"httproute/{ROUTE}"], services, {}, [])
    for decision in (route.promote(found, begun=False), route.roll_back(found, None, begun=False)):
        assert isinstance(decision, Refuse)
        assert "has no MODEL_VERSION" in decision.why


# -- Deployments ----------------------------------------------------------------------------------------------------


def test_a_paused_deployment_is_named() -> None:
    """It never finishes, and its pods complain of nothing."""
    cluster = with_route(weight=10)
    cluster.settle()
    cluster.objects[f"deployment/{CANARY}"]["spec"]["paused"] = True
    cluster.objects[f"deployment/{CANARY}"]["status"]["updatedReplicas"] = 0
    decision = route.promote(Model(cluster).route(ROUTE), begun=False)
    assert isinstance(decision, Wait)
    assert decision.until == f"Deployment {CANARY} is resumed, which is paused"


# -- gateways -------------------------------------------------------------------------------------------------------


def said(kind: str, value: str, generation: int = 1, message: str = "") -> Json:
    return {"type": kind, "status": value, "observedGeneration": generation, "message": message}


YES, NO = said("Accepted", "True"), said("Accepted", "False", message="no such listener")
PARENTS: list[tuple[str, list[list[Json]], str]] = [
    ("one", [[YES]], ""),
    ("one that refuses, then one that accepts", [[NO], [YES]], ""),
    ("one that accepts, then one that refuses", [[YES], [NO]], ""),
    ("one that refuses", [[NO]], "no such listener"),
    ("one of before", [[said("Accepted", "True", 0)]], "its gateway has not looked at the last change"),
    ("none", [], "it has no parent"),
    ("one that has said nothing", [[]], "its gateway has not looked at it"),
    (
        "one that finds no backend",
        [[YES, said("ResolvedRefs", "False", message="Service x not found")]],
        "Service x not found",
    ),
]


@pytest.mark.parametrize(("parents", "why"), [pytest.param(*p[1:], id=p[0]) for p in PARENTS])
def test_which_routes_a_gateway_goes_by(parents: list[list[Json]], why: str) -> None:
    """One gateway that goes by it as it is now, and knows the backends, is enough."""
    cluster = with_route(weight=10)
    cluster.settle()
    found = cluster.objects[f"httproute/{ROUTE}"]
    found["metadata"]["generation"] = 1
    found["status"] = {"parents": [{"conditions": conditions} for conditions in parents]}
    observed = Model(cluster).route(ROUTE)
    assert (observed.accepted, observed.why_not) == (not why, why)
    decision: Decision = route.widen(observed, 10, begun=False)
    assert isinstance(decision, Wait if why else Done)


def test_three_backends_are_no_canary() -> None:
    """Whose is which cannot be told; what is expected is said."""
    cluster = with_route(weight=10)
    rule = cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]
    rule["backendRefs"].append(deepcopy(rule["backendRefs"][0]))
    assert "the stable service's, then the canary's" in session(cluster, ROUTE).refused("promote")


# -- whatever happens -----------------------------------------------------------------------------------------------

WORDS = [
    "start 2 10",
    "start 3 20",
    "start 9 10",
    "widen 50",
    "widen 90",
    "promote",
    "rollback",
    "rollback 1",
    "rollback 9",
]


@pytest.mark.parametrize("seed", range(100))
def test_no_service_is_given_more_while_it_has_no_pod(seed: int) -> None:
    """Whatever is typed, wherever it is cut off, whichever pods are gone; version 9 exists nowhere."""
    dice = random.Random(seed)
    cluster = with_route(stable="1", canary="1")
    cluster.settle()
    cluster.broken = ["9"]
    one = session(cluster, ROUTE, timeout=20)
    one.model.before_patch = lambda model: before.__setitem__(0, shares(model.cluster))
    before = [shares(cluster)]
    for _ in range(8):
        cluster.dead = dice.random() < 0.1
        one.model.after_patch = checking(before, dice.randrange(1, 6))
        with suppress(Failed, Killed):
            one.run(*dice.choice(WORDS).split())
        if dice.random() < 0.2:
            lose(cluster, dice.choice([STABLE, CANARY]))
        for _ in range(dice.randrange(4)):
            cluster.step()
    refs = cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]["backendRefs"]
    assert sum(each["weight"] for each in refs) == 100


def shares(cluster: Cluster) -> dict[str, int]:
    refs = cluster.objects[f"httproute/{ROUTE}"]["spec"]["rules"][-1]["backendRefs"]
    return {each["name"]: each["weight"] for each in refs}


def pods(cluster: Cluster, name: str) -> int:
    sets = [each for key, each in cluster.objects.items() if key.startswith(f"replicaset/{name}-0")]
    return sum(each["status"]["availableReplicas"] for each in sets)


def lose(cluster: Cluster, name: str) -> None:
    """All pods of a Deployment are gone, and its status says so."""
    for key, each in cluster.objects.items():
        if key.startswith(f"replicaset/{name}-0"):
            each["status"]["availableReplicas"] = 0
    cluster.objects[f"deployment/{name}"]["status"].update(updatedReplicas=0, availableReplicas=0, replicas=0)


def checking(before: list[dict[str, int]], left: int) -> Any:
    def after(model: Model) -> None:
        nonlocal left
        now = shares(model.cluster)
        assert all(pods(model.cluster, name) for name in now if now[name] > before[0][name]), (before, now)
        left -= 1
        if left == 0:
            raise Killed

    return after
