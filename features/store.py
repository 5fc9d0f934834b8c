"""The Feast repository: opened for the first version that needs it, read anew for each that is loaded."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from features.breaker import Breaker, Circuit
from features.coalescing import Store
from features.errors import FeaturesUnavailable
from features.lookup import FeastLookup
from features.readers import Read, Reader, Threaded, feast_read
from features.redis_reader import RedisReader, agrees, fail_fast, readable
from features.remote_reader import remote_read
from features.service import Service, View, resolve
from features.threads import Threads

log = logging.getLogger("headway.features")
MULTIPROC = "PROMETHEUS_MULTIPROC_DIR"


class FeastSource:
    """A Feast repository. Importing Feast takes seconds and 200 MB, so it waits for the first version that needs it.

    `timeout_seconds` bounds a read of the online store; `observe` hears of every read, `changed` of the breaker.
    """

    def __init__(
        self,
        repo_path: Path,
        timeout_seconds: float = 0.25,
        observe: Callable[[str, int, float], None] = lambda outcome, entities, seconds: None,
        changed: Callable[[Circuit], None] = lambda circuit: None,
    ) -> None:
        self._path, self._timeout, self._observe = repo_path, timeout_seconds, observe
        self._lock = threading.Lock()
        self._feast: Any = None
        self._breaker = Breaker(changed=changed)
        self._threads = Threads(4, "headway-on-demand")
        self._redis: RedisReader | None = None
        self._threaded: Threaded | None = None
        self._on_loop: Store
        self._in_threads: Store

    def lookup(
        self,
        service: str,
        columns: Mapping[str, tuple[str, bool]],
        layers: Sequence[Mapping[str, Any]] = (),
        recorded: frozenset[str] | None = None,
    ) -> FeastLookup:
        """Prepares the lookup of a feature service for a signature's columns (name → MLflow type, required). Blocks.

        `layers` say the policies; `recorded` are the features (`view:feature`) that the training run wrote down.
        Raises InvalidFeatures if the service does not exist or does not fit, FeaturesUnavailable if Feast's registry
        cannot be read.
        """
        with self._lock:  # versions load in several threads; Feast's registry cache is not made for that
            feast = self._open()
            found = resolve(feast, service, {name: type for name, (type, _) in columns.items()}, recorded)
            store = self._store(feast, found.views)
        _tell(found, columns, store.reader)
        return FeastLookup(store, found, columns, layers, self._threads)

    async def close(self) -> None:
        """Ends connections and threads; what hangs is left behind."""
        if self._redis is not None:
            await self._redis.aclose()
        if self._threaded is not None:
            self._threaded.close()
        self._threads.close()

    def _open(self) -> Any:
        """The store, with its registry read anew: definitions follow the versions, not a timer."""
        self._feast = open_feast(self._path, self._feast)
        return self._feast

    def _store(self, feast: Any, views: Sequence[View]) -> Store:
        """Redis on the loop where its layout is known; Feast's server and every other store in threads."""
        if readable(feast) and agrees(feast, views, self._timeout):
            if self._redis is None:
                self._redis = RedisReader(feast, self._timeout)
                self._on_loop = self._guarded(self._redis)
            self._redis.prepare(views)
            return self._on_loop
        if self._threaded is None:
            self._threaded = Threaded(self._blocking(feast))
            self._in_threads = self._guarded(self._threaded)
        return self._in_threads

    def _guarded(self, reader: Reader) -> Store:
        return Store(reader, self._breaker, self._timeout, self._observe)

    def _blocking(self, feast: Any) -> Read:
        kind = feast.config.online_store.type
        if kind == "redis":
            fail_fast(feast, self._timeout)
        return remote_read(feast, self._timeout) if kind == "remote" else feast_read(feast)


def open_feast(path: Path, feast: Any = None) -> Any:
    """A repository's store, with its registry just read. Raises FeaturesUnavailable.

    A registry cache that expires would be read again *inside* a request, and a registry that is down would fail that
    request (Feast's file registry); so it never expires, and is read when a version is loaded.
    """
    try:
        if feast is None:
            feast = _feature_store()(repo_path=str(path))
            feast.config.registry.cache_ttl_seconds = 0
        feast.refresh_registry()
    except ImportError as error:
        raise FeaturesUnavailable(f"Feast cannot be imported ({error}); it comes with the extra 'feast'") from error
    except Exception as error:
        raise FeaturesUnavailable(f"the Feast repository {path} cannot be opened: {error}") from error
    return feast


def _tell(service: Service, columns: Mapping[str, tuple[str, bool]], reader: Reader) -> None:
    """Where each column comes from, in the log."""
    sources = {c: view.name for c, (view, _) in service.stored.items()} | {
        c: on_demand.name for c, (on_demand, _) in service.computed.items()
    }
    log.info(
        "features resolved",
        extra={
            "feature_service": service.name,
            "columns": {name: sources.get(name, "request") for name in columns},
            "reader": type(reader).__name__,
        },
    )


def _feature_store() -> Any:
    """Feast's class. Its `metrics` module switches prometheus_client to multi-process mode for the whole process when it
    is imported, which Feast does inside the first lookup: it is imported here, and that is undone."""
    before = os.environ.get(MULTIPROC)
    from feast import FeatureStore, metrics  # noqa: F401  imported for what its import does

    if before is None:
        os.environ.pop(MULTIPROC, None)
    return FeatureStore
