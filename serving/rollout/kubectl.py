"""The cluster, asked and changed by the user's own `kubectl`: their context, their rights."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from serving.rollout import backends, revisions
from serving.rollout.decisions import Patch

#: One command: kubectl's own timeout, and what ends it if that does not.
REQUEST_SECONDS, COMMAND_SECONDS = 20, 30
#: The same for one that applies a whole folder.
APPLY_SECONDS = 180
#: What kubectl says when nobody knows whether the cluster has done what it was asked.
UNDECIDED = re.compile(
    r"time[d ]*out|deadline exceeded|EOF|connection (reset|refused|lost)|InternalError|may still be", re.IGNORECASE
)
LOG_LINES = 200
Json = Mapping[str, Any]


class ClusterError(Exception):
    """The cluster did not do what it was asked; the text is kubectl's own."""


class Rejected(ClusterError):
    """A patch was not applied; nothing of it was."""


class NoAnswer(ClusterError):
    """kubectl was ended, because it did not come to an end."""


class Cluster(Protocol):
    """What the verbs need of a cluster: Kubernetes by `kubectl`, or a model of it."""

    def service(self, name: str) -> revisions.Service:
        """An InferenceService with its revisions. Raises ClusterError."""
        ...

    def route(self, name: str) -> backends.Route:
        """A weighted route with what is behind it. Raises ClusterError or NoSplit."""
        ...

    def patch(self, patch: Patch) -> None:
        """Changes an object. Raises Rejected; ClusterError if nobody knows whether it was changed."""
        ...

    def why(self, selector: str) -> str:
        """Why the pods with that label are not ready: a reason and a last line of a log, or nothing."""
        ...


@dataclass(frozen=True, slots=True)
class Kubectl:
    """`kubectl` on the PATH, in one namespace."""

    namespace: str
    #: Whether each command names the namespace; objects that are applied say theirs.
    bound: bool = True
    #: What one command of a namespace may take.
    seconds: float = COMMAND_SECONDS

    def service(self, name: str) -> revisions.Service:
        """One question for the service, one for its revisions; where there is no Knative, its kinds are unknown."""
        found = self.get(f"inferenceservice/{name}")
        if not revisions.is_knative(revisions.mode_of(found)):
            return revisions.observe(found, [])
        return revisions.observe(found, self.list("revisions.serving.knative.dev", _of(name)))

    def route(self, name: str) -> backends.Route:
        """The route, and for each of its backends the service, the Deployment and its ReplicaSets."""
        found = self.get(f"httproute/{name}")
        names = backends.names(found)
        with ThreadPoolExecutor(4) as pool:
            services = list(pool.map(lambda n: self.get(f"inferenceservice/{n.removesuffix('-predictor')}"), names))
            deployments = list(pool.map(self._deployment, names))
            sets = list(pool.map(lambda n: self.list("replicasets", _of(n.removesuffix("-predictor"))), names))
        known = {name: found for name, found in zip(names, deployments, strict=True) if found is not None}
        return backends.observe(found, dict(zip(names, services, strict=True)), known, [s for own in sets for s in own])

    def _deployment(self, name: str) -> Json | None:
        return self._read("get", f"deployment/{name}", "--ignore-not-found", "-o", "json")

    def patch(self, patch: Patch) -> None:
        """A JSON patch."""
        try:
            self.run(*self._patching(patch))
        except ClusterError as error:
            if UNDECIDED.search(str(error)) or isinstance(error, NoAnswer):
                raise
            raise Rejected(str(error)) from error

    def shown(self, patch: Patch) -> str:
        """The command of a patch, as it can be pasted."""
        return shlex.join(["kubectl", *self._patching(patch), "-n", self.namespace])

    def _patching(self, patch: Patch) -> Sequence[str]:
        return "patch", patch.target, "--type=json", "-p", json.dumps(list(map(dict, patch.operations)))

    def why(self, selector: str) -> str:
        """Of the newest pod that is not ready; those that are leaving do not count."""
        try:
            pods = [each for each in self.list("pods", selector) if "deletionTimestamp" not in each["metadata"]]
        except ClusterError as error:
            return f"its pods cannot be read: {error}"
        for pod in sorted(pods, key=lambda each: str(each["metadata"].get("creationTimestamp", "")), reverse=True):
            if said := reason_of(pod):
                line = self._last_line(pod["metadata"]["name"])
                return f"pod {pod['metadata']['name']}: {said}" + (f"; its last line: {line}" if line else "")
        return "" if pods else "it has no pod"

    def _last_line(self, pod: str) -> str:
        try:
            return telling(self.run("logs", f"pod/{pod}", f"--tail={LOG_LINES}", "--all-containers=true").splitlines())
        except ClusterError:
            return ""

    def get(self, what: str) -> Json:
        """One object, by `kind/name`. Raises ClusterError."""
        return self._read("get", what, "-o", "json") or {}

    def list(self, kind: str, selector: str) -> Sequence[Json]:
        """The objects of a kind with a label. Raises ClusterError."""
        found: Sequence[Json] = (self._read("get", kind, "-l", selector, "-o", "json") or {})["items"]
        return found

    def _read(self, *words: str) -> Json | None:
        said = self.run(*words)
        try:
            found: Json | None = json.loads(said) if said.strip() else None
        except ValueError:
            raise ClusterError(
                f"`kubectl {words[0]}` printed something that is not JSON: {said[:200].strip()}"
            ) from None
        return found

    def run(self, *words: str, given: str | None = None) -> str:
        """What kubectl prints. `given` is its standard input. Raises ClusterError."""
        command = [
            "kubectl",
            *words,
            *(["-n", self.namespace, f"--request-timeout={REQUEST_SECONDS}s"] if self.bound else []),
        ]
        most = self.seconds if self.bound else APPLY_SECONDS
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, encoding="utf-8", errors="replace", timeout=most, input=given
            )
        except FileNotFoundError:
            raise ClusterError("There is no kubectl on the PATH.") from None
        except OSError as error:
            raise ClusterError(f"kubectl cannot be run: {error}") from None
        except subprocess.TimeoutExpired:
            raise NoAnswer(f"`kubectl {words[0]}` did not answer within {most:g} seconds.") from None
        if done.returncode:
            raise ClusterError(done.stderr.strip()[-1000:] or f"`kubectl {words[0]}` failed.")
        if words[0] in ("apply", "patch"):  # fields that the cluster does not know, pods that it will not admit
            sys.stderr.write(done.stderr)
        return done.stdout


def _of(service: str) -> str:
    return f"serving.kserve.io/inferenceservice={service}"


def reason_of(pod: Json) -> str:
    """Why a pod is not ready: what its containers wait for or ended with, or what keeps it from a node; nothing if it is."""
    status = pod.get("status", {})
    for container in (*status.get("initContainerStatuses", []), *status.get("containerStatuses", [])):
        state = container.get("state", {})
        waiting, ended = (
            state.get("waiting"),
            state.get("terminated") or container.get("lastState", {}).get("terminated"),
        )
        if waiting and waiting.get("reason") not in (None, "PodInitializing", "ContainerCreating"):
            return _said(waiting)
        if ended and not container.get("ready"):
            return _said(ended)
    conditions = {each["type"]: each for each in status.get("conditions", [])}
    if conditions.get("PodScheduled", {}).get("status") == "False":
        return _said(conditions["PodScheduled"])
    return (
        ""
        if conditions.get("Ready", {}).get("status") == "True"
        else f"{status.get('phase', 'unknown')}, not ready yet"
    )


def telling(lines: Sequence[str]) -> str:
    """The last line of a log that is a warning or an error, in its own words; else the last line."""
    for line in reversed(lines):
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if isinstance(said, dict) and said.get("level") in ("WARNING", "ERROR", "CRITICAL"):
            facts = [str(said[key]) for key in ("reason", "error", "problem", "cause") if said.get(key)]
            return ": ".join([str(said.get("message", "")), *facts])[:500]
    return lines[-1].strip()[-500:] if lines else ""


def _said(state: Json) -> str:
    return ": ".join(filter(None, [state.get("reason", ""), state.get("message", "")[:300]]))
