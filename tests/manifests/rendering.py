"""The manifests as they are applied: rendered by `kubectl kustomize`, or, for the base, read file by file."""

from __future__ import annotations

import copy
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
KSERVE = ROOT / "kserve"
KUBECTL = shutil.which("kubectl")
OVERLAYS = sorted(path.parent.name for path in KSERVE.glob("overlays/*/kustomization.yaml"))
ADAPTER = KSERVE / "overlays" / "standard-hpa" / "prometheus-adapter-values.yaml"

Object = dict[str, Any]


def folder(name: str) -> Path:
    """Where the base or an overlay lies."""
    return KSERVE / "base" if name == "base" else KSERVE / "overlays" / name


def render(name: str) -> list[Object]:
    """The objects of the base or of an overlay, the caller's own to change. An overlay needs kubectl."""
    return copy.deepcopy(_rendered(name) if KUBECTL or name != "base" else read_base())


@cache
def _rendered(name: str) -> list[Object]:
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(folder(name))], check=True, capture_output=True, text=True, timeout=60
    )
    return list(yaml.safe_load_all(done.stdout))


def _namespace() -> str:
    component = KSERVE / "components" / "namespace" / "kustomization.yaml"
    return str(yaml.safe_load(component.read_text("utf-8"))["namespace"])


def read_base() -> list[Object]:
    """The base without kubectl: it has nothing to render but the namespace. Its own files, and nothing else."""
    kustomization = yaml.safe_load((folder("base") / "kustomization.yaml").read_text("utf-8"))
    objects = [yaml.safe_load((folder("base") / name).read_text("utf-8")) for name in kustomization["resources"]]
    for found in objects:
        if found["kind"] != "Namespace":
            found["metadata"]["namespace"] = _namespace()
    return objects
