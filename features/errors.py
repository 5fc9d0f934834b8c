"""Errors of the feature source.

FeatureError
├── InvalidEntity        a key or request-time input of the wrong type, or a row without one (the request's fault)
├── UnknownEntity        a key that the online store does not know (policy `error`)
├── NullFeature          a stored null (policy `error`)
├── FeaturesUnavailable  the store did not answer
│   └── StaleFeature     a value older than its max age (policy `error`)
├── FeatureFailed        an on-demand view raised, or the store holds what does not fit
└── InvalidFeatures      the feature service does not fit the version
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why a value could not simply be taken from the store."""

    MISSING = "missing"
    NULL = "null"
    STALE = "stale"
    OUTAGE = "outage"


class FeatureError(Exception):
    """Base of everything this package raises. `rows` is how many rows a policy of `error` refused, for `cause`."""

    cause: Cause | None = None

    def __init__(self, message: str, rows: int = 0) -> None:
        super().__init__(message)
        self.rows = rows


class InvalidEntity(FeatureError):
    """An entity key or input is missing or has the wrong type; the text names its column, never its value."""


class UnknownEntity(FeatureError):
    """No features are stored for a key of the request; the text names the key's column, never its value."""

    cause = Cause.MISSING


class NullFeature(FeatureError):
    """A stored feature is null; the text names it."""

    cause = Cause.NULL


class FeaturesUnavailable(FeatureError):
    """The online store could not be asked."""

    cause = Cause.OUTAGE


class StaleFeature(FeaturesUnavailable):
    """A stored feature is older than its max age; the text names it."""

    cause = Cause.STALE


class FeatureFailed(FeatureError):
    """An on-demand view raised. The reason is logged, never sent."""


class InvalidFeatures(FeatureError):
    """The feature service does not exist, or does not offer what the version needs."""
