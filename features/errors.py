"""Errors of the feature source.

FeatureError
├── UnknownEntity        a key that the online store does not know (policy `error`)
├── FeaturesUnavailable  the store did not answer
└── InvalidFeatures      the feature service does not fit the version
"""


class FeatureError(Exception):
    """Base of everything this package raises."""


class UnknownEntity(FeatureError):
    """No features are stored for a key of the request; the text names the key's column, never its value."""


class FeaturesUnavailable(FeatureError):
    """The online store could not be asked."""


class InvalidFeatures(FeatureError):
    """The feature service does not exist, or does not offer what the version needs."""
