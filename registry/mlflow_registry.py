"""The MLflow registry behind one small port: list a catalogue, fetch a version's files.

One cheap GET per policy and poll, and which one depends on the policy: `registered-models/get` lists only the newest
version per stage, so an alias or a number needs its own call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.errors import InvalidModel, RegistryError, RegistryUnavailable, VersionNotFound
from registry.policies import Catalogue, FollowAlias, Pinned, Policy
from registry.versions import ModelVersion, configuring

#: MLflow's own defaults retry for minutes; a serving process wants to know within seconds, and polls again anyway.
PATIENCE = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}

_FEAST_HEADERS = "feast.infra.data_sources.mlflow.auth"


@contextlib.contextmanager
def _without_feast() -> Iterator[None]:
    """Keeps Feast's header plugin out of MLflow: installing Feast is enough for MLflow to import it (seconds, 200 MB) at
    its first call, and it would send a pod's ServiceAccount token to whatever server is configured. MLflow's own
    variables say who we are."""
    blocked = _FEAST_HEADERS not in sys.modules
    if blocked:
        sys.modules[_FEAST_HEADERS] = None  # type: ignore[assignment]  # documented: makes the import fail
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Failure attempting to register request header provider")
            yield
    finally:
        if blocked:
            del sys.modules[_FEAST_HEADERS]


with _without_feast():
    import mlflow.tracking.request_header.registry


class MlflowRegistry:
    """Reads a registry over HTTP or from SQLite. Methods block: call them in a thread."""

    def __init__(self, tracking_uri: str | None = None, registry_uri: str | None = None) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        # A download resolves `models:/…` with the process's registry, whatever it is told of the tracking server.
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        if registry_uri is not None:
            mlflow.set_registry_uri(registry_uri)
        self._client = MlflowClient()

    def catalogue(self, policy: Policy) -> Catalogue:
        """The versions that the policy has to choose from.

        Raises VersionNotFound when MLflow says that there are none, RegistryUnavailable when it cannot be asked.
        """
        return _asking(lambda: self._ask(policy), policy.uri)

    def fetch(self, version: ModelVersion, into: Path) -> Path:
        """Downloads the version's files below `into`, which must be empty, and returns their folder."""
        try:
            return Path(download_artifacts(artifact_uri=version.uri, dst_path=str(into)))
        except Exception as error:
            raise InvalidModel(f"the files of {version.uri} could not be downloaded: {_brief(error)}") from error

    def _ask(self, policy: Policy) -> Catalogue:
        if isinstance(policy, Pinned):
            return (_version(self._client.get_model_version(policy.name, policy.version)),)
        if isinstance(policy, FollowAlias):
            found = self._client.get_model_version_by_alias(policy.name, policy.alias)
            version = _version(found)
            # The store answers by alias, but not every store lists the alias on the version it returns.
            return (version if policy.alias in version.aliases else _with_alias(found, policy.alias),)
        model = self._client.get_registered_model(policy.name)
        return tuple(_version(v, model.aliases) for v in model.latest_versions)


def _asking(call: Callable[[], Catalogue], uri: str) -> Catalogue:
    try:
        return call()
    except RegistryError:
        raise
    except Exception as error:
        if isinstance(error, MlflowException) and _says_absent(error):
            raise VersionNotFound(f"{uri} does not exist in the registry") from error
        raise RegistryUnavailable(f"the registry did not answer for {uri}: {_cause(error)}") from error


def _says_absent(error: MlflowException) -> bool:
    """A missing alias is an INVALID_PARAMETER_VALUE in MLflow, anything else that is missing has a code of its own."""
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or "not found" in str(error.message)


#: What the text of an error of the client gives away of its cause. The text itself holds addresses, and stays in the log.
CAUSES = (
    ("refused", "connection refused"),
    ("timed out", "it took too long"),
    ("resolve", "its name cannot be resolved"),
    ("CERTIFICATE", "its certificate is not trusted"),
    ("Invalid Host header", "it refuses our Host header; see MLFLOW_SERVER_ALLOWED_HOSTS"),
    ("401", "it wants other credentials"),
    ("403", "it forbids the call"),
    ("too many 500", "it answers 500"),
    ("error code 5", "it answers an error"),
)


def _cause(error: Exception) -> str:
    return next((words for fragment, words in CAUSES if fragment in str(error)), type(error).__name__)


def _version(found: MlflowVersion, aliases: dict[str, Any] | None = None) -> ModelVersion:
    number = str(found.version)
    own = found.aliases if aliases is None else [a for a, v in aliases.items() if str(v) == number]
    return ModelVersion(
        name=found.name,
        version=number,
        source=found.source or "",
        configuration=configuring(found.tags or {}),
        run_id=found.run_id or None,
        stage=found.current_stage,
        aliases=tuple(sorted(own or ())),
        usable=found.status == "READY",
    )


def _with_alias(found: MlflowVersion, alias: str) -> ModelVersion:
    return _version(found, {alias: found.version, **dict.fromkeys(found.aliases or (), found.version)})


def _brief(error: Exception) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:200]
