"""Errors of the registry.

RegistryError
├── InvalidReference      the user named something that is no reference
├── RegistryUnavailable   MLflow did not answer, or answered nonsense: keep what is aspired
├── VersionNotFound       MLflow answered: there is no such model, alias, stage or version
├── CacheError            the artifact cache cannot hold or read a version: a full or read-only disk
├── InvalidModel          the version exists, but its files or tags cannot be used
├── RegistryRefused       MLflow understood what we wanted to write, and will not have it
└── UntrustedDelivery     a webhook's delivery that MLflow did not sign, or not now
"""


class RegistryError(Exception):
    """Base of everything this package raises."""


class InvalidReference(RegistryError):
    """A model reference that cannot be parsed, or that is not supported yet."""


class RegistryUnavailable(RegistryError):
    """The registry could not be asked; nothing is known about what exists."""


class VersionNotFound(RegistryError):
    """The registry was asked and has no such model, version, alias or stage."""


class InvalidModel(RegistryError):
    """A version whose MLmodel file, signature, tags or artifacts cannot be used."""


class CacheError(RegistryError):
    """The folder of the artifact cache cannot be used; the text says what to do."""


class RegistryRefused(RegistryError):
    """The registry refuses a change; the text says why, and what would have to be allowed."""


class UntrustedDelivery(RegistryError):
    """A delivery whose signature is missing, wrong, or of another time."""
