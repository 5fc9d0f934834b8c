"""Policies applied: what becomes of values that are missing, null, stale or out of reach, and a note of each."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from cachetools import LRUCache

from features.blocks import Block
from features.errors import Cause, FeatureError, FeaturesUnavailable, NullFeature, StaleFeature, UnknownEntity
from features.policies import Policy
from features.readers import Entity

REMEMBERED = 100_000


@dataclass(frozen=True, slots=True)
class Event:
    """`action` was taken for `column` in the rows `[m]` of a lookup, because of `cause`."""

    action: str
    cause: Cause
    column: str
    rows: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Feature:
    """One feature as a request sees it: its column, the keys it hangs on (none if it is computed), and its policy."""

    column: str
    keys: tuple[str, ...]
    policy: Policy


class Memory:
    """The last good value per feature and entity, the least recently used of them forgotten."""

    def __init__(self, size: int = REMEMBERED) -> None:
        self._values: LRUCache[tuple[Feature, Entity], tuple[Any, float]] = LRUCache(size)

    def keep(self, feature: Feature, entities: Sequence[Entity], values: np.ndarray, good: np.ndarray) -> None:
        """Remembers the good values `[n]` of a feature."""
        now, plain = time.monotonic(), values.tolist()
        for i in np.flatnonzero(good).tolist():
            self._values[feature, entities[i]] = plain[i], now

    def recall(self, feature: Feature, entity: Entity) -> Any:
        """The value, if it was read recently enough for the feature's policy; else None."""
        value, when = self._values.get((feature, entity), (None, 0.0))
        return value if time.monotonic() - when <= feature.policy.last_good_seconds else None


def settle(
    feature: Feature,
    values: np.ndarray,
    block: Block | None,
    wanted: np.ndarray,
    entities: Sequence[Entity],
    memory: Memory,
) -> tuple[np.ndarray, list[Event]]:
    """The values `[n]` after the policy, and what was done. Without a `block` the store is out of reach.

    Only rows that are `wanted` count. Raises UnknownEntity, NullFeature, StaleFeature or FeaturesUnavailable.
    """
    troubles = _troubles(feature.policy, values, block)
    if feature.policy.remembers and feature.keys:
        bad = np.logical_or.reduce([mask for _, mask in troubles])
        memory.keep(feature, entities, values, wanted & ~bad)
    events: list[Event] = []
    for cause, mask in troubles:
        rows = np.flatnonzero(mask & wanted)
        if len(rows):
            values = values.copy()
            events += _act(feature, cause, values, rows, entities, memory)
    return values, events


def _troubles(policy: Policy, values: np.ndarray, block: Block | None) -> list[tuple[Cause, np.ndarray]]:
    if block is None:
        return [(Cause.OUTAGE, np.ones(len(values), dtype=bool))]
    missing = np.isnan(block.seconds)
    null = nulls(values) & ~missing
    found = [(Cause.MISSING, missing), (Cause.NULL, null)]
    if policy.max_age is not None:
        found.append((Cause.STALE, (time.time() - block.seconds > policy.max_age) & ~null))
    return found


def nulls(values: np.ndarray) -> np.ndarray:
    """Which values `[n]` are NaN or None."""
    if values.dtype.kind == "f":
        return np.asarray(np.isnan(values))
    return np.array([value is None for value in values.tolist()], dtype=bool)


def _act(
    feature: Feature, cause: Cause, values: np.ndarray, rows: np.ndarray, entities: Sequence[Entity], memory: Memory
) -> list[Event]:
    policy = feature.policy
    action = policy.actions[cause]
    if action == "error":
        raise refusal(feature, cause, len(rows))
    if action == "last_good":
        return _recall(feature, cause, values, rows, entities, memory)
    blank = np.nan if values.dtype.kind == "f" else None
    values[rows] = policy.default if action == "default" else blank
    return [Event(action, cause, feature.column, rows)]


def _recall(
    feature: Feature, cause: Cause, values: np.ndarray, rows: np.ndarray, entities: Sequence[Entity], memory: Memory
) -> list[Event]:
    """The last good values; where there is none the default, and where there is none of these either, an error.

    A computed feature has none of its own: those of its sources have gone into it.
    """
    policy, column = feature.policy, feature.column
    known = [memory.recall(feature, entities[i]) if feature.keys else None for i in rows.tolist()]
    lost = np.array([value is None for value in known])
    if lost.any() and policy.default is None:
        raise refusal(feature, cause, int(lost.sum()))
    for row, value in zip(rows.tolist(), known, strict=True):
        values[row] = policy.default if value is None else value
    parts = (("last_good", rows[~lost]), ("default", rows[lost]))
    return [Event(action, cause, column, some) for action, some in parts if len(some)]


def refusal(feature: Feature, cause: Cause, rows: int) -> FeatureError:
    """The error of a policy, naming the feature or its key, never a value."""
    name, keys = feature.column[:64], " and ".join(repr(key[:64]) for key in feature.keys)
    match cause:
        case Cause.MISSING:
            return UnknownEntity(f"No features are stored for a value of the entity key {keys}.", rows)
        case Cause.NULL:
            return NullFeature(f"The feature {name!r} has no value for a row that needs it.", rows)
        case Cause.STALE:
            return StaleFeature(f"The stored feature {name!r} is older than its max age.", rows)
        case _:
            return FeaturesUnavailable("The feature store did not answer.", rows)
