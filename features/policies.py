"""What is done about a value that the store does not simply give, per feature.

`error` refuses the request, `null` passes a missing value on, `default` puts a value in its place, `last_good` the last
one that was read for the same key. Layers are consulted in order (a model's entry, its tag, the defaults); within one,
`columns` beats `views`, and `views` beats what stands at its top. A layer's keys are `on_missing`, `on_null`, `on_stale`,
`on_outage`, `default`, `max_age_seconds` (or `ttl`, the view's own) and `last_good_seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features.errors import Cause, InvalidFeatures

ACTIONS = ("error", "null", "default", "last_good")
LAST_GOOD_SECONDS = 3600.0
_TAKES: dict[str, tuple[type, ...]] = {
    "double": (int, float), "float": (int, float), "long": (int,), "integer": (int,), "boolean": (bool,), "string": (str,),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Policy:
    """One feature's policy. `max_age` and `last_good_seconds` are seconds; None is no limit."""

    actions: Mapping[Cause, str]
    default: Any = None
    max_age: float | None = None
    last_good_seconds: float = LAST_GOOD_SECONDS

    @property
    def remembers(self) -> bool:
        """Whether anything is ever answered with the last good value."""
        return "last_good" in self.actions.values()


@dataclass(frozen=True, slots=True)
class Target:
    """The feature a policy is for. `type` is the MLflow type of its column; an input alone is not `required`."""

    view: str
    column: str
    type: str
    required: bool
    ttl: float | None


def policy_for(layers: Sequence[Mapping[str, Any]], target: Target) -> Policy:
    """The policy of one feature. Raises InvalidFeatures that names the setting and the feature."""

    def said(key: str, default: Any) -> Any:
        return next((scope[key] for scope in _scopes(layers, target) if scope.get(key) is not None), default)

    builtin = {Cause.NULL: "error" if target.required else "null"}
    actions = {cause: said(f"on_{cause}", builtin.get(cause, "error")) for cause in Cause}
    default, max_age = said("default", None), said("max_age_seconds", None)
    _check(actions, default, target)
    seconds = target.ttl if max_age == "ttl" else max_age
    return Policy(actions, default, seconds, said("last_good_seconds", LAST_GOOD_SECONDS))


def _scopes(layers: Sequence[Mapping[str, Any]], target: Target) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    for layer in layers:
        for within, name in (("columns", target.column), ("views", target.view)):
            found.append((layer.get(within) or {}).get(name) or {})
        found.append(layer)
    return found


def _check(actions: Mapping[Cause, str], default: Any, target: Target) -> None:
    name = target.column[:64]
    for cause, action in actions.items():
        if action not in ACTIONS:
            raise InvalidFeatures(f"features.on_{cause} of {name!r} must be one of {', '.join(ACTIONS)}")
        if action == "null" and target.required:
            raise InvalidFeatures(
                f"features.on_{cause} of {name!r} is null, but the signature requires that column: "
                "choose error, default or last_good"
            )
        if action == "default" and default is None:
            raise InvalidFeatures(f"features.on_{cause} of {name!r} is default, and there is no features.default")
    takes = _TAKES.get(target.type)
    if default is not None and "default" in actions.values() and (takes is None or type(default) not in takes):
        raise InvalidFeatures(f"features.default of {name!r} does not fit a {target.type}")
