"""Clusters to begin with: the base's InferenceService, in a mode and with a history."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonpatch
import yaml

from tests.deployment.controller import Cluster, Json

ROOT = Path(__file__).resolve().parents[2]
VERSION = "/spec/predictor/containers/0/env/1/value"
PERCENT = "/spec/predictor/canaryTrafficPercent"


def manifest(mode: str = "Knative", name: str = "predictive-maintenance", version: str = "1") -> Json:
    """The base's InferenceService, in another mode, under another name, with another version."""
    service: Json = yaml.safe_load((ROOT / "kserve" / "base" / "inference-service.yaml").read_text("utf-8"))
    service["metadata"]["name"] = name
    service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = mode
    return patched(service, replace(VERSION, version))


def replace(path: str, value: Any) -> Json:
    return {"op": "replace", "path": path, "value": value}


def percent(value: int) -> Json:
    return {"op": "add", "path": PERCENT, "value": value}


REMOVE = {"op": "remove", "path": PERCENT}


def patched(service: Json, *operations: Json) -> Json:
    changed: Json = jsonpatch.apply_patch(service, list(operations))
    return changed


def running(*versions: str, mode: str = "Knative") -> Cluster:
    """A cluster in which these versions were rolled out, one after the other."""
    cluster = Cluster()
    for version in versions:
        cluster.apply(manifest(mode, version=version))
        cluster.settle()
    return cluster


def with_route(stable: str = "1", canary: str = "2", weight: int = 0) -> Cluster:
    """Two InferenceServices in Standard mode behind the overlay's route, and the canary's weight."""
    cluster = running(stable, mode="Standard")
    cluster.apply(manifest("Standard", "predictive-maintenance-canary", canary))
    cluster.settle()
    overlay = ROOT / "kserve" / "overlays" / "standard-canary"
    route: Json = yaml.safe_load((overlay / "http-route.yaml").read_text("utf-8"))
    for backend, share in zip(route["spec"]["rules"][-1]["backendRefs"], (100 - weight, weight), strict=True):
        backend["weight"] = share
    cluster.objects[f"httproute/{route['metadata']['name']}"] = route
    return cluster


@dataclass
class Shell:
    """Runs commands in a shell whose `kubectl` has this cluster."""

    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "cluster.json"

    def begin(self, cluster: Cluster) -> None:
        """The cluster to work on; a `kubectl` that knows it comes first on the PATH."""
        state = {"objects": cluster.objects, "broken": cluster.broken, "calls": []}
        self.file.write_text(json.dumps(state))
        program = self.folder / "kubectl"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m tests.deployment.kubectl "$@"\n')
        program.chmod(0o755)

    def run(self, *command: str, **environ: str) -> subprocess.CompletedProcess[str]:
        path = f"{self.folder}:{os.environ['PATH']}"
        known = {"FAKE_CLUSTER": str(self.file), "PATH": path, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            command, env={**os.environ, **known, **environ}, cwd=ROOT, capture_output=True, text=True, timeout=120
        )

    def canary(self, *words: str) -> str:
        """Runs scripts/canary.sh, which must succeed; what it said."""
        done = self.run("scripts/canary.sh", "--timeout", "5", *words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def refused(self, *words: str) -> str:
        """Runs scripts/canary.sh, which must fail before it changes anything; why."""
        done = self.run("scripts/canary.sh", "--timeout", "5", *words)
        assert done.returncode != 0, done.stdout
        assert not [call for call in self.calls() if call["words"][0] == "patch"]
        return done.stderr

    def calls(self) -> list[Json]:
        calls: list[Json] = json.loads(self.file.read_text())["calls"]
        return calls

    def cluster(self) -> Cluster:
        """The cluster as it is when all has settled."""
        cluster = self.cluster_as_it_is()
        cluster.settle()
        return cluster

    def cluster_as_it_is(self) -> Cluster:
        state = json.loads(self.file.read_text())
        return Cluster(state["objects"], state["broken"])

    def shares(self) -> dict[str, int]:
        return self.cluster().shares()

    def since_the_first_patch(self) -> list[dict[str, int]]:
        """The traffic after each call, from the first read after the first patch on."""
        calls = self.calls()
        first = next(i for i, call in enumerate(calls) if call["words"][0] == "patch")
        return [call["shares"] for call in calls[first + 1 :]]
