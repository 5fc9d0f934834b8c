"""What is observed of a weighted route in Standard mode, and of the two InferenceServices behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.rollout.decisions import shares_text
from serving.rollout.revisions import env_path, version_of

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Backend:
    """One backend: the Service `name` with its weight, and the InferenceService and Deployment behind it.

    `version` is the spec's, `served` the newest one of which a pod is there, `before` the newest one that the Deployment
    knows and the spec does not name. `pods` are those of the present template that are available, of `wanted`; `old` others,
    and `answering` those of any template that are available.
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
    answering: int
    seen: bool
    paused: bool

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
        if self.paused and (self.old or self.pods < self.wanted):
            return f"Deployment {self.name} is resumed, which is paused"
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

    def splits(self, percent: int) -> bool:
        """Whether the canary has just that share: other weights than two of a sum of 100 make another of the same number."""
        return (self.stable.weight, self.canary.weight) == (100 - percent, percent)

    def gives_back(self, percent: int) -> bool:
        """Whether that is less for the canary than it has."""
        return percent * (self.stable.weight + self.canary.weight) < 100 * self.canary.weight

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
    raise NoSplit(
        f"HTTPRoute {route['metadata']['name']} has no rule with two weighted backends: the stable service's, then the canary's, "
        "as in overlays/standard-canary."
    )


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
    said = [_complaint(parent.get("conditions", []), generation) for parent in parents]
    return "" if "" in said else said[0]


def _complaint(conditions: Sequence[Json], generation: int) -> str:
    """Why one gateway does not go by it, or sends it nowhere; nothing if it does."""
    known = {each["type"]: each for each in conditions}
    for each in (known[name] for name in ("Accepted", "ResolvedRefs") if name in known):
        if each.get("observedGeneration", generation) < generation:
            return "its gateway has not looked at the last change"
        if each["status"] != "True":
            return str(each.get("message") or each.get("reason") or f"{each['type']} is {each['status']}")
    return "" if "Accepted" in known else "its gateway has not looked at it"


def _backend(ref: Json, service: Json, deployment: Json | None, sets: Sequence[Json]) -> Backend:
    container = (service["spec"]["predictor"].get("containers") or [{}])[0]
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
        answering=status.get("availableReplicas", 0),
        seen=status.get("observedGeneration", 0) >= found["metadata"].get("generation", 0),
        paused=spec.get("paused", False),
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
