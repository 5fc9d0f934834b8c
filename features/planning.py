"""What a set of columns takes, worked out once: a request may leave any set of a version's columns open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from features.policies import Policy, Target, policy_for
from features.service import OnDemand, Service, View
from features.settling import Feature

#: Where a feature is in a block: among the floats or the others, and at which position.
Place = tuple[bool, int]


@dataclass(frozen=True, slots=True)
class Plan:
    """What a set of columns takes: views to read, stored columns, and on-demand views with their outputs.

    `matrix` is the one view whose floats are all that is wanted, with their columns in the order of `View.floats`; `clean`
    says that values that are there need no second look.
    """

    views: tuple[View, ...]
    matrix: tuple[View, tuple[str, ...]] | None
    stored: tuple[tuple[str, View, Place], ...]
    computed: tuple[tuple[OnDemand, tuple[tuple[str, str], ...]], ...]
    clean: bool


def make_plan(service: Service, features: Mapping[str, Feature], names: tuple[str, ...]) -> Plan:
    """What these columns of a service take."""
    sources = [(name, *service.stored[name]) for name in names if name in service.stored]
    stored = tuple((column, view, place(view, feature)) for column, view, feature in sources)
    computed: dict[OnDemand, list[tuple[str, str]]] = {}
    for name in names:
        if name in service.computed:
            on_demand, output = service.computed[name]
            computed.setdefault(on_demand, []).append((name, output))
    views = [view for _, view, _ in stored] + [view for made in computed for view, _ in made.sources]
    return Plan(
        views=tuple(dict.fromkeys(views)),
        matrix=_matrix(stored),
        stored=stored,
        computed=tuple((on_demand, tuple(outputs)) for on_demand, outputs in computed.items()),
        clean=not computed and all(_plain(features[name].policy) for name, _, _ in stored),
    )


def place(view: View, name: str) -> Place:
    """Where a feature of a view is."""
    return (True, view.floats.index(name)) if name in view.floats else (False, view.others.index(name))


def _matrix(stored: Sequence[tuple[str, View, Place]]) -> tuple[View, tuple[str, ...]] | None:
    """The view and the columns, if these are all floats of one view, each once."""
    views = {view for _, view, _ in stored}
    names = {at: column for column, _, (floats, at) in stored if floats}
    if len(views) != 1 or len(names) != len(stored):
        return None
    view = views.pop()
    return (view, tuple(names[i] for i in range(len(names)))) if len(names) == len(view.floats) else None


def _plain(policy: Policy) -> bool:
    """Whether a value that is there needs no second look."""
    return policy.max_age is None and not policy.remembers


def features_of(
    service: Service, columns: Mapping[str, tuple[str, bool]], layers: Sequence[Mapping[str, Any]]
) -> dict[str, Feature]:
    """Features by column; the sources of on-demand views as `view__feature`."""
    found = {}
    for column, (view, _) in service.stored.items():
        target = Target(view.name, column, *columns[column], ttl=view.ttl)
        found[column] = Feature(column, tuple(key.asked for key in view.keys), policy_for(layers, target))
    for column, (on_demand, _) in service.computed.items():
        target = Target(on_demand.name, column, *columns[column], ttl=None)
        found[column] = Feature(column, (), policy_for(layers, target))
        for view, name in on_demand.sources:
            type = _MLFLOW.get(view.types[name], "binary")
            policy = policy_for(layers, Target(view.name, name, type, required=False, ttl=view.ttl))
            found[f"{view.name}__{name}"] = Feature(name, tuple(key.asked for key in view.keys), policy)
    return found


_MLFLOW = {
    "DOUBLE": "double", "FLOAT": "double", "INT32": "long", "INT64": "long", "BOOL": "boolean", "STRING": "string",
    "UNIX_TIMESTAMP": "datetime",
}  # fmt: skip
