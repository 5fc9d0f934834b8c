"""What KServe's controller, and Knative below it, make of an InferenceService: a model, step by step.

KServe 0.20 (`ksvc_reconciler.go` makes the traffic list, `PropagateStatus` keeps the rolled-out revisions):

- With `canaryTrafficPercent` and a rolled-out revision, the newest ready revision gets the percent and the rolled-out one
  the rest. Without either, the newest ready revision gets everything: removing the percent promotes.
- The newest ready revision becomes rolled out when it gets 100 %; the one before it is remembered.
- Where the percent falls below 100 while both shares go to one and the same revision, the rolled-out revision steps back
  to the remembered one: a roll-back after a promotion, by one revision.
- A revision is cut by a change of the template, in which everything of the predictor lies except the percent.
- In Standard mode nobody reads the percent.

What a recorded cluster showed besides, pass by pass: a revision is there before the status knows of it; its pods come one by
one, and it is ready with the last; what has no traffic loses its pods one by one, down to none, and stays Ready, latest ready
and rolled out; a route is accepted a pass after it was changed.
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

    Nothing happens by itself: `step` is one pass of the controllers. A revision or version among `broken` gets no pod that is
    ready; with `dead` the controllers do nothing.
    """

    def __init__(self, objects: dict[str, Json] | None = None, broken: list[str] | None = None) -> None:
        self.objects = objects or {}
        self.broken = broken or []
        self.dead = False

    def service(self, name: str = "predictive-maintenance") -> Json:
        return self.objects[f"inferenceservice/{name}"]

    def apply(self, service: Json) -> None:
        """What `kubectl apply` or `patch` does to an InferenceService; its status stays."""
        key = f"inferenceservice/{service['metadata']['name']}"
        status = self.objects.get(key, {}).get("status", {"components": {}})
        self.objects[key] = {**pruned(deepcopy(service)), "status": status}

    def change(self, key: str, changed: Json) -> None:
        """What a patch does to any object."""
        if key.startswith("inferenceservice/"):
            self.apply(changed)
        else:
            generation = self.objects[key]["metadata"].get("generation", 1)
            self.objects[key] = {**changed, "metadata": {**changed["metadata"], "generation": generation + 1}}

    def pods(self) -> list[Json]:
        """A ready pod for each ReplicaSet and revision that has any, with its labels and its version."""
        found = []
        for key, each in self.objects.items():
            kind, _, name = key.partition("/")
            if kind == "replicaset" and each["status"]["availableReplicas"]:
                owner = each["metadata"]["ownerReferences"][0]["name"]
                found.append(pod(name, {"app": f"isvc.{owner}"}, each["spec"]["template"]["spec"]))
            elif kind == "revision" and each["status"]["actualReplicas"]:
                found.append(pod(name, {"serving.knative.dev/revision": name}, each["spec"]))
        return found

    def revisions(self, name: str) -> dict[str, Json]:
        """A service's revisions by name, the oldest first."""
        start = f"revision/{name}-predictor-"
        return {key.removeprefix("revision/"): value for key, value in self.objects.items() if key.startswith(start)}

    def step(self) -> bool:
        """One pass over everything. Returns whether anything changed."""
        if self.dead:
            return False
        before = deepcopy(self.objects)
        for key in [key for key in self.objects if key.startswith("inferenceservice/")]:
            service = self.objects[key]
            (self._knative if mode(service) == "Knative" else self._standard)(service)
        for key in [key for key in self.objects if key.startswith("httproute/")]:
            accept(self.objects[key])
        return before != self.objects

    def settle(self) -> None:
        """Passes until nothing changes any more."""
        while self.step():
            pass

    def shares(self, name: str = "predictive-maintenance") -> dict[str, int]:
        """Percent of an InferenceService's traffic by the version that answers; zeros are left out."""
        service = self.service(name)
        if mode(service) == "Standard":
            made = self.objects.get(f"deployment/{name}-predictor")
            return {version_of(made["spec"]["template"]["spec"]): 100} if made else {}
        shares: dict[str, int] = {}
        for entry in service["status"]["components"].get("predictor", {}).get("traffic", []):
            version = version_of(self.objects[f"revision/{entry['revisionName']}"]["spec"])
            shares[version] = shares.get(version, 0) + entry["percent"]
        return {version: share for version, share in shares.items() if share}

    def route_shares(self, route: str) -> dict[str, int]:
        """The same for a weighted route over InferenceServices in Standard mode; weights that add up to 100."""
        shares: dict[str, int] = {}
        for backend in self.objects[f"httproute/{route}"]["spec"]["rules"][-1]["backendRefs"]:
            version = next(iter(self.shares(backend["name"].removesuffix("-predictor"))), "")
            shares[version] = shares.get(version, 0) + backend.get("weight", 1)
        return {version: share for version, share in shares.items() if share}

    def _standard(self, service: Json) -> None:
        """A Deployment and a ReplicaSet per template; pods come one by one, and the old ones go when the new ones are there."""
        name, spec = f"{service['metadata']['name']}-predictor", template(service)["spec"]
        status = service["status"]
        status["deploymentMode"] = "Standard"
        key = f"deployment/{name}"
        known = self.objects.get(key)
        if known is None or known["spec"]["template"]["spec"] != spec:
            self.objects[key] = deployment(name, spec, known)
            number = self.objects[key]["metadata"]["generation"]
            self.objects[f"replicaset/{name}-{number:05}"] = replica_set(name, number, spec)
            return
        known["status"]["observedGeneration"] = known["metadata"]["generation"]
        self._roll(name, known)

    def _roll(self, name: str, known: Json) -> None:
        sets = [each for key, each in self.objects.items() if key.startswith(f"replicaset/{name}-")]
        newest, wanted = sets[-1], known["spec"]["replicas"]
        if version_of(newest["spec"]["template"]["spec"]) not in self.broken:
            newest["status"]["availableReplicas"] = min(wanted, newest["status"]["availableReplicas"] + 1)
        updated = newest["status"]["availableReplicas"]
        for old in sets[:-1]:
            old["status"]["availableReplicas"] = min(old["status"]["availableReplicas"], wanted - updated)
        total = sum(each["status"]["availableReplicas"] for each in sets)
        known["status"].update(updatedReplicas=updated, availableReplicas=total, replicas=total)

    def _knative(self, service: Json) -> None:
        name, status = service["metadata"]["name"], service["status"]
        known = status["components"].get("predictor", {})
        percent = service["spec"]["predictor"].get("canaryTrafficPercent")
        status["deploymentMode"] = "Knative"
        if self._cut(name, service):
            return  # and the status has not heard of it
        routed = {entry["revisionName"] for entry in known.get("traffic", [])}
        free = 1  # pods that a node has time to start in one pass
        for revision in self.revisions(name).values():
            free -= self._scale(revision, routed, free)
        ready = self._ready(name)
        wanted = targets(percent, known.get("latestRolledoutRevision", ""))
        traffic = [{**entry, "revisionName": entry.get("revisionName", ready)} for entry in wanted] if ready else []
        status["components"]["predictor"] = propagate(known, [*self.revisions(name)][-1], ready, traffic)

    def _scale(self, revision: Json, routed: set[str], free: int) -> int:
        """One pod more or less; how many were started. What was never ready is brought up; what has no route is let go."""
        name, now = revision["metadata"]["name"], revision["status"]
        is_ready = now["conditions"][0]["status"] == "True"
        least = int(revision["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"])
        wanted = least if name in routed or not is_ready else 0
        pods, started = now["actualReplicas"], 0
        if pods > wanted:
            now.update(actualReplicas=pods - 1, desiredReplicas=pods - 1)
        elif now["desiredReplicas"] < wanted:
            now["desiredReplicas"] = wanted
        elif pods < wanted and free and not {name, version_of(revision["spec"])} & set(self.broken):
            started = 1
            now["actualReplicas"] = pods + 1
        if now["actualReplicas"] >= least:
            now["conditions"][0]["status"] = "True"
        return started

    def _ready(self, name: str) -> str:
        """The newest revision that was ready at any time, or an empty string."""
        found = [
            key for key, each in self.revisions(name).items() if each["status"]["conditions"][0]["status"] == "True"
        ]
        return found[-1] if found else ""

    def _cut(self, name: str, service: Json) -> bool:
        wanted, revisions = template(service), self.revisions(name)
        if revisions and {k: [*revisions.values()][-1][k] for k in wanted} == wanted:
            return False
        revision = f"{name}-predictor-{len(revisions) + 1:05}"
        least = str(service["spec"]["predictor"].get("minReplicas", 1))
        metadata = {"name": revision, "annotations": {"autoscaling.knative.dev/min-scale": least}}
        metadata["labels"] = {"serving.kserve.io/inferenceservice": name}  # type: ignore[assignment]
        conditions = [{"type": "Ready", "status": "Unknown"}]
        status = {"conditions": conditions, "actualReplicas": 0, "desiredReplicas": 0}
        self.objects[f"revision/{revision}"] = {"metadata": metadata, **wanted, "status": status}
        return True


def deployment(name: str, spec: Json, known: Json | None) -> Json:
    """KServe's Deployment with another template; its status is what it was."""
    metadata = {"name": name, "generation": known["metadata"]["generation"] + 1 if known else 1}
    status = known["status"] if known else {"updatedReplicas": 0, "availableReplicas": 0, "replicas": 0}
    return {
        "metadata": metadata,
        "spec": {
            "replicas": spec.get("minReplicas", 1),
            "selector": {"matchLabels": {"app": f"isvc.{name}"}},
            "template": {"spec": spec},
        },
        "status": {**status, "updatedReplicas": 0},
    }


def pod(name: str, labels: dict[str, str], spec: Json) -> Json:
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    metadata = {"name": f"{name}-pod", "labels": labels, "creationTimestamp": name[-5:]}
    return {"metadata": metadata, "spec": {"containers": spec["containers"]}, "status": status}


def replica_set(name: str, number: int, spec: Json) -> Json:
    metadata = {
        "name": f"{name}-{number:05}",
        "labels": {"serving.kserve.io/inferenceservice": name.removesuffix("-predictor")},
        "annotations": {"deployment.kubernetes.io/revision": str(number)},
        "ownerReferences": [{"kind": "Deployment", "name": name}],
    }
    return {"metadata": metadata, "spec": {"template": {"spec": spec}}, "status": {"availableReplicas": 0}}


def accept(route: Json) -> None:
    """What a gateway says of a route. One without a parent is nobody's."""
    if not route["spec"].get("parentRefs"):
        route["status"] = {"parents": []}
        return
    said = {"type": "Accepted", "status": "True", "observedGeneration": route["metadata"].get("generation", 1)}
    route["status"] = {"parents": [{"conditions": [said]}]}
