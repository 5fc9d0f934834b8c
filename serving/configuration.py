"""How one version is served: operator's settings, version tags, MLmodel metadata and built-ins, resolved once at load.

Precedence for what a version may say of itself: the model's entry, version tag, MLmodel metadata, `defaults`, built-in.
Trust, deadlines and limits are the operator's alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from registry.errors import InvalidModel
from registry.signatures import SignatureRule
from serving.admission import BatchingLimits
from serving.feature_policy import FeaturePolicies
from serving.response_cache import CacheLimits

OUTPUTS = ("auto", "labels", "probabilities", "raw")
ACTIVATIONS = ("none", "sigmoid", "softmax")


@dataclass(frozen=True, slots=True)
class TorchOptions:
    """How PyTorch computes a network: the operator's word, which changes numbers or needs what not every machine has.
    `shared` if several processes load it."""

    device: str = "cpu"
    compile: bool = False
    autocast: str = "none"
    shared: bool = False


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the operator said of one model, as plain values; None where nothing was said."""

    allow_pickle: bool = False
    allow_code: bool = False
    allow_pickle_from: tuple[str, ...] = ()
    allow_code_from: tuple[str, ...] = ()
    digest: str | None = None
    signature: SignatureRule = field(default_factory=SignatureRule)
    timeout_ms: float = 1000.0
    ignore_extra_columns: bool = False
    isolation: str = "auto"
    memory_mb: int = 0
    hang_seconds: float = 60.0
    accelerate: str = "auto"
    torch: TorchOptions = field(default_factory=TorchOptions)
    response_cache: CacheLimits = field(default_factory=CacheLimits)
    entry: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Configuration:
    """The resolved configuration of one version."""

    limits: BatchingLimits
    timeout: float | None
    output: str = "auto"
    per_instance: bool = False
    task: str | None = None
    activation: str = "none"
    classes: tuple[Any, ...] | None = None
    feature_service: str | None = None
    feature_layers: tuple[Mapping[str, Any], ...] = ()
    hang_seconds: float = 60.0
    accelerate: bool = True
    torch: TorchOptions = field(default_factory=TorchOptions)
    response_cache: CacheLimits = field(default_factory=CacheLimits)


def resolve(options: ModelOptions, tags: Mapping[str, str], metadata: Mapping[str, str]) -> Configuration:
    """Merges all sources. Raises InvalidModel that names the tag whose value cannot be used."""
    said = {**metadata, **tags}
    own = _from_model(said)
    layers = [options.entry, own, options.defaults]

    def pick(key: str, default: Any) -> Any:
        return next((layer[key] for layer in layers if layer.get(key) is not None), default)

    builtin = BatchingLimits()
    if own["max_rows"] is not None:  # a batch of more rows than may wait never comes, but warm-up would allocate it
        own["max_rows"] = min(own["max_rows"], pick("max_queue", builtin.max_queue))
    limits = BatchingLimits(**{name: pick(name, getattr(builtin, name)) for name in BatchingLimits.__slots__})
    return Configuration(
        limits=limits,
        timeout=options.timeout_ms / 1000 or None,
        output=pick("output", "auto"),
        per_instance=pick("per_instance", False),
        task=_choice(said, "headway.task", ("classification", "regression")),
        activation=_choice(said, "headway.activation", ACTIVATIONS) or "none",
        classes=_classes(said),
        feature_service=said.get("feast.feature_service"),
        feature_layers=tuple(layer.get("features") or {} for layer in layers),
        hang_seconds=options.hang_seconds,
        accelerate=options.accelerate == "auto",
        torch=options.torch,
        response_cache=options.response_cache,
    )


def _from_model(said: Mapping[str, str]) -> dict[str, Any]:
    rows = _number(said, "headway.max_rows", lowest=1)
    return {
        "output": _choice(said, "headway.output", OUTPUTS),
        "per_instance": _boolean(said, "headway.per_instance"),
        "max_rows": None if rows is None else int(rows),
        "max_wait_ms": _number(said, "headway.max_wait_ms", lowest=0),
        "features": _policies(said),
    }


def _policies(said: Mapping[str, str]) -> dict[str, Any]:
    """What the version says of its features' policies; it knows best which of them it can do without."""
    try:
        return FeaturePolicies.model_validate_json(said.get("headway.features", "{}")).layer()
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part)[:64] for part in found["loc"])
        raise InvalidModel(f"the tag headway.features: {where}: {found['msg']}") from error


def _choice(said: Mapping[str, str], tag: str, choices: tuple[str, ...]) -> str | None:
    value = said.get(tag)
    if value is not None and value not in choices:
        raise InvalidModel(f"the tag {tag} must be one of {', '.join(choices)}")
    return value


def _boolean(said: Mapping[str, str], tag: str) -> bool | None:
    value = _choice({tag: said[tag].lower()} if tag in said else {}, tag, ("true", "false"))
    return None if value is None else value == "true"


def _number(said: Mapping[str, str], tag: str, lowest: float) -> float | None:
    if tag not in said:
        return None
    try:
        value = float(said[tag])
    except ValueError:
        value = -1.0
    if not lowest <= value <= 60_000 or (tag.endswith("rows") and value != int(value)):
        raise InvalidModel(f"the tag {tag} must be a number from {lowest:g} to 60000")
    return value


def _classes(said: Mapping[str, str]) -> tuple[Any, ...] | None:
    if "headway.classes" not in said:
        return None
    try:
        classes = json.loads(said["headway.classes"])
    except (ValueError, RecursionError):
        classes = None
    if not isinstance(classes, list) or not classes or not all(isinstance(c, str | int | bool) for c in classes):
        raise InvalidModel("the tag headway.classes must be a JSON list of strings or integers")
    return tuple(classes)
