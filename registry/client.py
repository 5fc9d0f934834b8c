"""MLflow's client for the commands that write, and its errors in our words."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.answers import bound_answers
from registry.errors import RegistryError, RegistryRefused, RegistryUnavailable, VersionNotFound
from registry.mlflow_registry import CLIENT_DEFAULTS, cause_of


def connect(tracking_uri: str | None, registry_uri: str | None) -> MlflowClient:
    """A client of the registry; None means what MLflow's own variables say."""
    for name, value in CLIENT_DEFAULTS.items():
        os.environ.setdefault(name, value)
    bound_answers()
    return MlflowClient(tracking_uri, registry_uri)


@contextlib.contextmanager
def asking(what: str) -> Iterator[None]:
    """Turns MLflow's errors into ours; `what` is the thing asked about, as in "model 'fraud'".

    Raises VersionNotFound, RegistryRefused with MLflow's own sentence, or RegistryUnavailable.
    """
    try:
        yield
    except (MlflowException, NotImplementedError) as error:
        raise _ours(error, what) from error


def _ours(error: Exception, what: str) -> RegistryError:
    code, text = getattr(error, "error_code", ""), str(error)
    if code == "RESOURCE_DOES_NOT_EXIST" or "not found" in text:
        return VersionNotFound(f"{what} does not exist in the registry")
    if code and code != "INTERNAL_ERROR":
        said = text.removeprefix(f"{code}: ").strip().splitlines()
        return RegistryRefused(f"MLflow refuses {what}: {said[0] if said else code}")
    return RegistryUnavailable(f"the registry did not answer for {what}: {cause_of(error)}")
