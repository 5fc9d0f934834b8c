"""What KServe's controller, and Knative below it, make of an InferenceService: a model, step by step.

KServe 0.20 (`ksvc_reconciler.go` makes the traffic list, `PropagateStatus` keeps the rolled-out revisions):

- With `canaryTrafficPercent` and a rolled-out revision, the newest ready revision gets the percent and the rolled-out one
  the rest. Without either, the newest ready revision gets everything: removing the percent promotes.
- The newest ready revision becomes rolled out when it gets 100 %; the one before it is remembered.
- Where the percent falls below 100 while both shares go to one and the same revision, the rolled-out revision steps back
  to the remembered one: a roll-back after a promotion, by one revision.
- A revision is cut by a change of the template, in which everything of the predictor lies except the percent.
- In Standard mode nobody reads the percent.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Json = dict[str, Any]
SPEC = {"predictor", "transformer", "explainer", "canary", "tracing"}  # what the schema knows; the rest is pruned


def mode(service: Json) -> str:
    """The mode as KServe reads it: older names are still accepted."""
    named: str = service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"]
    return {"RawDeployment": "Standard", "Serverless": "Knative"}.get(named, named)


def pruned(service: Json) -> Json:
    """What the API server stores of it."""
    return {**service, "spec": {key: value for key, value in service["spec"].items() if key in SPEC}}


def version_of(predictor: Json) -> str:
    """The registry's version that pods of this predictor serve, or an empty string."""
    env = predictor["containers"][0]["env"]
    return next((str(entry["value"]) for entry in env if entry["name"] == "MODEL_VERSION"), "")


def template(service: Json) -> Json:
    """What a revision is cut from."""
    annotations = service["metadata"]["annotations"]
    predictor = {k: v for k, v in service["spec"]["predictor"].items() if k != "canaryTrafficPercent"}
    return {"annotations": deepcopy(annotations), "spec": deepcopy(predictor)}


def targets(percent: int | None, rolled_out: str) -> list[Json]:
    """KServe's traffic list."""
    if percent is None or not rolled_out:
        return [{"latestRevision": True, "percent": 100}]
    newest = {"latestRevision": True, "percent": percent, "tag": "latest"}
    rest = {"latestRevision": False, "percent": 100 - percent, "tag": "prev", "revisionName": rolled_out}
    return [newest, rest] if percent < 100 else [newest]


def propagate(known: Json, created: str, ready: str, traffic: list[Json]) -> Json:
    """The component's next status, from the one before and from what Knative says."""
    rolled_out, previous = known.get("latestRolledoutRevision", ""), known.get("previousRolledoutRevision", "")
    share = sum(entry["percent"] for entry in traffic if entry["revisionName"] == ready)
    newest = next((e for e in traffic if e.get("latestRevision") and e["revisionName"] == ready), None)
    if newest and rolled_out != ready and newest["percent"] == 100:
        rolled_out, previous = ready, rolled_out
    elif newest and rolled_out == ready == created and newest["percent"] < 100 and share == 100 and previous:
        rolled_out = previous
    status = {
        "latestCreatedRevision": created,
        "latestReadyRevision": ready,
        "latestRolledoutRevision": rolled_out,
        "previousRolledoutRevision": previous,
        "traffic": traffic,
    }
    return {key: value for key, value in status.items() if value}


class Cluster:
    """InferenceServices, their revisions or Deployments, and routes; as JSON, so that a file can keep it.

    Nothing happens by itself: `step` is one pass of the controllers, and a revision gets ready a pass after it was cut,
    unless it or its version is among `broken`.
    """

    def __init__(self, objects: dict[str, Json] | None = None, broken: list[str] | None = None) -> None:
        self.objects = objects or {}
        self.broken = broken or []

    def service(self, name: str = "predictive-maintenance") -> Json:
        return self.objects[f"inferenceservice/{name}"]

    def apply(self, service: Json) -> None:
        """What `kubectl apply` or `patch` does to an InferenceService; its status stays."""
        key = f"inferenceservice/{service['metadata']['name']}"
        status = self.objects.get(key, {}).get("status", {"components": {}})
        self.objects[key] = {**pruned(deepcopy(service)), "status": status}

    def revisions(self, name: str) -> dict[str, Json]:
        """A service's revisions by name, the oldest first."""
        start = f"revision/{name}-predictor-"
        return {key.removeprefix("revision/"): value for key, value in self.objects.items() if key.startswith(start)}

    def step(self) -> bool:
        """One pass over everything. Returns whether anything changed."""
        before = deepcopy(self.objects)
        for key in [key for key in self.objects if key.startswith("inferenceservice/")]:
            service = self.objects[key]
            (self._knative if mode(service) == "Knative" else self._standard)(service)
        return before != self.objects

    def settle(self) -> None:
        """Passes until nothing changes any more."""
        while self.step():
            pass

    def shares(self, name: str = "predictive-maintenance") -> dict[str, int]:
        """Percent of an InferenceService's traffic by the version that answers; zeros are left out."""
        service = self.service(name)
        if mode(service) == "Standard":
            return {version_of(self.objects[f"deployment/{name}-predictor"]["spec"]["template"]["spec"]): 100}
        shares: dict[str, int] = {}
        for entry in service["status"]["components"].get("predictor", {}).get("traffic", []):
            version = version_of(self.objects[f"revision/{entry['revisionName']}"]["spec"])
            shares[version] = shares.get(version, 0) + entry["percent"]
        return {version: share for version, share in shares.items() if share}

    def route_shares(self, route: str) -> dict[str, int]:
        """The same for a weighted route over InferenceServices in Standard mode; weights that add up to 100."""
        shares: dict[str, int] = {}
        for backend in self.objects[f"httproute/{route}"]["spec"]["rules"][-1]["backendRefs"]:
            [version] = self.shares(backend["name"].removesuffix("-predictor"))
            shares[version] = shares.get(version, 0) + backend.get("weight", 1)
        return {version: share for version, share in shares.items() if share}

    def _standard(self, service: Json) -> None:
        """A plain Deployment; its rolling update is one pass."""
        name = f"{service['metadata']['name']}-predictor"
        pod = {"spec": template(service)["spec"]}
        self.objects[f"deployment/{name}"] = {"metadata": {"name": name}, "spec": {"template": pod}}
        service["status"]["deploymentMode"] = "Standard"

    def _knative(self, service: Json) -> None:
        name, status = service["metadata"]["name"], service["status"]
        known = status["components"].get("predictor", {})
        percent = service["spec"]["predictor"].get("canaryTrafficPercent")
        ready = self._ready(name)
        self._cut(name, template(service))
        wanted = targets(percent, known.get("latestRolledoutRevision", ""))
        traffic = [{**entry, "revisionName": entry.get("revisionName", ready)} for entry in wanted] if ready else []
        status["components"]["predictor"] = propagate(known, [*self.revisions(name)][-1], ready, traffic)
        status["deploymentMode"] = "Knative"

    def _ready(self, name: str) -> str:
        """The newest revision that is ready, or an empty string."""
        revisions = self.revisions(name).items()
        found = [key for key, value in revisions if not {key, version_of(value["spec"])} & set(self.broken)]
        return found[-1] if found else ""

    def _cut(self, name: str, wanted: Json) -> None:
        revisions = self.revisions(name)
        if not revisions or {k: [*revisions.values()][-1][k] for k in wanted} != wanted:
            revision = f"{name}-predictor-{len(revisions) + 1:05}"
            self.objects[f"revision/{revision}"] = {"metadata": {"name": revision}, **wanted}
