"""Manifests broken in one way each, and the one rule that has to notice."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.manifests.cluster import Bundle
from tests.manifests.rendering import Object

Edit = Callable[[Bundle], None]
SERVICE, CONTAINER = "InferenceService", "spec/predictor/containers/0"
PROBE = f"{CONTAINER}/readinessProbe"


@dataclass(frozen=True)
class Broken:
    """One way to break an overlay."""

    rule: str
    how: str
    edit: Edit
    overlay: str = "base"

    def __str__(self) -> str:
        return f"{self.rule}-{self.overlay}-{self.how.replace(' ', '-')}"


def _step(node: Any, key: str) -> Any:
    return node[int(key)] if isinstance(node, list) else node[key]


def put(kind: str, path: str, value: Any) -> Edit:
    """Sets what lies at that path of the first object of a kind; `-` appends to a list. `~1` is a slash, as in patches."""

    def edit(bundle: Bundle) -> None:
        *way, last = (part.replace("~1", "/") for part in path.split("/"))
        node: Any = bundle.of(kind)[0]
        for key in way:
            node = _step(node, key)
        if last == "-":
            node.append(copy.deepcopy(value))
        else:
            node[int(last) if isinstance(node, list) else last] = copy.deepcopy(value)

    return edit


def drop(kind: str, path: str) -> Edit:
    """Removes what lies at that path of the first object of a kind."""

    def edit(bundle: Bundle) -> None:
        *way, last = (part.replace("~1", "/") for part in path.split("/"))
        node: Any = bundle.of(kind)[0]
        for key in way:
            node = _step(node, key)
        del node[int(last) if isinstance(node, list) else last]

    return edit


def add(found: Object) -> Edit:
    """Adds an object."""
    return lambda bundle: bundle.objects.append(copy.deepcopy(found))


def everywhere(old: str, new: str) -> Edit:
    """Replaces a text in every object."""

    def edit(bundle: Bundle) -> None:
        bundle.objects[:] = json.loads(json.dumps(bundle.objects).replace(old, new))

    return edit


def setting(old: str, new: str) -> Edit:
    """Replaces a text in headway.yaml."""

    def edit(bundle: Bundle) -> None:
        data = bundle.of("ConfigMap")[0]["data"]
        assert old in data["headway.yaml"]
        data["headway.yaml"] = data["headway.yaml"].replace(old, new)

    return edit


def variable(name: str, value: str) -> Edit:
    """Gives the container one more variable."""
    return put(SERVICE, f"{CONTAINER}/env/-", {"name": name, "value": value})


def adapter(old: str, new: str) -> Edit:
    """Replaces a text in the values of prometheus-adapter."""

    def edit(bundle: Bundle) -> None:
        bundle.adapter = json.loads(json.dumps(bundle.adapter).replace(old, new))

    return edit


def both(*edits: Edit) -> Edit:
    """One edit after the other."""

    def edit(bundle: Bundle) -> None:
        for each in edits:
            each(bundle)

    return edit


def without_head(bundle: Bundle) -> None:
    """Forgets what the kustomization says of versions."""
    bundle.head = "# Written in a hurry."


def meta(kind: str, name: str, version: str = "v1") -> Object:
    """The beginning of an object."""
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name, "namespace": "headway"}}


BUDGET = {
    **meta("PodDisruptionBudget", "second", "policy/v1"),
    "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": "headway"}}},
}
GHOST = {"name": "ghost", "mountPath": "/ghost", "readOnly": True}
CANARY = [{"predictor": {"name": "next", "minReplicas": 1}, "trafficPercent": 10}]
SPREAD = "spec/predictor/topologySpreadConstraints"
RULE = "spec/groups/0/rules/0/expr"
QUERY = "spec/predictor/autoScaling/metrics/1/external/metric/query"

PODS = (
    Broken("start", "a flag that does not exist", put(SERVICE, f"{CONTAINER}/args/-", "--no-such-flag")),
    Broken("start", "a verb that does not exist", put(SERVICE, f"{CONTAINER}/args/0", "server")),
    Broken("start", "a setting misspelt", variable("HEADWAY_SERVER__DRAIN_SECOND", "25")),
    Broken("start", "a value out of bounds", variable("HEADWAY_SERVER__PORT", "80800")),
    Broken("start", "a variable that nobody reads", variable("HEADWAY_PORT", "8080")),
    Broken("start", "a key of the file misspelt", setting("drain_seconds", "drain_second")),
    Broken("start", "no file where the flag points", put(SERVICE, f"{CONTAINER}/args/2", "/etc/headway/other.yaml")),
    Broken("start", "an end without a message", drop(SERVICE, f"{CONTAINER}/terminationMessagePolicy")),
    Broken("probes", "a route that does not exist", put(SERVICE, f"{PROBE}/httpGet/path", "/healthz")),
    Broken("probes", "readiness that is never red", put(SERVICE, f"{PROBE}/httpGet/path", "/health/live")),
    Broken("probes", "readiness by an open port", put(SERVICE, PROBE, {"tcpSocket": {"port": 8080}})),
    Broken("probes", "a port of another protocol", put(SERVICE, f"{PROBE}/httpGet/port", 8081)),
    Broken("probes", "a hung process has the whole grace", drop(SERVICE, f"{CONTAINER}/livenessProbe/terminationGracePeriodSeconds")),
    Broken("probes", "none at the start", drop(SERVICE, f"{CONTAINER}/startupProbe")),
    Broken("probes", "liveness by readiness", put(SERVICE, f"{CONTAINER}/livenessProbe/httpGet/path", "/health/ready")),
    Broken("ports", "a name of another protocol", put(SERVICE, f"{CONTAINER}/ports/0/name", "h2c")),
    Broken("ports", "a protocol unsaid", drop(SERVICE, f"{CONTAINER}/ports/0/protocol")),
    Broken("grace", "the default of Kubernetes", drop(SERVICE, "spec/predictor/terminationGracePeriodSeconds")),
    Broken("grace", "a longer drain", setting("drain_seconds: 25", "drain_seconds: 60")),
    Broken("grace", "no delay", both(setting("delay_seconds: 5", "delay_seconds: 0"), drop(SERVICE, f"{CONTAINER}/lifecycle"))),
    Broken("grace", "loading for longer than a rollout", setting("540", "900")),
    Broken("grace", "a request's timeout on Knative", put(SERVICE, "spec/predictor/timeout", 60), "knative"),
    Broken("pinned", "an alias", put(SERVICE, f"{CONTAINER}/env/1/value", "champion")),
    Broken("locked", "root", put(SERVICE, f"{CONTAINER}/securityContext/runAsUser", 0)),
    Broken("locked", "no number", drop(SERVICE, f"{CONTAINER}/securityContext/runAsUser")),
    Broken("locked", "an image that can be written", drop(SERVICE, f"{CONTAINER}/securityContext/readOnlyRootFilesystem")),
    Broken("locked", "capabilities", put(SERVICE, f"{CONTAINER}/securityContext/capabilities", {"add": ["NET_ADMIN"]})),
    Broken("rights", "service links", drop(SERVICE, "spec/predictor/enableServiceLinks")),
    Broken("rights", "a token", put(SERVICE, "spec/predictor/automountServiceAccountToken", True)),
    Broken("rights", "another account", drop(SERVICE, "spec/predictor/serviceAccountName")),
    Broken("rights", "an account with tokens", drop("ServiceAccount", "automountServiceAccountToken")),
    Broken("rights", "a role", add({**meta("Role", "headway", "rbac.authorization.k8s.io/v1"), "rules": []})),
    Broken("resources", "no limit", drop(SERVICE, f"{CONTAINER}/resources/limits/memory")),
    Broken("resources", "more asked than allowed", put(SERVICE, f"{CONTAINER}/resources/requests/cpu", "3")),
    Broken("resources", "a volume without a bound", put(SERVICE, "spec/predictor/volumes/2/emptyDir", {"medium": ""})),
    Broken("resources", "volumes beyond the limit", put(SERVICE, f"{CONTAINER}/resources/limits/ephemeral-storage", "4Gi")),
    Broken("cache", "a folder of the image", setting("/var/cache/headway", "/data/cache")),
    Broken("cache", "larger than its volume", setting("2147483648", "8589934592")),
    Broken("cache", "no /tmp", both(drop(SERVICE, f"{CONTAINER}/volumeMounts/2"), drop(SERVICE, "spec/predictor/volumes/2"))),
    Broken("secrets", "a password for all to read", variable("MLFLOW_TRACKING_TOKEN", "abc")),
    Broken("secrets", "a Secret among the objects", add({**meta("Secret", "headway-mlflow"), "stringData": {}})),
    Broken("secrets", "one in the file", setting("registry:", "registry:\n  webhook_secret: abcdefghij")),
    Broken("secrets", "a name of no page", put(SERVICE, f"{CONTAINER}/env/2/valueFrom/secretKeyRef/name", "mlflow")),
    Broken("volumes", "a mount without a volume", put(SERVICE, f"{CONTAINER}/volumeMounts/-", GHOST)),
    Broken(
        "volumes",
        "no such ConfigMap",
        both(
            put(SERVICE, f"{CONTAINER}/volumeMounts/-", GHOST),
            put(SERVICE, "spec/predictor/volumes/-", {"name": "ghost", "configMap": {"name": "ghost"}}),
        ),
    ),
    Broken("spread", "nothing", drop(SERVICE, SPREAD)),
    Broken("spread", "away from others", put(SERVICE, f"{SPREAD}/0/labelSelector/matchLabels", {"app": "headway"})),
    Broken("image", "latest", put(SERVICE, f"{CONTAINER}/image", "headway:latest")),
    Broken("image", "another release", put(SERVICE, f"{CONTAINER}/image", "headway:0.0.9")),
)  # fmt: skip

KSERVE = (
    Broken("schema", "a field misspelt", put(SERVICE, f"{CONTAINER}/readynessProbe", {})),
    Broken("schema", "a word for a number", put(SERVICE, f"{PROBE}/periodSeconds", "five")),
    Broken("schema", "a field that a budget has not", put("PodDisruptionBudget", "spec/maxUnavailabel", 1)),
    Broken("admitted", "a name with a digit first", everywhere("predictive-maintenance", "9-maintenance")),
    Broken("admitted", "an unknown autoscaler", put(SERVICE, "metadata/annotations/serving.kserve.io~1autoscalerClass", "kpa")),
    Broken("admitted", "PYTHONPATH", variable("PYTHONPATH", "/app")),
    Broken("admitted", "a protocol", variable("PROTOCOL", "grpc")),
    Broken("admitted", "replicas", put(SERVICE, "spec/predictor/minReplicas", 9)),
    Broken("admitted", "two implementations", put(SERVICE, "spec/predictor/sklearn", {})),
    Broken("admitted", "a logger without a mode", put(SERVICE, "spec/predictor/logger", {"url": "http://sink"}), "batcher"),
    Broken("admitted", "the registry as a store", put(SERVICE, "spec/predictor/model/storageUri", "models:/m/1"), "serving-runtime"),
    Broken("admitted", "a model without a store", drop(SERVICE, "spec/predictor/model/storageUri"), "serving-runtime"),
    Broken("runtime", "a format it has not", put(SERVICE, "spec/predictor/model/modelFormat/name", "onnx"), "serving-runtime"),
    Broken("runtime", "for everybody", put("ClusterServingRuntime", "spec/supportedModelFormats/0/autoSelect", True), "serving-runtime"),
    Broken("mode", "unsaid", drop(SERVICE, "metadata/annotations/serving.kserve.io~1deploymentMode")),
    Broken("mode", "a percent that is ignored", put(SERVICE, "spec/predictor/canaryTrafficPercent", 10)),
    Broken("mode", "requests per second in Standard mode", put(SERVICE, "spec/predictor/scaleMetric", "rps")),
    Broken("mode", "no room to scale", drop(SERVICE, "spec/predictor/maxReplicas")),
    Broken("mode", "two ports", put(SERVICE, f"{CONTAINER}/ports/-", {"name": "h2c", "containerPort": 8081, "protocol": "TCP"}), "knative"),
    Broken("mode", "a feature flag", put(SERVICE, "spec/predictor/nodeSelector", {"gpu": "true"}), "knative"),
    Broken("mode", "CPU for the KPA", put(SERVICE, "spec/predictor/scaleMetric", "cpu"), "knative"),
    Broken("mode", "a share of 110", put(SERVICE, "spec/predictor/canaryTrafficPercent", 110), "knative-canary"),
    Broken("mode", "HTTP probes of gRPC", put(SERVICE, f"{CONTAINER}/startupProbe", {"httpGet": {"path": "/health", "port": 8080}}), "knative-grpc"),
    Broken("steady", "a percent for every day", put(SERVICE, "spec/predictor/canaryTrafficPercent", 10), "knative"),
    Broken("steady", "no percent", drop(SERVICE, "spec/predictor/canaryTrafficPercent"), "knative-canary"),
    Broken("scaled", "no class", drop(SERVICE, "metadata/annotations/serving.kserve.io~1autoscalerClass"), "keda"),
    Broken("scaled", "no query", drop(SERVICE, QUERY), "keda"),
    Broken("scaled", "two ways", put(SERVICE, "spec/predictor/scaleMetric", "cpu"), "keda"),
    Broken("batched", "probabilities lost", drop(SERVICE, f"{CONTAINER}/env/8"), "batcher"),
    Broken("batched", "five seconds", drop(SERVICE, "spec/predictor/batcher/maxLatency"), "batcher"),
    Broken("canaries", "spec.canary without a model", put(SERVICE, "spec/canary", CANARY)),
    Broken("transformed", "KServe's own name for the model", put(SERVICE, "spec/transformer/containers/0/args/6", "predictive-maintenance"), "transformer"),
    Broken("transformed", "no repository", put(SERVICE, "spec/transformer/containers/0/env/0/value", "/etc/headway"), "transformer"),
    Broken("transformed", "a predictor that lets nobody in", drop("NetworkPolicy", "spec/ingress/2"), "transformer"),
    Broken("transformed", "no way to the predictor", drop("NetworkPolicy", "spec/egress/5"), "transformer"),
    Broken("start", "no repository is named", drop(SERVICE, "spec/transformer/containers/0/env/0"), "transformer"),
    Broken("known", "an annotation that lies", put(SERVICE, "metadata/annotations/serving.kserve.io~1enable-prometheus-scraping", "true")),
    Broken("known", "an explainer", put(SERVICE, "spec/explainer", {"minReplicas": 1})),
)  # fmt: skip

AROUND = (
    Broken("placed", "elsewhere", put("PodDisruptionBudget", "metadata/namespace", "default")),
    Broken("selectors", "a budget for nobody", put("PodDisruptionBudget", "spec/selector/matchLabels", {"app": "headway"})),
    Broken("selectors", "a monitor of nobody", put("PodMonitor", "spec/selector/matchLabels", {"app": "headway"}), "monitoring"),
    Broken("selectors", "a list for nobody", put("AuthorizationPolicy", "spec/selector/matchLabels", {"app": "x"}), "mesh-auth"),
    Broken("selectors", "a Service to nowhere", put("Service", "spec/ports/0/targetPort", 9999), "plain"),
    Broken("budgets", "two", add(BUDGET)),
    Broken("budgets", "one that blocks", put("PodDisruptionBudget", "spec", {"minAvailable": 1, "selector": BUDGET["spec"]["selector"]})),
    Broken("names", "a budget by KServe's name", put("PodDisruptionBudget", "metadata/name", "predictive-maintenance-predictor")),
    Broken("names", "an autoscaler by KServe's name", put("HorizontalPodAutoscaler", "metadata/name", "predictive-maintenance-predictor"), "standard-hpa"),
    Broken("names", "a route by KServe's name", put("HTTPRoute", "metadata/name", "predictive-maintenance"), "standard-canary"),
    Broken("network", "open outwards", put("NetworkPolicy", "spec/policyTypes", ["Ingress"])),
    Broken("network", "closed to callers", put("NetworkPolicy", "spec/ingress/0/ports/0/port", 9000)),
    Broken("network", "closed to the sidecar", drop("NetworkPolicy", "spec/ingress/0/ports/2"), "batcher"),
    Broken("network", "closed to the queue-proxy", drop("NetworkPolicy", "spec/ingress/0/ports/0"), "knative"),
    Broken("network", "no DNS", drop("NetworkPolicy", "spec/egress/0")),
    Broken("network", "the metadata service", drop("NetworkPolicy", "spec/egress/3/to/0/ipBlock/except/3")),
    Broken("network", "everybody", drop("NetworkPolicy", "spec/ingress/1/from")),
    Broken("routes", "weights of a canary", put("HTTPRoute", "spec/rules/1/backendRefs/0/weight", 90), "standard-canary"),
    Broken("routes", "no bound", drop("HTTPRoute", "spec/rules/1/timeouts"), "blue-green"),
    Broken("routes", "no such Service", put("HTTPRoute", "spec/rules/0/backendRefs/0/name", "green"), "blue-green"),
    Broken("routes", "the metrics for all", put("HTTPRoute", "spec/rules/1/matches/0/path/value", "/"), "standard-canary"),
    Broken("autoscaling", "no such Deployment", put("HorizontalPodAutoscaler", "spec/scaleTargetRef/name", "headway"), "standard-hpa"),
    Broken("autoscaling", "two at once", drop(SERVICE, "metadata/annotations/serving.kserve.io~1autoscalerClass"), "standard-hpa"),
    Broken("autoscaling", "replicas beside it", put("Deployment", "spec/replicas", 3), "plain"),
    Broken("autoscaling", "no room", put("HorizontalPodAutoscaler", "spec/maxReplicas", 3), "plain"),
    Broken("measured", "a metric that nobody makes", adapter("headway_requests", "http_requests"), "standard-hpa"),
    Broken("measured", "made of nothing", adapter("model_predictions_total{", "model_prediction_total{"), "standard-hpa"),
    Broken("measured", "KEDA asks for nothing", put(SERVICE, QUERY, "sum(rate(request_predict_seconds_count[1m]))"), "keda"),
    Broken("measured", "an alert that never fires", put("PrometheusRule", RULE, "headway_model_loaded == 0"), "monitoring"),
    Broken("asked", "another namespace", put(SERVICE, QUERY, 'sum(rate(model_predictions_total{namespace="x"}[1m]))'), "keda"),
    Broken("asked", "other pods", put(SERVICE, QUERY, 'sum(rate(model_predictions_total{pod=~"fraud-.*"}[1m]))'), "keda"),
    Broken("scraped", "KServe's port", put("PodMonitor", "spec/podMetricsEndpoints/0/portNumber", 9091), "monitoring"),
    Broken("scraped", "another route", put("PodMonitor", "spec/podMetricsEndpoints/0/path", "/v2"), "monitoring"),
    Broken("enforced", "more rights", put("Namespace", "metadata/labels/pod-security.kubernetes.io~1enforce", "baseline")),
    Broken("enforced", "no mesh would start", put("Namespace", "metadata/labels/pod-security.kubernetes.io~1enforce", "restricted"), "mesh-auth"),
    Broken("callers", "everybody", put("AuthorizationPolicy", "spec/rules/0/from/0/source/principals", ["*"]), "mesh-auth"),
    Broken("callers", "every route", put("AuthorizationPolicy", "spec/rules/0/to/0/operation/paths", ["/*"]), "mesh-auth"),
    Broken("callers", "without a certificate", put("PeerAuthentication", "spec/mtls/mode", "PERMISSIVE"), "mesh-auth"),
    Broken("stated", "no versions", without_head),
)  # fmt: skip

BREAKS = (*PODS, *KSERVE, *AROUND)
