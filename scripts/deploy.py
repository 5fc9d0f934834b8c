"""Applies an overlay, waits until what it makes serves the version that it names, and asks that for a prediction.

It needs Python, kubectl, and nothing installed. What is waited for is the workload of this apply: its Deployment's or
revision's own pods, with the version of the manifest; not whatever else is ready in the namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.rollout.canary import Driver, Failed
from serving.rollout.command import seconds
from serving.rollout.decisions import Decision, Done, Patch, Wait
from serving.rollout.kubectl import ClusterError, Kubectl
from serving.rollout.revisions import Service, version_of

ROOT = Path(__file__).resolve().parent.parent
OURS = "app.kubernetes.io/name"
FORWARD_SECONDS = 30


@dataclass(frozen=True)
class Workload:
    """One Deployment or InferenceService as it was applied; `kubectl` is bound to its namespace."""

    kind: str
    name: str
    kubectl: Kubectl
    applied: dict[str, Any]

    @property
    def ours(self) -> bool:
        """Whether Headway runs in it."""
        return bool(self.applied["metadata"].get("labels", {}).get(OURS) == "headway")

    @property
    def version(self) -> str:
        """The version that the manifest names."""
        spec = self.applied["spec"]
        pod = spec["predictor"] if self.kind == "inferenceservice" else spec["template"]["spec"]
        return version_of((pod.get("containers") or [{}])[0])

    @property
    def is_knative(self) -> bool:
        """Whether KServe makes revisions of it."""
        mode = self.applied["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode")
        return mode in ("Knative", "Serverless")

    # -- waiting: what a Driver asks ---------------------------------------------------------------------------------

    @property
    def cluster(self) -> Kubectl:
        """Who says why pods are not ready."""
        return self.kubectl

    def observe(self) -> Any:
        """The revisions of an InferenceService, or the Deployments of either kind. Raises ClusterError."""
        if self.is_knative:
            return self.kubectl.service(self.name)
        if self.kind == "deployment":
            return Deployed([self.kubectl.get(f"deployment/{self.name}")], self.version)
        found = [
            self._deployment(component)
            for component in ("predictor", "transformer")
            if component in self.applied["spec"]
        ]
        return Deployed(found, self.version)

    def _deployment(self, component: str) -> Any:
        try:
            return self.kubectl.get(f"deployment/{self.name}-{component}")
        except ClusterError as error:
            if "NotFound" not in str(error):
                raise
            return None

    def decide(self, words: Sequence[str], seen: Any, *, begun: bool) -> Decision:
        """Until the pods of this template, all of them and no others, are there."""
        if isinstance(seen, Deployed):
            return seen.decision(self.name)
        return _of_revisions(seen)


def _of_revisions(service: Service) -> Decision:
    newest = service.newest
    if stale := service.stale:
        return Wait(stale, newest.selector if newest else None)
    assert newest is not None
    if service.ready != newest.name or not newest.complete:
        why = f": {newest.why_not}" if newest.why_not else ""
        return Wait(f"revision {newest.name} (version {newest.version}) has its pods{why}", newest.selector)
    if service.percent is None and service.rolled_out != newest.name:
        return Wait(f"revision {newest.name} is rolled out", newest.selector)
    return Done(service.now)


@dataclass(frozen=True)
class Deployed:
    """Deployments at one moment; None is one that KServe has not made yet. `version` is that of the manifest."""

    found: list[Any]
    version: str

    @property
    def now(self) -> str:
        """How many pods there are."""
        said = [
            f"{d['metadata']['name']} has {d.get('status', {}).get('availableReplicas', 0)} pods"
            for d in self.found
            if d
        ]
        return f"Now {', '.join(said) or 'there is no Deployment'}."

    def decision(self, name: str) -> Decision:
        """What is still missing of the first that is not complete."""
        for each in self.found:
            if each is None:
                return Wait(f"KServe has made the Deployment of {name}")
            if missing := self._missing(each):
                return Wait(missing, ",".join(f"{k}={v}" for k, v in each["spec"]["selector"]["matchLabels"].items()))
        return Done(self.now)

    def _missing(self, found: Any) -> str | None:
        name, status, wanted = found["metadata"]["name"], found.get("status", {}), found["spec"].get("replicas", 1)
        template = version_of(found["spec"]["template"]["spec"]["containers"][0])
        if self.version and template and template != self.version:
            return f"Deployment {name} takes version {self.version}"
        if status.get("observedGeneration", 0) < found["metadata"].get("generation", 0):
            return f"Deployment {name} is looked at"
        if found["spec"].get("paused"):
            return f"Deployment {name} is resumed, which is paused"
        updated, old = status.get("updatedReplicas", 0), status.get("replicas", 0) - status.get("updatedReplicas", 0)
        if updated < wanted or status.get("availableReplicas", 0) < wanted:
            return (
                f"{wanted} pods of Deployment {name} are ready; {min(updated, status.get('availableReplicas', 0))} are"
            )
        return f"{old} pods of before are gone from Deployment {name}" if old > 0 else None


# -- the steps ------------------------------------------------------------------------------------------------------


def folder_of(overlay: str) -> Path:
    """The kustomization of a name or a path. Raises Failed."""
    for candidate in (ROOT / "kserve" / "overlays" / overlay, ROOT / "kserve" / overlay, Path(overlay)):
        if (candidate / "kustomization.yaml").is_file():
            return candidate
    raise Failed(f"There is no kustomization in kserve/overlays/{overlay}, nor in {overlay}.")


def apply(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Applies all of it, its namespaces first; the objects as the cluster has them then. Raises Failed, ClusterError."""
    kubectl = Kubectl(args.namespace, bound=False)
    shown = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    rendered = kubectl.run("kustomize", str(folder))
    spaces = [part for part in rendered.split("\n---\n") if re.search(r"^kind: Namespace$", part, re.MULTILINE)]
    # kubectl takes no namespace beside one that an object names.
    where = [] if re.search(r"^  namespace: ", rendered, re.MULTILINE) else ["-n", args.namespace]
    print(f"+ {shlex.join(['kubectl', 'apply', '-k', str(shown), *where])}", flush=True)
    if args.dry_run:
        return []
    if spaces:
        kubectl.run("apply", "-f", "-", given="\n---\n".join(spaces))
    found = json.loads(kubectl.run("apply", "-k", str(folder), "-o", "json", *where))
    return list(found["items"] if found["kind"] == "List" else [found])


def workloads(objects: list[dict[str, Any]], namespace: str) -> list[Workload]:
    """What gets ready, each in its own namespace; ours last, because they ask the others."""
    made = [
        Workload(
            each["kind"].lower(), each["metadata"]["name"], Kubectl(each["metadata"].get("namespace", namespace)), each
        )
        for each in objects
        if each["kind"] in ("InferenceService", "Deployment")
    ]
    return sorted(made, key=lambda each: each.ours)


def wait_for(workload: Workload, args: argparse.Namespace) -> None:
    """Raises Failed with what the cluster says of it."""
    driver = Driver(workload, _no_patch, print, _err, args.timeout, elsewise="")
    try:
        driver.run(["scripts/deploy.sh", args.overlay])
    except Failed as error:
        raise Failed("\n".join([str(error), *_complaints(workload)])) from error


def _no_patch(patch: Patch) -> str:
    raise AssertionError(patch)  # a deployment only waits


def _complaints(workload: Workload) -> Iterator[str]:
    """Conditions that are not True, and the last warnings of the pods."""
    with contextlib.suppress(ClusterError):
        found = workload.kubectl.get(f"{workload.kind}/{workload.name}")
        for each in found.get("status", {}).get("conditions", []):
            if each["status"] != "True" and each["type"] != "Stopped":
                yield f"  {each['type']} is {each['status']}: {each.get('message') or each.get('reason') or 'no reason is given'}"
        yield from _warnings(workload)


def _warnings(workload: Workload) -> Iterator[str]:
    words = ("get", "events", "--field-selector=type=Warning", "--sort-by=.lastTimestamp", "-o", "json")
    events = json.loads(workload.kubectl.run(*words))["items"]
    own = [each for each in events if each["involvedObject"].get("name", "").startswith(workload.name)]
    for each in own[-3:]:
        yield f"  {each['involvedObject']['name']}: {each.get('reason')}: {each.get('message', '')[:300]}"


def pod_of(workload: Workload) -> str:
    """A ready pod of the newest template of this workload. Raises Failed."""
    kubectl = workload.kubectl
    if workload.is_knative:
        newest = kubectl.service(workload.name).newest
        selector = newest.selector if newest else ""
    else:
        name = workload.name if workload.kind == "deployment" else f"{workload.name}-predictor"
        labels = kubectl.get(f"deployment/{name}")["spec"]["selector"]["matchLabels"]
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
    pods = [
        each for each in kubectl.list("pods", selector) if _is_ready(each) and _version_in(each) == workload.version
    ]
    if not pods:
        raise Failed(f"No pod of {workload.name} with version {workload.version or '(none)'} is ready.")
    return str(max(pods, key=lambda each: each["metadata"].get("creationTimestamp", ""))["metadata"]["name"])


def _is_ready(pod: Any) -> bool:
    conditions = pod.get("status", {}).get("conditions", [])
    leaving = "deletionTimestamp" in pod["metadata"]
    return not leaving and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def _version_in(pod: Any) -> str:
    return next((version for c in pod["spec"]["containers"] if (version := version_of(c))), "")


@contextlib.contextmanager
def forwarded(workload: Workload) -> Iterator[str]:
    """A URL of this machine that leads to a pod of the workload. Raises Failed."""
    command = ["kubectl", "port-forward", f"pod/{pod_of(workload)}", "-n", workload.kubectl.namespace, ":8080"]
    print(f"+ {' '.join(command)}", flush=True)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        yield f"http://127.0.0.1:{_port_of(process)}"
    finally:
        process.terminate()
        process.wait(10)


def _port_of(process: subprocess.Popen[str], seconds: float = FORWARD_SECONDS) -> str:
    """Raises Failed, also when it says nothing for a while: reading has no bound of its own."""
    assert process.stdout is not None
    bound, said = threading.Timer(seconds, process.kill), []
    bound.start()
    try:
        while line := process.stdout.readline():
            said.append(line)
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                return found[1]
    finally:
        bound.cancel()
    raise Failed(f"The port was not forwarded: {''.join(said).strip() or 'kubectl said nothing'}")


def smoke(workload: Workload, url: str, flags: Sequence[str]) -> int:
    """Runs scripts/smoke.sh, which also compares the version, where the manifest has a number."""
    expected = ["--version", workload.version] if workload.version.isdigit() else []
    command = ["scripts/smoke.sh", url, *expected, *flags]
    print(f"+ {' '.join(command)}", flush=True)
    return subprocess.run(command, cwd=ROOT, check=False).returncode


def deploy(args: argparse.Namespace) -> int:
    """All of it; the exit code."""
    objects = apply(args, folder_of(args.overlay))
    if args.dry_run:
        _err("# nothing was changed; without --dry-run it is applied, waited for, and asked for a prediction")
        return 0
    made = workloads(objects, args.namespace)
    for workload in made:
        print(f"# {workload.kind}/{workload.name} in {workload.kubectl.namespace}", file=sys.stderr, flush=True)
        wait_for(workload, args)
    ours = [each for each in made if each.ours]
    if not ours:
        _err("applied; nothing of it answers predictions")
        return 0
    codes = [_asked(each, args) for each in (ours[:1] if args.url else ours)]
    return max(codes)


def _asked(workload: Workload, args: argparse.Namespace) -> int:
    if args.url:
        return smoke(workload, args.url, args.smoke)
    with forwarded(workload) as url:
        return smoke(workload, url, args.smoke)


def _err(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The words; what stands behind `--` is for smoke.sh."""
    parser = argparse.ArgumentParser(prog="scripts/deploy.sh", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
                                     epilog="What stands behind -- goes to scripts/smoke.sh.")  # fmt: skip
    parser.add_argument(
        "overlay", metavar="OVERLAY", help="a folder of kserve/overlays, `base`, or one with a kustomization"
    )
    parser.add_argument("--url", help="smoke test through a gateway, instead of a port forwarded to a pod")
    parser.add_argument(
        "-n",
        "--namespace",
        default="headway",
        metavar="NS",
        help="where they lie if the overlay says nothing (%(default)s)",
    )
    parser.add_argument("--timeout", type=seconds, default=600.0, metavar="SECONDS", help="bound for each wait (600)")
    parser.add_argument("--dry-run", action="store_true", help="show the command, change nothing")
    own, _, smoke_words = "\0".join(words).partition("\0--\0") if "--" in words else ("\0".join(words), "", "")
    args = parser.parse_args([word for word in own.split("\0") if word and word != "--"])
    args.smoke = [word for word in smoke_words.split("\0") if word]
    return args


def main() -> int:
    """Runs it; 0 only if all is well."""
    args = parse(sys.argv[1:])
    try:
        return deploy(args)
    except (Failed, ClusterError) as error:
        _err(str(error))
        return 1


if __name__ == "__main__":
    sys.exit(main())
