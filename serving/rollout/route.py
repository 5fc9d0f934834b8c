"""What is observed of a weighted HTTPRoute over two InferenceServices in Standard mode, and what the verbs make of it.

The first backend is the stable one, the second the canary. What a service's spec says is what it is going to serve; what
its Deployment has rolled out is what it serves. A gateway may not have taken a route: then nobody is split by it, whatever
its weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.rollout.decisions import Decision, Done, Operation, Patch, Refuse, Wait, shares_text, version_moves
from serving.rollout.revisions import env_path, version_of

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend: the Service `name` with its weight, and the InferenceService and Deployment behind it.

    `version` is the spec's, `served` the newest one of which a pod is there, `before` the newest one that the Deployment
    knows and the spec does not name. `pods` are those of the present template that are available, of `wanted`; `old` others.
    """

    name: str
    weight: int
    version: str
    env: str | None
    template: str
    served: str
    before: str
    pods: int
    wanted: int
    old: int
    seen: bool

    @property
    def service(self) -> str:
        """The InferenceService."""
        return self.name.removesuffix("-predictor")

    @property
    def selector(self) -> str:
        """The label of its pods."""
        return f"serving.kserve.io/inferenceservice={self.service}"

    @property
    def unfinished(self) -> str | None:
        """What its Deployment has still to do for the spec; None if all its pods, and no others, serve that version."""
        if self.template != self.version or not self.seen:
            return f"Deployment {self.name} takes version {self.version}"
        if self.pods < max(1, self.wanted):
            return f"{self.name} has {max(1, self.wanted)} pods of version {self.version}; it has {self.pods}"
        return f"{self.old} pods of another version of {self.name} are gone" if self.old else None


@dataclass(frozen=True, slots=True)
class Route:
    """The route's weighted rule, and whether a gateway goes by it."""

    name: str
    rule: int
    stable: Backend
    canary: Backend
    accepted: bool
    why_not: str = ""

    @property
    def now(self) -> str:
        """Who has how much, as a sentence."""
        total = self.stable.weight + self.canary.weight
        if not self.accepted:
            return f"Now no gateway goes by route {self.name} ({self.why_not}): nobody is split by it."
        shares: dict[str, int] = {}
        for each in (self.stable, self.canary):
            said = f"version {each.served}" if each.served else f"{each.name} (no pod)"
            shares[said] = shares.get(said, 0) + (round(100 * each.weight / total) if total else 0)
        return f"Now {shares_text(shares.items())}."


class NoSplit(ValueError):
    """The route has no rule with two weighted backends; the text says so."""


def names(route: Json) -> tuple[str, str]:
    """The Services behind the weighted rule: the stable one, the canary. Raises NoSplit."""
    stable, canary = _rule(route)[1]
    return stable["name"], canary["name"]


def _rule(route: Json) -> tuple[int, Sequence[Json]]:
    for index, rule in enumerate(route["spec"].get("rules", [])):
        backends = rule.get("backendRefs", [])
        if len(backends) == 2:
            return index, backends
    raise NoSplit(f"HTTPRoute {route['metadata']['name']} has no rule with two weighted backends.")


def observe(route: Json, services: Mapping[str, Json], deployments: Mapping[str, Json], sets: Sequence[Json]) -> Route:
    """The route as Kubernetes' API describes it; services and Deployments by the backends' names. Raises NoSplit."""
    index, (stable, canary) = _rule(route)
    why_not = _not_accepted(route)
    first, second = (_backend(b, services[b["name"]], deployments.get(b["name"]), sets) for b in (stable, canary))
    return Route(route["metadata"]["name"], index, first, second, not why_not, why_not)


def _not_accepted(route: Json) -> str:
    """Why no gateway goes by the route as it is now; nothing if one does. What is said of an older generation is history."""
    generation = route["metadata"].get("generation", 0)
    parents = route.get("status", {}).get("parents", [])
    if not parents:
        return "it has no parent"
    for condition in (c for parent in parents for c in parent["conditions"]):
        if condition["type"] != "Accepted":
            continue
        if condition["status"] == "True" and condition.get("observedGeneration", generation) >= generation:
            return ""
        if condition["status"] != "True":
            return str(condition.get("message") or condition.get("reason") or "it is not accepted")
    return "its gateway has not looked at the last change"


def _backend(ref: Json, service: Json, deployment: Json | None, sets: Sequence[Json]) -> Backend:
    container = service["spec"]["predictor"]["containers"][0]
    found = deployment or {"metadata": {}, "spec": {}, "status": {}}
    status, spec = found.get("status", {}), found["spec"]
    template = version_of(spec["template"]["spec"]["containers"][0]) if "template" in spec else ""
    updated = min(status.get("updatedReplicas", 0), status.get("availableReplicas", 0))
    history = _history(ref["name"], sets)
    before = next((version for version, _ in history if version != version_of(container)), "")
    running = next((version for version, pods in history if pods), "")
    return Backend(
        name=ref["name"],
        weight=ref.get("weight", 1),
        version=version_of(container),
        env=env_path(container),
        template=template,
        served=running or (template if updated else ""),
        before=before,
        pods=updated,
        wanted=spec.get("replicas", 1),
        old=max(0, status.get("replicas", 0) - status.get("updatedReplicas", 0)),
        seen=status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0),
    )


def _history(deployment: str, sets: Sequence[Json]) -> list[tuple[str, int]]:
    """Versions of a Deployment's ReplicaSets and their available pods, the newest first."""
    own = [each for each in sets if any(o["name"] == deployment for o in each["metadata"].get("ownerReferences", []))]
    own.sort(
        key=lambda each: -int(each["metadata"].get("annotations", {}).get("deployment.kubernetes.io/revision", "0"))
    )
    return [
        (
            version_of(each["spec"]["template"]["spec"]["containers"][0]),
            each.get("status", {}).get("availableReplicas", 0),
        )
        for each in own
    ]


# -- the verbs ----------------------------------------------------------------------------------------------------


def start(route: Route, version: str, percent: int, *, begun: bool) -> Decision:
    """Another version into the canary's service; when its pods are there, its share."""
    canary = route.canary
    if (canary.version, canary.weight) == (version, percent):
        return _settled(route) or Done(f"Version {version} has its {percent} %. {route.now}")
    if canary.weight:
        return _somebody_else(route) if begun and canary.version != version else _in_flight_already(route)
    if refusal := _unusable(route):
        return refusal
    if canary.version != version:
        return _somebody_else(route) if begun else _move(canary, version)
    if unfinished := canary.unfinished:
        return Wait(unfinished, canary.selector)
    return _weights(route, percent)


def widen(route: Route, percent: int, *, begun: bool) -> Decision:
    """Another share for the canary."""
    if refusal := _not_in_flight(route):
        return refusal
    if route.canary.weight == percent:
        return _settled(route) or Done(f"Version {route.canary.version} has its {percent} %. {route.now}")
    if begun:
        return _somebody_else(route)
    if unfinished := route.canary.unfinished:
        return Wait(unfinished, route.canary.selector)
    return _weights(route, percent)


def promote(route: Route, *, begun: bool) -> Decision:
    """The canary's version into the stable service; when its pods are there, everything to that."""
    stable, canary = route.stable, route.canary
    if begun and not canary.weight:
        return _settled(route) or Done(f"{_written(stable)} {route.now}")
    if refusal := _not_in_flight(route):
        return refusal
    if unfinished := canary.unfinished:
        return Wait(unfinished, canary.selector)
    if stable.version != canary.version:
        return _move(stable, canary.version)
    if unfinished := stable.unfinished:
        return Wait(unfinished, stable.selector)
    return _weights(route, 0)


def roll_back(route: Route, version: str | None, *, begun: bool) -> Decision:
    """Everything to the stable service, with the version that it had: a promotion on its way has moved that already."""
    stable, canary = route.stable, route.canary
    if not (begun or canary.weight or version):
        return Refuse(
            f"No canary is in flight: {canary.name} has weight 0. {route.now} After a promotion, say which version to go back to. "
            f"Next: `rollback {stable.before or 'VERSION'}`."
        )
    midway = bool(canary.weight) and stable.version == canary.version
    good = version or (stable.before if midway else stable.version)
    if not good:
        return Refuse(f"{stable.name} is on its way to version {stable.version}. {route.now} Next: `rollback VERSION`.")
    if refusal := _unusable(route):
        return refusal
    if stable.version != good:
        return _move(stable, good)
    if canary.weight:
        return _back_to(route)
    if unfinished := stable.unfinished:
        return Wait(unfinished, stable.selector)
    return _settled(route) or Done(f"{_written(stable)} {route.now}")


def _back_to(route: Route) -> Decision:
    """Weight 0, as soon as the stable service has a pod to answer with."""
    stable = route.stable
    if stable.pods + stable.old < 1:
        return Wait(f"{stable.name} has a pod", stable.selector)
    return _weights(route, 0)


def _unusable(route: Route) -> Refuse | None:
    for each in (route.stable, route.canary):
        if each.env is None:
            why = f"InferenceService {each.service} has no MODEL_VERSION in its first container: there is no version to move."
            return Refuse(why)
    return None


def _settled(route: Route) -> Wait | None:
    """Until a gateway goes by the weights, and the pods are there."""
    if not route.accepted:
        return Wait(f"a gateway goes by route {route.name} ({route.why_not})")
    behind = [each for each in (route.stable, route.canary) if each.weight]
    return next((Wait(each.unfinished, each.selector) for each in behind if each.unfinished), None)


def _not_in_flight(route: Route) -> Refuse | None:
    if route.canary.weight:
        return None
    return Refuse(
        f"No canary is in flight: {route.canary.name} has weight 0. {route.now} Next: `start VERSION PERCENT`."
    )


def _in_flight_already(route: Route) -> Refuse:
    if not route.stable.weight:
        why = f"Everything goes to {route.canary.name}, as after a change-over by hand: `promote` makes its version the stable one"
        return Refuse(f"{why}. {route.now} Next: `promote` or `rollback`.")
    return Refuse(
        f"A canary is in flight, and a second one would replace it. {route.now} Next: `promote` or `rollback`."
    )


def _somebody_else(route: Route) -> Refuse:
    return Refuse(f"Somebody else changed {route.name} or a service behind it meanwhile. {route.now} Next: `status`.")


def _move(backend: Backend, version: str) -> Patch:
    assert backend.env is not None
    return Patch(f"inferenceservice/{backend.service}", version_moves(backend.env, backend.version, version))


def _weights(route: Route, percent: int) -> Patch:
    at = f"/spec/rules/{route.rule}/backendRefs"
    tests: list[Operation] = []
    for index, each in enumerate((route.stable, route.canary)):
        tests.append({"op": "test", "path": f"{at}/{index}/name", "value": each.name})
    moved: list[Operation] = [
        {"op": "replace", "path": f"{at}/{index}/weight", "value": weight}
        for index, weight in ((0, 100 - percent), (1, percent))
    ]
    return Patch(f"httproute/{route.name}", (*tests, *moved))


def _written(stable: Backend) -> str:
    return (
        f'Version {stable.version} is the stable one. Write MODEL_VERSION "{stable.version}" into the manifest of {stable.service}, and '
        "weights 100 and 0 into the route's: the next apply would otherwise undo this."
    )
