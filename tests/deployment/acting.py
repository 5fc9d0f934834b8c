"""The verbs of a canary against the model of the controllers, in one process: what they see, change and say."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from serving.rollout import backends, revisions
from serving.rollout.canary import Canary, Driver, Failed
from serving.rollout.decisions import Patch
from serving.rollout.kubectl import ClusterError, Rejected
from tests.deployment.controller import Cluster, Json
from tests.deployment.kubectl import Failure, apply_patch

NAME, ROUTE = "predictive-maintenance", "predictive-maintenance-split"


class Killed(BaseException):
    """The command was ended at this point."""


@dataclass
class Model:
    """A cluster as the verbs see it. The controllers take a pass after each look, so that the first one is of before."""

    cluster: Cluster
    before_patch: Callable[[Model], None] = lambda model: None
    after_patch: Callable[[Model], None] = lambda model: None
    each_look: Callable[[Model], None] = lambda model: None
    patches: list[Patch] = field(default_factory=list)
    shares: list[dict[str, int]] = field(default_factory=list)
    looks: int = 0

    def _looked(self) -> None:
        self.looks += 1
        self.each_look(self)
        self.cluster.step()
        self.shares.append(all_shares(self.cluster))

    def service(self, name: str) -> revisions.Service:
        key = f"inferenceservice/{name}"
        if key not in self.cluster.objects:
            raise ClusterError(f'Error from server (NotFound): inferenceservices.serving.kserve.io "{name}" not found')
        seen = revisions.observe(self.cluster.objects[key], [*self.cluster.revisions(name).values()])
        self._looked()
        return seen

    def route(self, name: str) -> backends.Route:
        objects = self.cluster.objects
        found = objects[f"httproute/{name}"]
        names = backends.names(found)
        services = {b: objects[f"inferenceservice/{b.removesuffix('-predictor')}"] for b in names}
        deployments = {b: objects[f"deployment/{b}"] for b in names if f"deployment/{b}" in objects}
        sets = [each for key, each in objects.items() if key.startswith("replicaset/")]
        seen = backends.observe(found, services, deployments, sets)
        self._looked()
        return seen

    def patch(self, patch: Patch) -> None:
        self.before_patch(self)
        found: Json = self.cluster.objects[patch.target]
        try:
            changed = apply_patch(found, "json", json.dumps(list(map(dict, patch.operations))))
        except Failure as failure:
            raise Rejected(str(failure)) from failure
        self.cluster.change(patch.target, changed)
        self.patches.append(patch)
        self.shares.append(all_shares(self.cluster))
        self.after_patch(self)

    def why(self, selector: str) -> str:
        return "pod p-1: CrashLoopBackOff"


def all_shares(cluster: Cluster) -> dict[str, int]:
    """The traffic by version: of the route if there is one, else of the InferenceService."""
    for key in cluster.objects:
        if key.startswith("httproute/"):
            return cluster.route_shares(key.removeprefix("httproute/"))
    return cluster.shares()


@dataclass
class Session:
    """One person at a terminal, whose clock goes on by what is slept."""

    model: Model
    route: str | None = None
    timeout: float = 60.0
    now: float = 0.0
    said: list[str] = field(default_factory=list)

    def run(self, *words: str) -> str:
        """Runs one command, which must succeed; its last sentence."""
        canary = Canary(self.model, NAME, self.route)
        Driver(canary, lambda patch: patch.target, self.said.append, self.said.append, self.timeout,
               clock=lambda: self.now, sleep=self._sleep).run([*words])  # fmt: skip
        return self.said[-1]

    def refused(self, *words: str) -> str:
        """Runs one command, which must fail; why."""
        try:
            self.run(*words)
        except Failed as error:
            return str(error)
        raise AssertionError(self.said)

    def _sleep(self, seconds: float) -> None:
        self.now += seconds


def session(cluster: Cluster, route: str | None = None, **more: float) -> Session:
    return Session(Model(cluster), route, **more)
