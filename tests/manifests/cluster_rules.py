"""Rules about what stands around the pods: selectors, names, network, autoscaling, monitoring, callers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.cluster import AGENT_PORT, Bundle, Pod, backends, selects
from tests.manifests.pod_rules import started
from tests.manifests.rendering import Object
from tests.manifests.truth import has_route, metrics, series_of

NAMESPACE = "headway"
CLIENTS = {"headway.dev/client": "true"}
QUEUE_PROXY_PORTS = {8012, 8013}
#: What must be reachable: DNS, MLflow, Redis, and an object store.
NEEDED = {53, 5000, 6379, 443}
WHOLE_INTERNET, METADATA = "0.0.0.0/0", "169.254.0.0/16"


def placed(bundle: Bundle) -> Iterator[str]:
    """Everything that has a namespace has the one of its pods."""
    for found in bundle.objects:
        if found["kind"] in {"Namespace", "ClusterServingRuntime"}:
            continue
        allowed = {NAMESPACE, "mlflow", "redis"} if bundle.name == "dev" else {NAMESPACE}
        if found["metadata"].get("namespace") not in allowed:
            yield f"{found['kind']} {found['metadata']['name']} lies in {found['metadata'].get('namespace')}"


def selectors(bundle: Bundle) -> Iterator[str]:
    """Every selector picks a pod that is there."""
    for found in bundle.of("PodDisruptionBudget", "PodMonitor", "AuthorizationPolicy", "PeerAuthentication"):
        if not any(selects(found["spec"]["selector"], pod.labels) for pod in bundle.ours):
            yield f"{found['kind']} {found['metadata']['name']} selects nothing"
    for found in bundle.of("NetworkPolicy"):
        if not any(selects(found["spec"]["podSelector"], pod.labels) for pod in bundle.ours):
            yield f"NetworkPolicy {found['metadata']['name']} selects nothing"
    for found in bundle.of("Service"):
        chosen = [p for p in bundle.pods if selects({"matchLabels": found["spec"]["selector"]}, p.labels)]
        declared = [port for pod in chosen for port in pod.container.get("ports", [])]
        real = {port["containerPort"] for port in declared} | {port.get("name") for port in declared}
        if lost := {port["targetPort"] for port in found["spec"]["ports"]} - real:
            yield f"Service {found['metadata']['name']} leads to {sorted(map(str, lost))}, where nothing is declared"


def budgets(bundle: Bundle) -> Iterator[str]:
    """One budget for each pod at most (two block every eviction), and none that can hold up a node for ever."""
    for pod in bundle.ours:
        mine = [b for b in bundle.of("PodDisruptionBudget") if selects(b["spec"]["selector"], pod.labels)]
        if len(mine) > 1:
            yield f"{pod.owner}: {len(mine)} budgets select it"
    if bundle.ours and not bundle.of("PodDisruptionBudget"):
        yield "there is no budget"
    for found in bundle.of("PodDisruptionBudget"):
        if "minAvailable" in found["spec"]:
            yield f"{found['metadata']['name']}: with one replica it holds up every drain of a node"


def names(bundle: Bundle) -> Iterator[str]:
    """Nothing of ours has a name under which KServe deletes or overwrites."""
    for service in bundle.services:
        name = service["metadata"]["name"]
        reserved = {name, f"{name}-predictor", f"{name}-transformer"}
        kinds = ("HorizontalPodAutoscaler", "ScaledObject", "HTTPRoute", "Service", "Deployment")
        taken = [found for found in bundle.of(*kinds) if found["metadata"]["name"] in reserved]
        budget = bundle.named("PodDisruptionBudget", f"{name}-predictor")
        for found in [*taken, *([budget] if budget else [])]:
            yield f"{found['kind']} {found['metadata']['name']}: the name is KServe's"


def network(bundle: Bundle) -> Iterator[str]:
    """Both directions are closed but for what is needed; requests reach the port where they are answered."""
    for pod in bundle.ours:
        policies = [p["spec"] for p in bundle.of("NetworkPolicy") if selects(p["spec"]["podSelector"], pod.labels)]
        if {kind for spec in policies for kind in spec.get("policyTypes", [])} != {"Ingress", "Egress"}:
            yield f"{pod.owner}: not both directions are closed"
            continue
        if closed := entrances(pod, bundle) - _reachable(policies, CLIENTS):
            yield f"{pod.owner}: callers do not reach {sorted(closed)}"
        leaving = [rule for spec in policies for rule in spec.get("egress", [])]
        if missing := NEEDED - {port["port"] for rule in leaving for port in rule.get("ports", [])}:
            yield f"{pod.owner}: it cannot reach ports {sorted(missing)}"
        yield from (f"{pod.owner}: {text}" for text in _open([*leaving, *(r for s in policies for r in s["ingress"])]))


def entrances(pod: Pod, bundle: Bundle) -> set[int]:
    """The ports at which callers' requests arrive at the pod."""
    if pod.mode == "Knative":
        return QUEUE_PROXY_PORTS
    declared = {port["containerPort"] for port in pod.container.get("ports", [])}
    if pod.behind_agent:
        return declared - {8080} | {AGENT_PORT}
    return declared


def _reachable(policies: list[dict[str, Any]], labels: dict[str, str]) -> set[int]:
    """The ports that are open to namespaces with these labels."""
    return {
        port["port"]
        for spec in policies
        for rule in spec.get("ingress", [])
        for peer in rule.get("from", [])
        if labels.items() <= peer.get("namespaceSelector", {}).get("matchLabels", {}).items()
        for port in rule.get("ports", [])
    }


def _open(rules: list[dict[str, Any]]) -> Iterator[str]:
    for rule in rules:
        peers = rule.get("from", rule.get("to", []))
        if not peers or not rule.get("ports") or any(peer.get("namespaceSelector") == {} for peer in peers):
            yield "a rule lets everybody, or every port, through"
        for block in (peer["ipBlock"] for peer in peers if "ipBlock" in peer):
            if block["cidr"] == WHOLE_INTERNET and METADATA not in block.get("except", []):
                yield "the node's metadata service is within reach"


def routes(bundle: Bundle) -> Iterator[str]:
    """Routes lead to Services that are there, have a bound, and carry no weights of a canary in flight."""
    there = backends(bundle)
    for found in bundle.of("HTTPRoute"):
        for rule in found["spec"]["rules"]:
            for ref in rule["backendRefs"]:
                if ref["port"] not in there.get(ref["name"], {}):
                    yield f"{found['metadata']['name']}: there is no {ref['name']}:{ref['port']}"
            weights = [ref["weight"] for ref in rule["backendRefs"] if "weight" in ref]
            if weights and weights != [100, 0]:
                yield f"{found['metadata']['name']}: every apply sets the weights {weights}, whatever is in flight"
            if "request" not in rule.get("timeouts", {}):
                yield f"{found['metadata']['name']}: a request has no bound"
            for match in rule.get("matches", [{"path": {"value": "/"}}]):
                if match["path"]["value"] not in {"/v1", "/v2"}:
                    yield f"{found['metadata']['name']}: {match['path']['value']} shows more than callers need"


def autoscaling(bundle: Bundle) -> Iterator[str]:
    """An autoscaler of ours has a target that is there, room to scale, and nobody beside it."""
    owners = {pod.owner: pod for pod in bundle.pods if pod.mode != "Knative"}
    for found in bundle.of("HorizontalPodAutoscaler"):
        name, spec = found["metadata"]["name"], found["spec"]
        target = owners.get(spec["scaleTargetRef"]["name"])
        mine = bundle.named("Deployment", spec["scaleTargetRef"]["name"])
        if mine is not None and "replicas" in mine["spec"]:
            yield f"{name}: every apply sets the replicas of its target"
        if target is None:
            yield f"{name}: there is no Deployment {spec['scaleTargetRef']['name']}"
        if not spec["minReplicas"] < spec["maxReplicas"]:
            yield f"{name}: from {spec['minReplicas']} to {spec['maxReplicas']}"
        for service in bundle.services:
            annotations = service["metadata"].get("annotations", {})
            if annotations.get("serving.kserve.io/autoscalerClass") not in {"external", "none"}:
                yield f"{name}: KServe makes one too, and the two fight"


def measured(bundle: Bundle) -> Iterator[str]:
    """Whatever is scaled or alerted by exists in /metrics, and the adapter makes the metric that the autoscaler asks for."""
    made = {rule["name"]["as"]: rule for rule in bundle.adapter.get("rules", {}).get("custom", [])}
    for metric in (m for found in bundle.of("HorizontalPodAutoscaler") for m in found["spec"]["metrics"]):
        if metric["type"] == "Pods" and metric["pods"]["metric"]["name"] not in made:
            yield f"the adapter has no rule for {metric['pods']['metric']['name']}"
    for name, rule in made.items():
        for series in series_of(rule["seriesQuery"]):
            if series not in metrics() or not re.search(rule["name"]["matches"], series):
                yield f"{name} is made of {series}, which does not exist"
    for where, expression in _expressions(bundle):
        for series in series_of(expression):
            if series not in metrics():
                yield f"{where}: there is no {series}"


def _expressions(bundle: Bundle) -> Iterator[tuple[str, str]]:
    for found in bundle.of("PrometheusRule"):
        for rule in (rule for group in found["spec"]["groups"] for rule in group["rules"]):
            yield rule.get("alert", rule.get("record", "")), rule["expr"]
    for pod in bundle.pods:
        for metric in pod.component.get("autoScaling", {}).get("metrics", []):
            if metric["type"] == "External":
                yield pod.owner, metric["external"]["metric"].get("query", "")


def asked(bundle: Bundle) -> Iterator[str]:
    """An expression that names a namespace or pods means ours."""
    for where, expression in _expressions(bundle):
        for namespace in re.findall(r'namespace="([^"]*)"', expression):
            if namespace != NAMESPACE:
                yield f"{where}: the namespace {namespace} is not ours"
        for pattern in re.findall(r'pod=~"([^"]*)"', expression):
            if not any(re.fullmatch(pattern, f"{pod.owner}-6f7d8-abcde") for pod in bundle.ours):
                yield f"{where}: {pattern} is no pod of ours"


def scraped(bundle: Bundle) -> Iterator[str]:
    """Prometheus asks the port and the route where the metrics are."""
    for found in bundle.of("PodMonitor"):
        for endpoint in found["spec"]["podMetricsEndpoints"]:
            if endpoint.get("portNumber") not in {settings.server.port for _, settings in started(bundle)}:
                yield f"{found['metadata']['name']}: port {endpoint.get('portNumber')} has no metrics"
            if endpoint.get("path") != "/metrics" or not has_route(endpoint["path"]):
                yield f"{found['metadata']['name']}: {endpoint.get('path')} has no metrics"


def enforced(bundle: Bundle) -> Iterator[str]:
    """The namespace takes no pod with more rights than ours have, unless the mesh needs it."""
    for found in bundle.of("Namespace"):
        if found["metadata"]["name"] != NAMESPACE:
            continue
        level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != ("baseline" if bundle.of("AuthorizationPolicy") else "restricted"):
            yield f"the namespace enforces {level}"


def callers(bundle: Bundle) -> Iterator[str]:
    """The mesh's list names callers one by one, and routes that exist; the repository calls are not among them."""
    for found in bundle.of("AuthorizationPolicy"):
        for rule in found["spec"]["rules"]:
            yield from (f"{found['metadata']['name']}: {text}" for text in _allowed(rule))
    for found in bundle.of("PeerAuthentication"):
        if found["spec"].get("mtls", {}).get("mode") != "STRICT":
            yield f"{found['metadata']['name']}: callers without a certificate get in"


def _allowed(rule: Object) -> Iterator[str]:
    sources = [name for each in rule.get("from", []) for name in each["source"].get("principals", [])]
    if not sources or "*" in sources:
        yield "a rule names no caller"
    for operation in (each["operation"] for each in rule.get("to", [{"operation": {"paths": ["*"]}}])):
        for path in operation["paths"]:
            verb = operation.get("methods", ["POST"])[0]
            samples = {
                "/v1/models/*": "/v1/models/m",
                "/v2/models/*": "/v2/models/m",
                "/v2/health/*": "/v2/health/live",
            }
            if path != "/inference.GRPCInferenceService/*" and not has_route(samples.get(path, path), verb):
                yield f"{path} does not exist, or is more than callers need"


def stated(bundle: Bundle) -> Iterator[str]:
    """The head of each kustomization says which versions it was written against."""
    used = {"Kubernetes"}
    used |= {"KServe"} if bundle.of("InferenceService", "ClusterServingRuntime") else set()
    used |= {"Knative"} if any(pod.mode == "Knative" for pod in bundle.pods) else set()
    used |= {"Gateway API"} if bundle.of("HTTPRoute") else set()
    used |= {"Prometheus Operator"} if bundle.of("PodMonitor") else set()
    used |= {"KEDA"} if any("autoScaling" in pod.component for pod in bundle.pods) else set()
    used |= {"Istio"} if bundle.of("AuthorizationPolicy") else set()
    words = bundle.head.replace("\n#", "").partition("Written against")[2]
    for name in sorted(used):
        if not re.search(rf"{name} \d|{name} (\w+ )*\d", words):
            yield f"the version of {name} is not said"


RULES = (
    placed, selectors, budgets, names, network, routes, autoscaling, measured, asked, scraped, enforced, callers, stated,
)  # fmt: skip
