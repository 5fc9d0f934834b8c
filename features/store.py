"""Online features from Feast: a lookup is prepared once per version and asks the store once per request."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.errors import FeaturesUnavailable, InvalidFeatures, UnknownEntity
from features.values import FITTING, KEY_TYPES, check_key, read_column

log = logging.getLogger("headway.features")
MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"
NOT_FOUND = 3  # feast.protos.feast.serving.ServingService_pb2.FieldStatus


@dataclass(frozen=True, slots=True)
class Offer:
    """What a feature service offers: its join keys, and its features with the keys that each hangs on."""

    keys: Mapping[str, str]
    features: Mapping[str, str]
    keys_of: Mapping[str, tuple[str, ...]]


class FeastSource:
    """A Feast repository. Importing Feast takes seconds and 200 MB, so it waits for the first version that needs it."""

    def __init__(self, repo_path: Path) -> None:
        self._path = repo_path
        self._lock = threading.Lock()
        self._store: Any = None

    def lookup(self, service: str, columns: Mapping[str, str]) -> FeastLookup:
        """Prepares the lookup of a feature service for a signature's columns (name → MLflow type). Blocks.

        Raises InvalidFeatures if the service does not exist or does not fit, FeaturesUnavailable if Feast's registry
        cannot be read.
        """
        with self._lock:  # versions load in several threads; Feast's registry cache is not made for that
            store = self._open()
            offer, found = _offer(store, service)
        _check(service, offer, columns)
        fitting = {name: columns[name] for name in columns if name in offer.features}
        lookup = FeastLookup(store, found, offer, fitting)
        lookup.warm()
        return lookup

    def _open(self) -> Any:
        """The store, with its registry read anew: definitions follow the versions, not a timer.

        A registry cache that expires would be read again *inside* a request, and a registry that is down would fail
        that request (Feast's file registry); so it never expires, and is read when a version is loaded.
        """
        try:
            if self._store is None:
                store = _feature_store()(repo_path=str(self._path))
                store.config.registry.cache_ttl_seconds = 0
                self._store = store
            self._store.refresh_registry()
        except ImportError as error:
            raise FeaturesUnavailable(f"Feast cannot be imported ({error}); it comes with the extra 'feast'") from error
        except Exception as error:
            raise FeaturesUnavailable(f"the Feast repository {self._path} cannot be opened: {error}") from error
        return self._store


def _feature_store() -> Any:
    """Feast's class. Its `metrics` module switches prometheus_client to multi-process mode for the whole process when it
    is imported, which Feast does inside the first lookup: it is imported here, and that is undone."""
    before = os.environ.get(MULTIPROC)
    from feast import FeatureStore, metrics  # noqa: F401  imported for what its import does

    if before is None:
        os.environ.pop(MULTIPROC, None)
    return FeatureStore


def _offer(store: Any, service: str) -> tuple[Offer, Any]:
    from feast.errors import FeatureServiceNotFoundException

    try:
        found = store.get_feature_service(service, allow_cache=True)
    except FeatureServiceNotFoundException as error:
        raise InvalidFeatures(f"the Feast repository has no feature service {service[:64]!r}") from error
    on_demand = {view.name for view in store.list_on_demand_feature_views(allow_cache=True)}
    keys: dict[str, str] = {}
    features: dict[str, str] = {}
    keys_of: dict[str, tuple[str, ...]] = {}
    for projection in found.feature_view_projections:
        if projection.name in on_demand:
            raise InvalidFeatures(
                f"the feature service {service[:64]!r} holds the on-demand view {projection.name[:64]!r}, "
                "which is not supported yet"
            )
        own = _join_keys(store, projection)
        keys.update(own)
        for field in projection.features:
            features[field.name] = field.dtype.to_value_type().name
            keys_of[field.name] = tuple(own)
    return Offer(keys, features, keys_of), found


def _join_keys(store: Any, projection: Any) -> dict[str, str]:
    """The join keys of a view as a request names them, with their Feast types."""
    view = store.get_feature_view(projection.name, allow_registry_cache=True)
    return {
        projection.join_key_map.get(column.name, column.name): column.dtype.to_value_type().name
        for column in view.entity_columns
    }


def _check(service: str, offer: Offer, columns: Mapping[str, str]) -> None:
    for name, type_name in offer.keys.items():
        if type_name not in KEY_TYPES:
            raise InvalidFeatures(f"the join key {name[:64]!r} is a {type_name}; keys are strings or integers")
    if not offer.features.keys() & columns.keys():
        raise InvalidFeatures(f"the feature service {service[:64]!r} has none of the model's columns")
    for name, column_type in columns.items():
        offered = offer.features.get(name)
        if offered is not None and offered not in FITTING[column_type]:
            raise InvalidFeatures(
                f"the feature {name[:64]!r} is a {offered} in Feast and a {column_type} in the model's signature"
            )


class FeastLookup:
    """Completes rows from one feature service. Shared by threads; blocks."""

    def __init__(self, store: Any, service: Any, offer: Offer, columns: Mapping[str, str]) -> None:
        self._store, self._service, self._offer, self._types = store, service, offer, dict(columns)
        self.keys = frozenset(offer.keys)
        self.columns = frozenset(columns)
        self._down = False

    def warm(self) -> None:
        """Asks once, because Feast's first answer is fifty times slower. A store that is down is no reason to fail."""
        blank = {name: ["" if kind == "STRING" else 0] for name, kind in self._offer.keys.items()}
        with contextlib.suppress(FeaturesUnavailable):
            self._ask(blank)

    def __call__(self, keys: Mapping[str, Sequence[Any]], columns: Sequence[str]) -> dict[str, np.ndarray]:
        """The named columns, each `[n]`, for `n` entities: one columnar call.

        Raises InvalidEntity for a missing key or one of the wrong type, UnknownEntity if nothing is stored for one,
        FeaturesUnavailable if the store fails.
        """
        answer = self._ask({name: check_key(name, kind, keys.get(name)) for name, kind in self._offer.keys.items()})
        position = {name: i for i, name in enumerate(answer.metadata.feature_names.val)}
        found = {}
        for column in columns:
            result = answer.results[position[column]]
            if NOT_FOUND in result.statuses:
                key = " and ".join(repr(name[:64]) for name in self._offer.keys_of[column])
                raise UnknownEntity(f"No features are stored for a value of the entity key {key}.")
            found[column] = read_column(result.values, self._types[column])
        return found

    def _ask(self, entities: Mapping[str, Sequence[Any]]) -> Any:
        try:
            answer = self._store.get_online_features(features=self._service, entity_rows=entities).proto
        except Exception as error:
            self._note(error)
            raise FeaturesUnavailable("The feature store did not answer.") from error
        self._note(None)
        return answer

    def _note(self, error: Exception | None) -> None:
        """One line when the store goes and one when it comes back, not one per request."""
        if (error is not None) == self._down:
            return
        self._down = error is not None
        if error is None:
            log.info("feature store answers again", extra={"service": self._service.name})
        else:
            log.warning("feature store does not answer", extra={"service": self._service.name}, exc_info=error)
