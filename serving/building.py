"""The two ends of a servable's life: the batcher in front of what was loaded, and its disposal."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace

from features.errors import FeatureError
from registry.errors import RegistryError
from serving.batching import Batcher
from serving.loading import Loaded
from serving.predicting import LOST
from serving.response_cache import ResponseCache
from serving.servable import Servable, Watcher
from serving.threads import Quit
from serving.turns import Turns

log = logging.getLogger("headway.lifecycle")


def build_batcher(
    servable: Servable,
    loaded: Loaded,
    cost_ms: float,
    watcher: Watcher,
    turns: Turns | None = None,
    given_up: Callable[[str], None] = lambda reason: None,
) -> Batcher:
    """The batcher of a version that has been warmed; `cost_ms` is what a full batch took. An engine that takes one call at a
    time gets one, whatever the setting. `given_up` hears why the version is of no use any more."""
    name, number = servable.model, servable.version.version
    limits = loaded.configuration.limits
    if limits.concurrency > 1 and not loaded.runtime.engine.parallel:
        facts = {"model": name, "version": number, "engine": loaded.runtime.engine.name}
        log.warning("batching.concurrency does not hold: this engine computes one batch at a time", extra=facts)
        limits = replace(limits, concurrency=1)

    def observe(requests: int, rows: int, seconds: float) -> None:
        watcher.batch(name, number, requests, rows, seconds)

    own = loaded.process is None  # else whoever hangs is ended, and that is counted
    return Batcher(
        loaded.runtime,
        limits,
        cost_ms,
        observe,
        inline=own,
        hang_seconds=loaded.configuration.hang_seconds if own else None,
        overdue=lambda seconds: watcher.overdue(name, number, seconds),
        lost=lambda run: LOST.add(name, number, run),
        given_up=given_up,
        turns=turns,
    )


def build_cache(servable: Servable, watcher: Watcher) -> ResponseCache | None:
    """The response cache in front of a version's batcher, if it is to have one."""
    loaded, batcher = servable.ready
    configuration = loaded.configuration
    if configuration.response_cache.max_bytes == 0:
        return None
    name, number = servable.model, servable.version.version
    return ResponseCache(
        batcher,
        configuration.response_cache,
        configuration.limits.max_queue,
        lambda outcome: watcher.asked(name, number, outcome),
        lambda reason: watcher.evicted(name, number, reason),
    )


class Disposal:
    """Disposes of a loaded version and collects the cycles that models hold, in a thread."""

    def __init__(self, servable: Servable) -> None:
        self._loaded, servable.loaded = servable.loaded, None

    def __call__(self) -> None:
        """Blocks."""
        loaded, self._loaded = self._loaded, None
        if loaded is not None:
            loaded.dispose()
            del loaded
            gc.collect()


def reason_of(error: Exception) -> str:
    """The first line of an error, for people, ours whole; a library's is cut, and says its class."""
    if isinstance(error, Quit):
        return f"its code raised {type(error.__cause__).__name__}"
    text = (str(error).strip().splitlines() or [""])[0]
    return text[:2000] if isinstance(error, RegistryError | FeatureError) else f"{type(error).__name__}: {text[:300]}"
