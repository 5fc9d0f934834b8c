"""A `kubectl` for one file: the verbs, kinds and JSONPaths that the scripts and the documentation use.

Run as a program, with the cluster in the file that FAKE_CLUSTER names. The controllers take one pass at every read, so
that who waits sees things change; nothing happens between two commands. Every call is noted with the traffic after it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from tests.deployment.controller import Cluster, Json
from tests.manifests.rendering import read_base

KINDS = {"events": "event", "isvc": "inferenceservice", "inferenceservices": "inferenceservice", "revisions": "revision", "pods": "pod",
         "replicasets": "replicaset"}  # fmt: skip


class Failure(Exception):
    """What the real one prints, before it exits 1."""


def jsonpath(template: str, value: Any) -> str:
    """Kubernetes' JSONPath templates: paths with indices, `[*]` and one filter, `range`, quoted text."""
    out, rest = "", template
    while rest:
        text, brace, rest = rest.partition("{")
        out += text
        if not brace:
            break
        inner, _, rest = rest.partition("}")
        if inner.startswith("range "):
            body, _, rest = rest.partition("{end}")
            out += "".join(jsonpath(body, item) for item in select(inner.removeprefix("range ").strip(), value))
        elif inner.startswith('"'):
            out += json.loads(inner)
        else:
            out += " ".join(shown(found) for found in select(inner, value))
    return out


def select(path: str, value: Any) -> list[Any]:
    """Every value at a path such as `.a.b[0].c`, `.a[*].b` or `.a[?(@.name=="x")].b`; what is missing is none."""
    found = [value]
    for step in re.findall(r"\.(?:[\w/-]|\\\.)+|\[[^\]]+\]", path):
        found = [below for here in found for below in _below(step, here)]
    return found


def _below(step: str, here: Any) -> list[Any]:
    if step.startswith("."):
        key = step[1:].replace("\\.", ".")
        return [here[key]] if key in here else []
    if step == "[*]":
        return list(here)
    if match := re.fullmatch(r"\[\?\(@\.(\w+)==[\"']?([^\"']*?)[\"']?\)\]", step):
        return [item for item in here if shown(item.get(match[1])) == match[2]]
    if int(step[1:-1]) >= len(here):
        raise Failure(f"error: array index out of bounds: index {step[1:-1]}, length {len(here)}")
    return [here[int(step[1:-1])]]


def shown(value: Any) -> str:
    """As kubectl prints it: strings bare, the rest as compact JSON with sorted keys."""
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)


def merged(target: Any, change: Any) -> Any:
    """A JSON merge patch (RFC 7396)."""
    if not isinstance(change, dict):
        return change
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in change.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def apply_patch(target: Json, kind: str, text: str) -> Json:
    """A patch of type `json` or `merge`. Raises Failure as the API server would."""
    if kind == "strategic":
        raise Failure("error: application/strategic-merge-patch+json is not supported by this resource")
    try:
        changed: Json = merged(target, json.loads(text)) if kind == "merge" else jsonpatch.apply_patch(target, text)
    except (jsonpatch.JsonPatchException, jsonpatch.JsonPointerException) as error:
        raise Failure(f"The request is invalid: the server rejected our request: {error}") from error
    return changed


def parser() -> argparse.ArgumentParser:
    """The flags that we use, and no others: an unknown one is an error here too."""
    flags = argparse.ArgumentParser(prog="kubectl", allow_abbrev=False)
    verbs = flags.add_subparsers(dest="verb", required=True)
    for verb, (_, own) in VERBS.items():
        one = verbs.add_parser(verb, allow_abbrev=False)
        one.add_argument("words", nargs="*")
        one.add_argument("-n", "--namespace")
        one.add_argument("--request-timeout")
        one.add_argument("--ignore-not-found", action="store_true")
        for flag in own:
            one.add_argument(flag, default="")
    return flags


def named(words: list[str]) -> str:
    """`isvc NAME` and `isvc/NAME` are one."""
    kind, _, name = "/".join(words).partition("/")
    kind = kind.partition(".")[0]
    return f"{KINDS.get(kind, kind)}/{name}"


def find(cluster: Cluster, words: list[str]) -> tuple[str, Json]:
    key = named(words)
    if key not in cluster.objects:
        kind, name = key.split("/")
        raise Failure(f'Error from server (NotFound): {kind}s "{name}" not found')
    return key, cluster.objects[key]


def get(cluster: Cluster, given: argparse.Namespace) -> str:
    """What is there; the controllers take a pass after it, so that the first look after a patch is of before."""
    if given.words == ["events"]:
        return json.dumps({"items": of_kind(cluster, "event")})
    try:
        found = deepcopy(labelled(cluster, given) if given.l else find_or_none(cluster, given))
    finally:
        cluster.step()
    if given.o == "json":
        return json.dumps(found) if found is not None else ""
    return jsonpath(given.o.removeprefix("jsonpath="), found)


def find_or_none(cluster: Cluster, given: argparse.Namespace) -> Json | None:
    try:
        return find(cluster, given.words)[1]
    except Failure:
        if given.ignore_not_found:
            return None
        raise


def labelled(cluster: Cluster, given: argparse.Namespace) -> Json:
    """A list of all objects of a kind that have a label."""
    kind = named([*given.words, ""]).partition("/")[0]
    key, _, value = given.l.partition("=")
    own = cluster.pods() if kind == "pod" else of_kind(cluster, kind)
    return {"kind": "List", "items": [o for o in own if o["metadata"].get("labels", {}).get(key) == value]}


def of_kind(cluster: Cluster, kind: str) -> list[Json]:
    return [each for name, each in cluster.objects.items() if name.startswith(f"{kind}/")]


def kustomize(cluster: Cluster, given: argparse.Namespace) -> str:
    """What a folder makes: rendered by the real one, where that is; else the base alone."""
    return yaml.safe_dump_all(rendered(given.words[0]))


def rendered(folder: str) -> list[Json]:
    if real := os.environ.get("REAL_KUBECTL"):
        done = subprocess.run([real, "kustomize", folder], check=True, capture_output=True, text=True, timeout=60)
        return list(yaml.safe_load_all(done.stdout))
    assert Path(folder).name == "base"
    return read_base()


def apply(cluster: Cluster, given: argparse.Namespace) -> str:
    """Stores what a folder or standard input says; a list of it as it is then."""
    objects = list(yaml.safe_load_all(sys.stdin.read())) if given.f else rendered(given.k)
    for each in objects:
        key = f"{each['kind'].lower()}/{each['metadata']['name']}"
        if each["kind"] == "InferenceService":
            cluster.apply(each)
        else:
            cluster.objects[key] = {**cluster.objects.get(key, {}), **each}
    return json.dumps({"kind": "List", "items": objects})


def forward(cluster: Cluster, given: argparse.Namespace) -> str:
    """Says where a port leads, and stays."""
    sys.stdout.write(f"Forwarding from 127.0.0.1:{os.environ['FAKE_PORT']} -> 8080\n")
    sys.stdout.flush()
    time.sleep(60)
    return ""


def logs(cluster: Cluster, given: argparse.Namespace) -> str:
    return ""


def patch(cluster: Cluster, given: argparse.Namespace) -> str:
    key, found = find(cluster, given.words)
    changed = apply_patch(found, given.type or "strategic", given.p)
    cluster.change(key, changed)
    return f"{key} patched\n"


def wait(cluster: Cluster, given: argparse.Namespace) -> str:
    """Until a JSONPath has a value, or the controllers have nothing left to do."""
    cluster.settle()
    key, found = find(cluster, given.words)
    path, _, wanted = vars(given)["for"].removeprefix("jsonpath=").rpartition("=")
    if jsonpath(path, found) != wanted:
        raise Failure(f"error: timed out waiting for the condition on {key}")
    return f"{key} condition met\n"


def rollout(cluster: Cluster, given: argparse.Namespace) -> str:
    key, _ = find(cluster, given.words[1:])
    return f"{key} successfully rolled out\n"


VERBS: dict[str, tuple[Callable[[Cluster, argparse.Namespace], str], list[str]]] = {
    "get": (get, ["-o", "-l", "--field-selector", "--sort-by"]),
    "kustomize": (kustomize, []),
    "apply": (apply, ["-f", "-k", "-o"]),
    "port-forward": (forward, []),
    "logs": (logs, ["--tail", "--all-containers"]),
    "patch": (patch, ["--type", "-p"]),
    "wait": (wait, ["--for", "--timeout"]),
    "rollout": (rollout, ["--timeout"]),
}


def all_shares(cluster: Cluster) -> dict[str, int]:
    """The traffic by version: of the route if there is one, else of the InferenceService."""
    for route in (key.removeprefix("httproute/") for key in cluster.objects if key.startswith("httproute/")):
        return cluster.route_shares(route)
    return cluster.shares() if of_kind(cluster, "inferenceservice") else {}


def main() -> int:
    file = Path(os.environ["FAKE_CLUSTER"])
    given = parser().parse_args([word for word in sys.argv[1:] if word != ":8080"])
    with (file.parent / "lock").open("w") as lock:  # the real one may be asked several things at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return act(file, given)


def act(file: Path, given: argparse.Namespace) -> int:
    """One verb on the cluster in the file."""
    state = json.loads(file.read_text())
    cluster = Cluster(state["objects"], state["broken"])
    try:
        sys.stdout.write(VERBS[given.verb][0](cluster, given))
    except Failure as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    finally:
        calls = [*state["calls"], {"words": sys.argv[1:], "shares": all_shares(cluster)}]
        file.write_text(json.dumps({"objects": cluster.objects, "broken": cluster.broken, "calls": calls}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
