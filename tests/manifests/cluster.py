"""What a cluster makes of the manifests: KServe's pods, Services and names, as its controller derives them."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.manifests.rendering import Object

FRAMEWORKS = {
    "sklearn",
    "xgboost",
    "tensorflow",
    "pytorch",
    "triton",
    "onnx",
    "huggingface",
    "pmml",
    "lightgbm",
    "paddle",
}
#: What of a predictor is KServe's own; the rest of it is a PodSpec.
EXTENSION = FRAMEWORKS | {
    "minReplicas", "maxReplicas", "scaleTarget", "scaleMetric", "scaleMetricType", "autoScaling", "containerConcurrency",
    "timeout", "canaryTrafficPercent", "logger", "batcher", "labels", "annotations", "deploymentStrategy", "model",
    "storageUris", "storageContainerName", "workerSpec", "name",
}  # fmt: skip
OURS = {"app.kubernetes.io/name": "headway"}
AGENT_PORT = 9081
COMPONENTS = ("predictor", "transformer")


@dataclass
class Pod:
    """The pod of one workload. `owner` is the name of the Deployment, or of the Knative Service."""

    owner: str
    mode: str
    labels: dict[str, str]
    spec: dict[str, Any]
    component: dict[str, Any] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether Headway runs in it."""
        return OURS.items() <= self.labels.items()

    @property
    def behind_agent(self) -> bool:
        """Whether KServe's sidecar answers in front of the server."""
        return not {"batcher", "logger"}.isdisjoint(self.component)

    @property
    def container(self) -> dict[str, Any]:
        """The container with the server."""
        found: dict[str, Any] = self.spec["containers"][0]
        return found


@dataclass
class Bundle:
    """Everything that is applied together, and the values for prometheus-adapter that belong to it."""

    name: str
    objects: list[Object]
    adapter: dict[str, Any] = field(default_factory=dict)
    head: str = ""

    def of(self, *kinds: str) -> list[Object]:
        """The objects of these kinds."""
        return [found for found in self.objects if found["kind"] in kinds]

    def named(self, kind: str, name: str) -> Object | None:
        """The object of that kind and name."""
        return next((found for found in self.of(kind) if found["metadata"]["name"] == name), None)

    @property
    def services(self) -> list[Object]:
        """The InferenceServices."""
        return self.of("InferenceService")

    @property
    def pods(self) -> list[Pod]:
        """Every pod that follows from the objects."""
        return [
            *(_pod(self, service, name) for service in self.services for name in COMPONENTS if name in service["spec"]),
            *(_deployed(found) for found in self.of("Deployment")),
        ]

    @property
    def ours(self) -> list[Pod]:
        """The pods that Headway runs in."""
        return [pod for pod in self.pods if pod.ours]


def mode_of(service: Object) -> str:
    """The deployment mode that an InferenceService names, or an empty string."""
    return str(service["metadata"].get("annotations", {}).get("serving.kserve.io/deploymentMode", ""))


def _deployed(found: Object) -> Pod:
    template = found["spec"]["template"]
    return Pod(found["metadata"]["name"], "Plain", template["metadata"]["labels"], template["spec"])


def _pod(bundle: Bundle, service: Object, name: str) -> Pod:
    """The pod of a component, by KServe's `components/predictor.go`: labels of the runtime, the object, the component."""
    component, meta = service["spec"][name], service["metadata"]
    spec = {key: copy.deepcopy(value) for key, value in component.items() if key not in EXTENSION}
    owner, mode = f"{meta['name']}-{name}", mode_of(service)
    labels = {
        **meta.get("labels", {}),
        **component.get("labels", {}),
        "serving.kserve.io/inferenceservice": meta["name"],
        "component": name,
        **({"app": f"isvc.{owner}"} if mode == "Standard" else {}),
    }
    if "model" in component:
        runtime = bundle.named("ClusterServingRuntime", component["model"].get("runtime", ""))
        labels = {**(runtime["spec"].get("labels", {}) if runtime else {}), **labels}
        spec |= _of_runtime(runtime["spec"] if runtime else {"containers": [{}]}, component["model"], meta["name"])
    if name == "transformer":
        _told(spec["containers"][0], meta)
    return Pod(owner, mode, labels, spec, component)


def _told(container: dict[str, Any], meta: Mapping[str, Any]) -> None:
    """The words that KServe adds to a transformer's, by `transformer_custom.go`, unless they stand there."""
    words = container.setdefault("args", [])
    host = f"{meta['name']}-predictor.{meta.get('namespace')}"
    for flag, value in (("--model_name", meta["name"]), ("--predictor_host", host), ("--http_port", "8080")):
        if flag not in words:
            words += [flag, value]


def _of_runtime(runtime: Mapping[str, Any], model: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The containers and volumes of a runtime, with the model's own variables and KServe's folder."""
    container = json.loads(json.dumps(runtime["containers"][0]).replace("{{.Name}}", name))
    container["env"] = [*container.get("env", []), *model.get("env", [])]
    container.setdefault("volumeMounts", []).append(
        {"name": "kserve-provision-location", "mountPath": "/mnt/models", "readOnly": True}
    )
    provided: dict[str, Any] = {"name": "kserve-provision-location", "emptyDir": {}}
    return {"containers": [container], "volumes": [*runtime.get("volumes", []), provided]}


def backends(bundle: Bundle) -> dict[str, dict[int, int]]:
    """Service → port → container port: those of the manifests, and those that KServe makes in Standard mode."""
    made = {
        found["metadata"]["name"]: {p["port"]: p.get("targetPort", p["port"]) for p in found["spec"]["ports"]}
        for found in bundle.of("Service")
    }
    for pod in bundle.pods:
        if pod.mode == "Standard":
            first, *others = [port["containerPort"] for port in pod.container.get("ports", [])] or [8080]
            main = AGENT_PORT if pod.behind_agent else first
            made[pod.owner] = {80: main, **{port: port for port in others}}
    return made


def knative_service(pod: Pod) -> Object:
    """The Knative Service that KServe makes of a component."""
    spec = {**pod.spec, "containers": [dict(pod.container)]}
    if "timeout" in pod.component:
        spec["timeoutSeconds"] = pod.component["timeout"]
    if "containerConcurrency" in pod.component:
        spec["containerConcurrency"] = pod.component["containerConcurrency"]
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": pod.owner},
        "spec": {"template": {"metadata": {"labels": pod.labels}, "spec": spec}},
    }


def deployment(pod: Pod) -> Object:
    """A Deployment of the pod, for the schemas of Kubernetes itself."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": pod.owner},
        "spec": {
            "selector": {"matchLabels": pod.labels},
            "template": {"metadata": {"labels": pod.labels}, "spec": pod.spec},
        },
    }


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector of equalities picks these labels. An empty one picks everything."""
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    return wanted.items() <= labels.items()


def walk(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every node of a tree with its path."""
    yield path, node
    if isinstance(node, dict):
        for key, value in node.items():
            yield from walk(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from walk(value, f"{path}[{i}]")
