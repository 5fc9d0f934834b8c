"""What a feature service means for one version: which column comes from where, checked against the signature.

Read from Feast's registry once, when the version is loaded. No request ever touches that registry.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from features.errors import InvalidFeatures
from features.values import FITTING, FLOATING, KEY_TYPES, REQUEST_TYPES


@dataclass(frozen=True, slots=True)
class Key:
    """One join key: its name in a request and in the store (they differ where a view is joined twice), and Feast's type."""

    asked: str
    stored: str
    type: str


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class View:
    """What is read of one feature view: `floats` (DOUBLE, FLOAT) and `others`, by their stored names; `ttl` is seconds."""

    name: str
    keys: tuple[Key, ...]
    floats: tuple[str, ...]
    others: tuple[str, ...]
    types: Mapping[str, str]
    ttl: float | None
    table: Any = None

    @property
    def features(self) -> tuple[str, ...]:
        """All features that are read, floats first."""
        return self.floats + self.others


@dataclass(frozen=True, slots=True, eq=False)
class OnDemand:
    """An on-demand view: `sources` are the features (view, name) and `inputs` the request's fields that it computes from."""

    name: str
    sources: tuple[tuple[View, str], ...]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    view: Any = None


@dataclass(frozen=True, slots=True)
class Service:
    """A feature service as one version uses it. `stored` and `computed` are the signature's columns by their origin."""

    name: str
    views: tuple[View, ...]
    stored: Mapping[str, tuple[View, str]]
    computed: Mapping[str, tuple[OnDemand, str]]
    refs: frozenset[str] = field(default_factory=frozenset)

    @property
    def columns(self) -> frozenset[str]:
        """The columns of the signature that need not stand in a request."""
        return frozenset(self.stored) | frozenset(self.computed)

    @property
    def asked(self) -> frozenset[str]:
        """What may stand in a request beside columns: join keys and the inputs of on-demand views."""
        joined = {key.asked for view in self.views for key in view.keys}
        return frozenset(joined.union(*(view.inputs for view, _ in self.computed.values())))


def resolve(store: Any, name: str, columns: Mapping[str, str], recorded: frozenset[str] | None) -> Service:
    """The service of a signature's columns (name → MLflow type); `recorded` is what the training run wrote down.

    Raises InvalidFeatures that shows every difference, or that the service or one of its views is gone.
    """
    found, tables, on_demand = _find(store, name)
    refs = frozenset(f"{p.name_to_use()}:{f.name}" for p in found.feature_view_projections for f in p.features)
    offered = _offered(found)
    wanted = {column: offered[column] for column in columns if column in offered}
    problems = _differences(columns, offered, recorded, refs)
    if problems:
        raise InvalidFeatures(f"the feature service {name[:64]!r} does not fit the version: " + "; ".join(problems))
    computed_by = {view.projection.name_to_use(): view for view in on_demand}
    needed = [computed_by[view] for view, _, _ in wanted.values() if view in computed_by]
    views = _views(tables, [(view, feature) for view, feature, _ in wanted.values()], needed)
    _check_keys(views.values())
    made = {view.name: _on_demand(view, views) for view in needed}
    stored = {c: (views[view], feature) for c, (view, feature, _) in wanted.items() if view in views}
    computed = {c: (made[computed_by[view].name], f) for c, (view, f, _) in wanted.items() if view in computed_by}
    return Service(name, tuple(v for v in views.values() if v.features), stored, computed, refs)


def every_view(store: Any, service: str | None) -> list[View]:
    """The views with entities of a service, or of the whole repository, with all their features. Raises InvalidFeatures."""
    tables = store.list_feature_views(allow_cache=True) if service is None else _find(store, service)[1]
    names = [(table.projection.name_to_use(), feature.name) for table in tables for feature in table.features]
    views = [_view(table, names) for table in tables]
    found = [view for view in views if view.keys and view.features]
    _check_keys(found)
    return found


def _find(store: Any, name: str) -> tuple[Any, list[Any], list[Any]]:
    """The service and its views as Feast itself resolves them: sources of on-demand views included, versions applied."""
    from feast.errors import FeastObjectNotFoundException
    from feast.utils import _get_feature_views_to_use

    try:
        found = store.get_feature_service(name, allow_cache=True)
    except FeastObjectNotFoundException as error:
        raise InvalidFeatures(f"the Feast repository has no feature service {name[:64]!r}") from error
    try:
        tables, on_demand = _get_feature_views_to_use(store.registry, store.project, found, allow_cache=True)
    except (FeastObjectNotFoundException, ValueError) as error:  # a view is gone, disabled, or not materialised
        raise InvalidFeatures(f"the feature service {name[:64]!r} cannot be used: {str(error)[:200]}") from error
    return found, tables, on_demand


def _offered(found: Any) -> dict[str, tuple[str, str, str]]:
    """Column → (view, feature, Feast type), under its short name and as `view__feature`; a name of two views is neither's."""
    offered: dict[str, tuple[str, str, str]] = {}
    twice: set[str] = set()
    for projection in found.feature_view_projections:
        view = projection.name_to_use()
        for feature in projection.features:
            source = (view, feature.name, feature.dtype.to_value_type().name)
            twice |= {feature.name} & offered.keys()
            offered[feature.name] = offered[f"{view}__{feature.name}"] = source
    return {column: source for column, source in offered.items() if column not in twice}


def _differences(
    columns: Mapping[str, str],
    offered: Mapping[str, tuple[str, str, str]],
    recorded: frozenset[str] | None,
    refs: frozenset[str],
) -> list[str]:
    problems = [
        f"the feature {column[:64]!r} is a {offered[column][2]} in Feast and a {type} in the model's signature"
        for column, type in columns.items()
        if column in offered and offered[column][2] not in FITTING[type]
    ]
    if not offered.keys() & columns.keys():
        problems.append("it has none of the model's columns")
    if recorded is not None and recorded != refs:
        gone, new = recorded - refs, refs - recorded
        problems.append(
            f"the model was trained with {_listed(gone)} that it lacks, and it has {_listed(new)} beyond that"
        )
    return problems


def _listed(refs: Iterable[str]) -> str:
    names = sorted(refs)
    return ", ".join(repr(name[:64]) for name in names[:10]) + (" …" if names[10:] else "") if names else "nothing"


def _views(tables: list[Any], wanted: list[tuple[str, str]], needed: list[Any]) -> dict[str, View]:
    """The views to read, with just those features that a column or an on-demand view wants."""
    wanted = wanted + [
        (source.name_to_use(), feature.name)
        for view in needed
        for source in view.source_feature_view_projections.values()
        for feature in source.features
    ]
    return {table.projection.name_to_use(): _view(table, wanted) for table in tables}


def _view(table: Any, wanted: list[tuple[str, str]]) -> View:
    name = table.projection.name_to_use()
    known = {feature.name: feature.dtype.to_value_type().name for feature in table.features}
    types = {feature: known[feature] for view, feature in wanted if view == name}  # in the signature's order
    renamed = table.projection.join_key_map
    keys = [Key(renamed.get(c.name, c.name), c.name, c.dtype.to_value_type().name) for c in table.entity_columns]
    return View(
        name,
        tuple(sorted(keys, key=lambda key: key.stored)),
        tuple(feature for feature, type in types.items() if type in FLOATING),
        tuple(feature for feature, type in types.items() if type not in FLOATING),
        types,
        table.ttl.total_seconds() if table.ttl else None,
        table,
    )


def _check_keys(views: Iterable[View]) -> None:
    for view in views:
        if view.features and not view.keys:
            raise InvalidFeatures(f"the view {view.name[:64]!r} has no entity, which is not supported")
        for key in view.keys:
            if key.type not in KEY_TYPES:
                raise InvalidFeatures(f"the join key {key.asked[:64]!r} is a {key.type}; keys are strings or integers")


def _on_demand(view: Any, views: Mapping[str, View]) -> OnDemand:
    if view.write_to_online_store or view.aggregations:
        raise InvalidFeatures(
            f"the on-demand view {view.name[:64]!r} is not computed per request; that is not supported"
        )
    inputs = {name: type.name for name, type in view.get_request_data_schema().items()}
    for name, type in inputs.items():
        if type not in REQUEST_TYPES:
            raise InvalidFeatures(f"the input {name[:64]!r} of an on-demand view is a {type}, which is not supported")
    sources = tuple(
        (views[source.name_to_use()], feature.name)
        for source in view.source_feature_view_projections.values()
        for feature in source.features
    )
    return OnDemand(view.name, sources, inputs, {f.name: f.dtype.to_value_type().name for f in view.features}, view)
