"""Rules about the pods that Headway runs in. Each yields a sentence for everything that is wrong."""

from __future__ import annotations

import configparser
import re
from collections.abc import Iterator
from typing import Any

from serving.settings import Settings
from tests.manifests.cluster import Bundle, Pod, selects, walk
from tests.manifests.rendering import ROOT
from tests.manifests.truth import (
    Unusable,
    config_values,
    has_route,
    known_variable,
    quantity,
    settings_of,
    volume_at,
)

LIVE = {"/", "/health", "/health/live", "/v2/health/live"}
READY = {"/ready", "/health/ready", "/v2/health/ready"}
#: Knative's queue-proxy lets its own preStop, which ours stands behind, take this long.
QUEUE_PROXY_SECONDS = 30
#: How long a Deployment, and a Knative revision, may take before they count as failed.
PROGRESS_SECONDS = 600
#: What the transports get beyond the drain's bound, to say that it has passed.
AFTERWARDS = 2
SECRETS = {"headway-mlflow", "headway-object-store", "headway-webhook"}
SECRET_WORDS = re.compile(r"PASSWORD|TOKEN|SECRET|ACCESS_KEY|CREDENTIAL", re.IGNORECASE)


def usable(pod: Pod, bundle: Bundle) -> Settings | None:
    """The pod's settings, or None where the rule `start` already complains."""
    try:
        return settings_of(pod, bundle)
    except Unusable:
        return None


def started(bundle: Bundle) -> Iterator[tuple[Pod, Settings]]:
    """The pods that can start, with their settings."""
    for pod in bundle.ours:
        settings = usable(pod, bundle)
        if settings is not None:
            yield pod, settings


def start(bundle: Bundle) -> Iterator[str]:
    """The command accepts its words, the variables are settings, the file loads."""
    for pod in bundle.ours:
        try:
            settings_of(pod, bundle)
        except Unusable as error:
            yield f"{pod.owner}: {error}"
        for variable in pod.container.get("env", []):
            if not known_variable(variable["name"]):
                yield f"{pod.owner}: nobody reads {variable['name']}"
        if pod.container.get("terminationMessagePolicy") != "FallbackToLogsOnError":
            yield f"{pod.owner}: a process that ends with an error leaves no message"


#: Seconds that a process which does not answer its liveness probe has to end.
LONGEST_END = 15


def probes(bundle: Bundle) -> Iterator[str]:
    """Three probes, on routes that exist: readiness on the one that turns red, the others on the one that does not."""
    for pod in bundle.ours:
        settings = usable(pod, bundle)
        for name, routes in (("startupProbe", LIVE), ("readinessProbe", READY), ("livenessProbe", LIVE)):
            path, port = asked(pod.container.get(name, {}))
            if path is None:
                yield f"{pod.owner}: {name} asks no route"
            elif not has_route(path):
                yield f"{pod.owner}: {name} asks {path}, which does not exist"
            elif path not in routes:
                yield f"{pod.owner}: {name} asks {path}, which answers another question"
            elif settings and port != settings.server.port:
                yield f"{pod.owner}: {name} asks port {port}, where HTTP is not"
        own = pod.container.get("livenessProbe", {}).get("terminationGracePeriodSeconds")
        if pod.mode != "Knative" and (own is None or own > LONGEST_END):
            yield f"{pod.owner}: a process that hangs is waited for {own or 'the whole grace'}"


def asked(probe: dict[str, Any]) -> tuple[str | None, int | None]:
    """Path and port of a probe by HTTP, or of a command that opens a URL of its own container."""
    if "httpGet" in probe:
        return probe["httpGet"]["path"], probe["httpGet"]["port"]
    match = re.search(r"http://127\.0\.0\.1:(\d+)(/[\w/]*)", " ".join(probe.get("exec", {}).get("command", [])))
    return (match[2], int(match[1])) if match else (None, None)


def ports(bundle: Bundle) -> Iterator[str]:
    """A declared port is one on which the server listens, under the name that gateways go by."""
    for pod, settings in started(bundle):
        real = {"http1": settings.server.port, "h2c": settings.server.grpc_port}
        declared = pod.container.get("ports", [])
        if not declared:
            yield f"{pod.owner}: no port is declared"
        for port in declared:
            if real.get(port.get("name")) != port["containerPort"]:
                yield f"{pod.owner}: {port.get('name')} is declared at {port['containerPort']}; nothing of that name is there"
            if port.get("protocol") != "TCP":
                yield f"{pod.owner}: {port.get('name')}: KServe copies the protocol as it stands, and it is not said"


def grace(bundle: Bundle) -> Iterator[str]:
    """preStop, drain delay and drain fit into the grace; loading fits into what a rollout waits for."""
    for pod, settings in started(bundle):
        before = pod.container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        allowed = pod.spec.get("terminationGracePeriodSeconds", 30)
        if pod.mode == "Knative":
            before, allowed = QUEUE_PROXY_SECONDS, pod.component.get("timeout", 300)
        needed = before + settings.server.drain_delay_seconds + settings.server.drain_seconds + AFTERWARDS
        if needed >= allowed:
            yield f"{pod.owner}: stopping takes up to {needed} s, and the grace is {allowed} s"
        if before + settings.server.drain_delay_seconds < 5:
            yield f"{pod.owner}: the port closes before gateways can have noticed"
        if settings.server.load_seconds >= PROGRESS_SECONDS:
            yield f"{pod.owner}: loading may take longer than the {PROGRESS_SECONDS} s that a rollout waits"


def pinned(bundle: Bundle) -> Iterator[str]:
    """The version is a number (or KServe's folder), so that a pod that restarts is the pod that was rolled out."""
    for pod, settings in started(bundle):
        for entry in settings.models:
            if not re.fullmatch(r"models:/[^/@]+/\d+|/mnt/models", entry.uri) and bundle.name != "dev":
                yield f"{pod.owner}: {entry.uri} moves under the pods"


def locked(bundle: Bundle) -> Iterator[str]:
    """No root, no write to the image, no capability, the runtime's own seccomp profile."""
    wanted: dict[str, Any] = {
        "runAsNonRoot": True,
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    for pod in bundle.pods:
        for container in pod.spec["containers"]:
            given = container.get("securityContext", {})
            for key, value in wanted.items():
                if given.get(key) != value:
                    yield f"{pod.owner}: {key} is {given.get(key)}"
            if not isinstance(given.get("runAsUser"), int) or given["runAsUser"] < 1:
                yield f"{pod.owner}: runAsNonRoot needs a number in runAsUser, and not 0"


def rights(bundle: Bundle) -> Iterator[str]:
    """An account of its own with no token and no role; no variables injected by Services."""
    for pod in bundle.pods:
        if pod.spec.get("automountServiceAccountToken") is not False:
            yield f"{pod.owner}: a token of the Kubernetes API is mounted"
        if pod.spec.get("enableServiceLinks") is not False:
            yield f"{pod.owner}: Services inject variables"
    for pod in bundle.ours:
        if bundle.named("ServiceAccount", pod.spec.get("serviceAccountName", "default")) is None:
            yield f"{pod.owner}: its account is not among the objects"
    for account in bundle.of("ServiceAccount"):
        if account.get("automountServiceAccountToken") is not False:
            yield f"the account {account['metadata']['name']} hands out tokens"
    for found in bundle.of("Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"):
        yield f"{found['kind']} {found['metadata']['name']}: the server calls no API and needs no right"


def resources(bundle: Bundle) -> Iterator[str]:
    """Requests and limits, and volumes with a bound that the limits cover."""
    for pod in bundle.pods:
        for container in pod.spec["containers"]:
            given = container.get("resources", {})
            for name in ("cpu", "memory"):
                low, high = (given.get(kind, {}).get(name) for kind in ("requests", "limits"))
                if low is None or high is None or quantity(low) > quantity(high):
                    yield f"{pod.owner}: {name} from {low} to {high}"
    for pod in bundle.ours:
        sizes = [v["emptyDir"].get("sizeLimit") for v in pod.spec.get("volumes", []) if v.get("emptyDir")]
        limit = pod.container.get("resources", {}).get("limits", {}).get("ephemeral-storage", 0)
        if None in sizes or sum(quantity(size) for size in sizes if size) > quantity(limit):
            yield f"{pod.owner}: volumes of {sizes} in {limit} of the node's disk"


def cache(bundle: Bundle) -> Iterator[str]:
    """The artifact cache lies on a volume that is larger than it may become; /tmp and HOME can be written."""
    for pod, settings in started(bundle):
        volume = volume_at(pod, settings.registry.cache_dir or "/nowhere")
        if not settings.models:
            pass  # a transformer fetches no artifacts
        elif not volume or "emptyDir" not in volume:
            yield f"{pod.owner}: the cache {settings.registry.cache_dir} lies on no volume"
        elif settings.registry.cache_bytes >= quantity(volume["emptyDir"].get("sizeLimit", 0)):
            yield f"{pod.owner}: the cache may grow larger than its volume"
        homes = [e["value"] for e in pod.container.get("env", []) if e["name"] == "HOME"]
        for path in ("/tmp", *(homes or ["/"])):
            if volume_at(pod, path) is None:
                yield f"{pod.owner}: nothing can be written to {path}"


def secrets(bundle: Bundle) -> Iterator[str]:
    """Secrets are referenced, by the documented names, and never among the objects."""
    for found in bundle.of("Secret"):
        yield f"the Secret {found['metadata']['name']} is among the objects"
    for pod in bundle.pods:
        for variable in pod.container.get("env", []):
            source = variable.get("valueFrom", {}).get("secretKeyRef")
            if source is None and SECRET_WORDS.search(variable["name"]):
                yield f"{pod.owner}: {variable['name']} stands there for everybody to read"
            if source is not None and source["name"] not in SECRETS:
                yield f"{pod.owner}: no page speaks of the Secret {source['name']}"
    for name, tree in config_values(bundle):
        for path, value in walk(tree):
            if SECRET_WORDS.search(path) and isinstance(value, str):
                yield f"{name}{path}: a secret in a ConfigMap"


def volumes(bundle: Bundle) -> Iterator[str]:
    """Every mount has its volume, and every ConfigMap that is mounted exists."""
    for pod in bundle.pods:
        given = {v["name"]: v for v in pod.spec.get("volumes", [])}
        mounted = {m["name"] for c in pod.spec["containers"] for m in c.get("volumeMounts", [])}
        for name in mounted ^ given.keys():
            yield f"{pod.owner}: the volume {name} is mounted or given, not both"
        for volume in given.values():
            if "configMap" in volume and bundle.named("ConfigMap", volume["configMap"]["name"]) is None:
                yield f"{pod.owner}: there is no ConfigMap {volume['configMap']['name']}"


def spread(bundle: Bundle) -> Iterator[str]:
    """Pods keep away from one another, by a selector that means themselves. (On Knative that needs a feature flag.)"""
    for pod in bundle.ours:
        apart = pod.spec.get("affinity", {}).get("podAntiAffinity", {})
        terms = [t["podAffinityTerm"] for t in apart.get("preferredDuringSchedulingIgnoredDuringExecution", [])]
        rules = [*pod.spec.get("topologySpreadConstraints", []), *terms]
        if pod.mode != "Knative" and "kubernetes.io/hostname" not in [rule["topologyKey"] for rule in rules]:
            yield f"{pod.owner}: nothing spreads the pods over nodes"
        for rule in rules:
            if not selects(rule["labelSelector"], pod.labels):
                yield f"{pod.owner}: it spreads other pods than itself"


def image(bundle: Bundle) -> Iterator[str]:
    """Our image has the package's version; others a version that does not move."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    version = config["metadata"]["version"]
    for pod in bundle.pods:
        for container in pod.spec["containers"]:
            name, _, tag = container["image"].rpartition(":")
            if pod.ours and (name, tag) != ("headway", version):
                yield f"{pod.owner}: {container['image']} is not headway:{version}"
            if not re.search(r"\d+\.\d+", tag):
                yield f"{pod.owner}: {container['image']} names no version"


RULES = (start, probes, ports, grace, pinned, locked, rights, resources, cache, secrets, volumes, spread, image)
