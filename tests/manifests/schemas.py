"""Whether an object is one: Kubernetes' schemas for its own kinds, the definitions of the others, or KServe's SDK."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kserve
import kubernetes.client
import kubernetes_validate
import yaml

from tests.manifests.rendering import ROOT, Object

#: Custom resource definitions as data, where somebody has put them beside the checkout.
CRDS = ROOT.parent / "shared" / "crds"
#: The oldest and the newest Kubernetes that the manifests are written against.
VERSIONS = ("1.32", "1.37")
BUILT_IN = {
    "Namespace", "ServiceAccount", "ConfigMap", "Service", "Deployment", "PodDisruptionBudget", "NetworkPolicy",
    "HorizontalPodAutoscaler",
}  # fmt: skip
#: Kinds whose model is in KServe's SDK.
SDK = {"InferenceService": "V1beta1InferenceService", "ClusterServingRuntime": "V1alpha1ClusterServingRuntime"}


def problems(found: Object) -> tuple[str, ...]:
    """What a schema says against an object; unknown fields are refused."""
    return _problems(json.dumps(found, sort_keys=True))


@cache
def _problems(text: str) -> tuple[str, ...]:
    """By the object's text, because most objects are judged again and again."""
    return tuple(_judged(json.loads(text)))


def _judged(found: Object) -> Iterator[str]:
    if found["kind"] in BUILT_IN and not found["apiVersion"].startswith("serving.knative.dev"):
        yield from _built_in(found)
    elif definition(found) is not None:
        yield from _custom(found)
    elif found["kind"] in SDK:
        yield from modelled(found)


def judged(found: Object) -> bool:
    """Whether there is any schema at hand for the kind."""
    return found["kind"] in BUILT_IN or found["kind"] in SDK or definition(found) is not None


def _built_in(found: Object) -> Iterator[str]:
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"{'.'.join(str(part) for part in error.path)}: {error.message} (Kubernetes {version})"


def _custom(found: Object) -> Iterator[str]:
    for error in jsonschema.Draft202012Validator(definition(found)).iter_errors(found):
        yield f"{error.json_path}: {error.message[:300]}"


def modelled(found: Object) -> Iterator[str]:
    """What KServe's SDK has no field for, by its model classes."""
    yield from _unlike(SDK[found["kind"]], found, found["kind"])


def _unlike(kind: str, value: Any, path: str) -> Iterator[str]:
    """What a value has that its type in the SDK has not. Types that are no models of it (quantities) say nothing."""
    if match := re.fullmatch(r"[Ll]ist\[(.+)\]", kind):
        for i, item in enumerate(value):
            yield from _unlike(match[1], item, f"{path}[{i}]")
        return
    model = getattr(kserve.models, kind, None) or getattr(kubernetes.client.models, kind, None)
    if model is None:
        expected = {"str": str, "int": int, "bool": bool}.get(kind, object)
        if not isinstance(value, expected) or (kind == "int" and isinstance(value, bool)):
            yield f"{path}: {kind} expected"
        return
    names = {json_name: name for name, json_name in model.attribute_map.items()}
    for key, inner in value.items():
        if key in names:
            yield from _unlike(model.openapi_types[names[key]], inner, f"{path}.{key}")
        else:
            yield f"{path}.{key}: KServe's SDK has no such field"


def definition(found: Object) -> dict[str, Any] | None:
    """The strict schema of an object's kind and version, or None if its definition is not at hand."""
    group, _, version = found["apiVersion"].rpartition("/")
    return _definition(group, version, found["kind"])


@cache
def _definition(group: str, version: str, kind: str) -> dict[str, Any] | None:
    for path in CRDS.glob(f"{group}_*.yaml") if group else ():
        crd = _load(path)
        if crd["spec"]["names"]["kind"] == kind:
            served = [v for v in crd["spec"]["versions"] if v["name"] == version]
            return _object(served[0]["schema"]["openAPIV3Schema"]) if served else {"not": {}}
    return None


@cache
def _load(path: Path) -> dict[str, Any]:
    crd: dict[str, Any] = yaml.load(path.read_bytes(), yaml.CSafeLoader)
    return crd


def _object(schema: dict[str, Any]) -> dict[str, Any]:
    """The strict schema of a whole object; Istio's definitions leave out what every object has."""
    said = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"}}
    return _strict({**schema, "properties": {**said, **schema["properties"]}})


def _strict(schema: Any) -> Any:
    """The schema with unknown fields refused; the API server would drop them without a word."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    closed = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made
