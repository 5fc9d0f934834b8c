"""KServe's rules: what its webhook refuses, and what its controller silently ignores or overwrites.

By `inference_service_validation.go`, the reconcilers, and Knative's `k8s_validation.go`; only what these manifests use.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from serving.cli import parser
from tests.manifests import schemas
from tests.manifests.cluster import COMPONENTS, FRAMEWORKS, Bundle, Pod, deployment, knative_service, mode_of, selects
from tests.manifests.pod_rules import usable
from tests.manifests.rendering import Object
from tests.manifests.truth import volume_at

NAMESPACE = "headway"
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
CLASS = "serving.kserve.io/autoscalerClass"
SCRAPING = "serving.kserve.io/enable-prometheus-scraping"
STORES = re.compile(r"(s3|gs|hdfs|webhdfs|hf|oci|https?|pvc|file)://.+")
#: What Knative's API does not have, or admits only behind a feature flag of its own.
NOT_ON_KNATIVE = {
    "terminationGracePeriodSeconds", "topologySpreadConstraints", "affinity", "nodeSelector", "tolerations", "initContainers",
    "securityContext", "priorityClassName", "runtimeClassName", "hostNetwork", "dnsPolicy",
}  # fmt: skip


def schema(bundle: Bundle) -> Iterator[str]:
    """Every object, every pod and every Knative Service that follows from it has a valid shape."""
    for found in bundle.objects:
        for problem in schemas.problems(found):
            yield f"{found['kind']} {found['metadata'].get('name')}: {problem}"
    for pod in bundle.pods:
        made = [deployment(pod), *([knative_service(pod)] if pod.mode == "Knative" else [])]
        for problem in (problem for found in made for problem in schemas.problems(found)):
            yield f"the pod of {pod.owner}: {problem}"


def admitted(bundle: Bundle) -> Iterator[str]:
    """The webhook's rules for the object, its replicas, its containers and its variables."""
    for service in bundle.services:
        name = service["metadata"]["name"]
        if not NAME.fullmatch(name):
            yield f"{name}: the name must begin with a letter and have letters, digits and dashes only"
        if _class(service) not in {"", "hpa", "external", "keda", "none"}:
            yield f"{name}: there is no autoscalerClass {_class(service)}"
        for component in COMPONENTS:
            if component in service["spec"]:
                yield from (f"{name}: {text}" for text in _component(service["spec"][component]))
    for pod in bundle.pods:
        for variable in (v for c in pod.spec["containers"] for v in c.get("env", [])):
            if variable["name"] == "PYTHONPATH":
                yield f"{pod.owner}: KServe refuses PYTHONPATH"
            if variable["name"] == "PROTOCOL" and variable.get("value") not in {"v1", "v2"}:
                yield f"{pod.owner}: PROTOCOL is v1 or v2"


def _component(spec: Object) -> Iterator[str]:
    given = [key for key in spec if key in FRAMEWORKS | {"model", "containers"}]
    if len(given) != 1:
        yield f"exactly one implementation, not {given}"
    names = [container["name"] for container in spec.get("containers", [])]
    if len(names) > 1 and "kserve-container" not in names:
        yield "with several containers, one must be the kserve-container"
    low, high = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    if low < 0 or high < 0 or (high and low > high):
        yield f"replicas from {low} to {high}"
    if spec.get("containerConcurrency", 0) < 0:
        yield "containerConcurrency below zero"
    if spec.get("logger", {"mode": "all"}).get("mode") not in {"all", "request", "response"}:
        yield "the logger's mode must be said"
    model = spec.get("model", {"storageUri": "s3://any"})
    if model.get("name"):
        yield "the model's container must have no name"
    if not STORES.fullmatch(model.get("storageUri", "")):
        yield f"no storage initializer reads {model.get('storageUri')}; without one KServe takes it for multi-model serving"


def runtime(bundle: Bundle) -> Iterator[str]:
    """A model's runtime is there, serves its format, and takes over nobody else's."""
    for service in bundle.services:
        model = service["spec"]["predictor"].get("model")
        if model is None:
            continue
        found = bundle.named("ClusterServingRuntime", model.get("runtime", ""))
        formats = found["spec"]["supportedModelFormats"] if found else []
        if model["modelFormat"]["name"] not in [each["name"] for each in formats]:
            yield f"{service['metadata']['name']}: no runtime {model.get('runtime')} for {model['modelFormat']['name']}"
    for found in bundle.of("ClusterServingRuntime"):
        if any(each.get("autoSelect") for each in found["spec"]["supportedModelFormats"]):
            yield f"{found['metadata']['name']}: it would serve InferenceServices that did not ask for it"


def mode(bundle: Bundle) -> Iterator[str]:
    """The mode is said, and nothing stands there that this mode refuses or ignores."""
    for service in bundle.services:
        if mode_of(service) not in {"Standard", "Knative"}:
            yield f"{service['metadata']['name']}: the deployment mode is {mode_of(service)!r}"
    for pod in bundle.pods:
        if pod.mode == "Standard":
            yield from (f"{pod.owner}: {text}" for text in _standard(pod))
        if pod.mode == "Knative":
            yield from (f"{pod.owner}: {text}" for text in _knative(pod))


def _standard(pod: Pod) -> Iterator[str]:
    if "canaryTrafficPercent" in pod.component:
        yield "KServe ignores canaryTrafficPercent in Standard mode"
    if pod.component.get("scaleMetric", "cpu") not in {"cpu", "memory"}:
        yield f"Standard mode does not scale by {pod.component['scaleMetric']}"
    if pod.component.get("maxReplicas", 0) < 2:
        yield "without maxReplicas the autoscaler's minimum is its maximum"


def _knative(pod: Pod) -> Iterator[str]:
    declared = pod.container.get("ports", [])
    if len(declared) != 1 or declared[0].get("name") not in {"http1", "h2c"}:
        yield f"Knative admits one port, http1 or h2c, not {[port.get('name') for port in declared]}"
    if refused := (NOT_ON_KNATIVE & pod.spec.keys()) | ({"lifecycle"} & pod.container.keys()):
        yield f"Knative refuses {sorted(refused)}"
    if "deploymentStrategy" in pod.component:
        yield "deploymentStrategy is for Standard mode"
    if pod.component.get("scaleMetric", "concurrency") not in {"concurrency", "rps"}:
        yield f"the KPA does not scale by {pod.component['scaleMetric']}"
    if not 0 <= pod.component.get("canaryTrafficPercent", 0) <= 100:
        yield "the percent is not between 0 and 100, and nobody else checks it"
    for name in ("startupProbe", "livenessProbe"):
        if declared and declared[0].get("name") == "h2c" and "httpGet" in pod.container.get(name, {}):
            yield f"Knative sends the {name} to the port that speaks gRPC"


def steady(bundle: Bundle) -> Iterator[str]:
    """Only the overlay of a canary in flight has a percent: applied again after a promotion, it rolls back."""
    for service in (each for each in bundle.services if mode_of(each) == "Knative"):
        percent = "canaryTrafficPercent" in service["spec"]["predictor"]
        if percent != (bundle.name == "knative-canary"):
            yield f"{service['metadata']['name']}: a percent {'stands' if percent else 'is missing'} here"


def scaled(bundle: Bundle) -> Iterator[str]:
    """KEDA's rules: its metrics with the class keda, every one with what it needs, and no scaleMetric beside them."""
    for service in bundle.services:
        spec, name = service["spec"]["predictor"], service["metadata"]["name"]
        metrics = spec.get("autoScaling", {}).get("metrics", [])
        if bool(metrics) != (_class(service) == "keda"):
            yield f"{name}: autoScaling and autoscalerClass keda go together"
        if metrics and "scaleMetric" in spec:
            yield f"{name}: scaleMetric is refused beside KEDA's metrics"
        for metric in metrics:
            if metric["type"] == "External":
                given = metric["external"]
                if not {"serverAddress", "query"} <= given["metric"].keys() or "value" not in given["target"]:
                    yield f"{name}: an external metric needs serverAddress, query and target.value"


def batched(bundle: Bundle) -> Iterator[str]:
    """The sidecar's batches keep probabilities only inside each prediction, wait five seconds unless told, and hide requests."""
    for pod in bundle.pods:
        batcher = pod.component.get("batcher")
        if batcher is None:
            continue
        given = {e["name"]: e.get("value") for e in pod.container.get("env", [])}
        if given.get("HEADWAY_DEFAULTS__PER_INSTANCE") != "true":
            yield f"{pod.owner}: probabilities are lost without per_instance"
        if not 1 <= batcher.get("maxLatency", 5000) <= 100 or batcher.get("maxBatchSize", 32) < 1:
            yield f"{pod.owner}: {batcher}"
        if bundle.of("HorizontalPodAutoscaler") or "autoScaling" in pod.component:
            yield f"{pod.owner}: requests per second are batches per second behind the sidecar"


def canaries(bundle: Bundle) -> Iterator[str]:
    """`spec.canary` is refused for a predictor that has neither a model nor STORAGE_URI, and outside Standard mode."""
    for service in bundle.services:
        if "canary" in service["spec"]:
            spec = service["spec"]["predictor"]
            uris = [e for c in spec.get("containers", []) for e in c.get("env", []) if e["name"] == "STORAGE_URI"]
            if mode_of(service) != "Standard" or not ("model" in spec or uris):
                yield f"{service['metadata']['name']}: the webhook refuses spec.canary here"


def transformed(bundle: Bundle) -> Iterator[str]:
    """A transformer asks for a model that its predictor serves, is let through to it, and finds a Feast repository."""
    pods = {pod.owner: pod for pod in bundle.ours}
    for name in (service["metadata"]["name"] for service in bundle.services if "transformer" in service["spec"]):
        front, behind = pods[f"{name}-transformer"], pods[f"{name}-predictor"]
        settings, served = usable(front, bundle), usable(behind, bundle)
        if settings is None or served is None:
            continue
        words = parser().parse_args(front.container["args"])
        if words.model_name not in {entry.name for entry in served.models}:
            yield f"{front.owner}: the predictor serves no {words.model_name}"
        if words.predictor_host != f"{behind.owner}.{NAMESPACE}":
            yield f"{front.owner}: {words.predictor_host} is not the predictor"
        volume = volume_at(front, str(settings.features.repo_path)) or {}
        found = bundle.named("ConfigMap", volume.get("configMap", {}).get("name", ""))
        if found is None or "feature_store.yaml" not in found["data"]:
            yield f"{front.owner}: no Feast repository lies at {settings.features.repo_path}"
        for peers, direction, of, other in (("to", "egress", front, behind), ("from", "ingress", behind, front)):
            if served.server.port not in _between(bundle, direction, peers, of, other):
                yield f"{of.owner}: the network's {direction} is closed to {other.owner}"


def _between(bundle: Bundle, direction: str, peers: str, of: Pod, other: Pod) -> set[int]:
    """The ports that policies of one pod open to another pod of the namespace, in a direction."""
    policies = [p["spec"] for p in bundle.of("NetworkPolicy") if selects(p["spec"]["podSelector"], of.labels)]
    return {
        port["port"]
        for rule in (rule for spec in policies for rule in spec.get(direction, []))
        if any("podSelector" in peer and selects(peer["podSelector"], other.labels) for peer in rule[peers])
        for port in rule["ports"]
    }


def known(bundle: Bundle) -> Iterator[str]:
    """What this model of KServe does not know would pass for a part of the pod."""
    for service in bundle.services:
        if unknown := service["spec"].keys() - {*COMPONENTS, "canary"}:
            yield f"{service['metadata']['name']}: {sorted(unknown)} is not judged here"
        annotations = service["metadata"].get("annotations", {})
        if SCRAPING in annotations:
            yield f"{service['metadata']['name']}: {SCRAPING} names a port on which nothing listens"


def _class(service: Object) -> str:
    return str(service["metadata"].get("annotations", {}).get(CLASS, ""))


RULES = (schema, admitted, runtime, mode, steady, scaled, batched, canaries, transformed, known)
