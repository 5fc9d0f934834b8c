"""What the manifests are compared with: our own command line, settings, routes and metrics."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import mlflow.environment_variables
import yaml
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from monitoring.metrics import Metrics
from monitoring.tally import Counts, Levels, Spreads
from serving.cli import parser
from serving.commands import serve, transform
from serving.crew import Alone
from serving.dataplane import DataPlane
from serving.errors import REASONS, MethodNotAllowed, NotFound
from serving.fleet import Fleet
from serving.lifecycle import State
from serving.named import Finder
from serving.settings import Settings, SettingsError
from serving.transport.http import Http
from serving.transport.webhook import Webhook
from tests.fakes import Registry
from tests.manifests.cluster import Bundle, Pod

#: Variables that mean something to what we are built on, and are neither ours nor MLflow's.
KNOWN = {
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "HOME",
    "STORAGE_URI",
    "PROTOCOL",
    "PYTHONPATH",
}
VERBS = {"serve": serve.settings_from, "transform": transform.settings_from}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
WORDS = {"MODEL_URI", "MODEL_NAME", "MODEL_VERSION"}


class Unusable(ValueError):
    """The server would not start with these words, variables and files; the text says why."""


def known_variable(name: str) -> bool:
    """Whether a variable's name is read by anybody. The values of ours are checked with the settings."""
    if name.startswith("HEADWAY_"):
        return "__" in name
    return name in KNOWN | WORDS or hasattr(mlflow.environment_variables, name)


def settings_of(pod: Pod, bundle: Bundle) -> Settings:
    """The settings that the server has in that pod: its flags, its variables, its file. Raises Unusable."""
    container = pod.container
    if container.get("command") != ["headway"]:
        raise Unusable(f"the command is {container.get('command')}, not [headway]")
    environ = {e["name"]: str(e.get("value", "a secret of the cluster")) for e in container.get("env", [])}
    try:
        args = parser().parse_args(container.get("args", []))
        with tempfile.TemporaryDirectory() as folder:
            if getattr(args, "config", None) is not None:
                args.config = _mounted(args.config, pod, bundle, Path(folder))
            return VERBS[args.verb](args, environ)
    except SystemExit as error:
        raise Unusable(f"headway {' '.join(container.get('args', []))}: the command refuses these words") from error
    except SettingsError as error:
        raise Unusable(str(error)) from error


def _mounted(path: Path, pod: Pod, bundle: Bundle, folder: Path) -> Path:
    """The file that a ConfigMap puts at that path, written to `folder`."""
    volume = volume_at(pod, str(path))
    config = bundle.named("ConfigMap", (volume or {}).get("configMap", {}).get("name", ""))
    text = (config or {}).get("data", {}).get(path.name)
    if text is None:
        raise Unusable(f"no ConfigMap puts a file at {path}")
    (folder / path.name).write_text(text, "utf-8")
    return folder / path.name


def volume_at(pod: Pod, path: str) -> dict[str, Any] | None:
    """The volume in which a path of the container lies, if it lies in one."""
    mounts = [m for m in pod.container.get("volumeMounts", []) if PurePosixPath(path).is_relative_to(m["mountPath"])]
    if not mounts:
        return None
    name = max(mounts, key=lambda m: len(m["mountPath"]))["name"]
    return next((v for v in pod.spec.get("volumes", []) if v["name"] == name), None)


@cache
def metrics() -> frozenset[str]:
    """Every series name on our page, by the code that writes it."""
    found = set()
    for metric in vars(_metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram | Counts | Levels | Spreads):
            family = next(iter(metric.describe()))
            found |= {family.name + suffix for suffix in SUFFIXES[family.type]}
    return frozenset(found)


def _metrics() -> Metrics:
    return Metrics(CollectorRegistry(), REASONS, [state.value for state in State])


def has_route(path: str, verb: str = "GET") -> bool:
    """Whether the server answers that path with anything but 404 or 405."""
    try:
        _http()._route(verb, path)
    except (NotFound, MethodNotAllowed):
        return False
    return True


@cache
def _http() -> Http:
    found = _metrics()
    fleet = Fleet({}, None, 1.0, lambda: 0, Finder(Registry()))
    crew = Alone(fleet, found)

    async def no_app(*_: Any) -> None:
        raise AssertionError("only CloudEvents go to KServe's app")

    webhook = Webhook("a secret", lambda name: 0, lambda outcome: None)
    return Http(DataPlane(fleet, found, crew), found, no_app, 1, crew.exposition, webhook)


def series_of(expression: str) -> Iterator[str]:
    """The series that a PromQL expression names."""
    bare = re.sub(r'"[^"]*"|\boffset \w+|\{[^}]*\}|\[[^\]]*\]|\b(by|without|on|ignoring)\s*\([^)]*\)', " ", expression)
    for match in re.finditer(r"[a-zA-Z_:][\w:]*(?!\w)(?!\s*\()", bare):
        if match.group() not in {"by", "and", "or", "unless", "bool"}:
            yield match.group()


def quantity(value: str | int) -> float:
    """A Kubernetes quantity as a number: CPUs, or bytes."""
    number, suffix = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", str(value)).groups()  # type: ignore[union-attr]
    powers = {"": 1, "m": 0.001, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * powers[suffix]


def config_values(bundle: Bundle) -> Iterator[tuple[str, Any]]:
    """Every file of every ConfigMap, parsed."""
    for found in bundle.of("ConfigMap"):
        for name, text in found.get("data", {}).items():
            yield f"{found['metadata']['name']}/{name}", yaml.safe_load(text)
