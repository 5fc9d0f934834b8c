"""Errors of the feature source.

FeatureError
├── InvalidEntity        a key of the wrong type, or a row without one (the request's fault)
├── UnknownEntity        a key that the online store does not know (policy `error`)
├── FeaturesUnavailable  the store did not answer
└── InvalidFeatures      the feature service does not fit the version
"""


class FeatureError(Exception):
    """Base of everything this package raises."""


class InvalidEntity(FeatureError):
    """An entity key is missing or has the wrong type; the text names the key's column, never its value."""


class UnknownEntity(FeatureError):
    """No features are stored for a key of the request; the text names the key's column, never its value."""


class FeaturesUnavailable(FeatureError):
    """The online store could not be asked."""


class InvalidFeatures(FeatureError):
    """The feature service does not exist, or does not offer what the version needs."""
