"""The MLflow registry behind one small port: list a catalogue, download a version's files.

One cheap GET per policy and poll, and which one depends on the policy: `registered-models/get` lists only the newest
version per stage, so an alias, a number and a tag need calls of their own.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlflow
import yaml
from mlflow.artifacts import download_artifacts, load_dict
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from registry.answers import bound_answers
from registry.documents import read_yaml
from registry.errors import InvalidModel, RegistryUnavailable, VersionNotFound
from registry.patience import NotAskedAgain, Patience, is_answer, within
from registry.policies import Catalogue, EveryCarrier, Fixed, FollowAlias, FollowTag, Pinned, Policy
from registry.versions import ModelVersion, configuring, is_name, usable_aliases

log = logging.getLogger("headway.registry")
#: What Feast's integration leaves in a run: the features that the model was trained with.
RECORDED = "feast_features.json"
FEATURE_SERVICE = "feast.feature_service"
#: A load waits no longer for the comparison with them.
RECORDED_SECONDS = 10.0
#: What MLflow's servers give at most.
PAGE = 1000
NONSENSE = "what it says makes no sense"
#: MLflow's own defaults retry for minutes; a serving process wants to know within seconds, and polls again anyway.
CLIENT_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
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

    def __init__(
        self,
        tracking_uri: str | None = None,
        registry_uri: str | None = None,
        patience: Patience | None = None,
        store_patience: Patience | None = None,
    ) -> None:
        """`patience` is with the registry, `store_patience` with the artifact store: one may be down without the other."""
        for name, value in CLIENT_DEFAULTS.items():
            os.environ.setdefault(name, value)
        bound_answers()
        # A download resolves `models:/…` with the process's registry, whatever it is told of the tracking server.
        if tracking_uri is not None:
            mlflow.set_tracking_uri(tracking_uri)
        if registry_uri is not None:
            mlflow.set_registry_uri(registry_uri)
        self._patience, self._store_patience = patience or Patience(), store_patience or Patience(what="artifact store")
        self._service_of = lru_cache(maxsize=1024)(self._ask_run)  # a run is over: its tag is asked for once

    @cached_property
    def _client(self) -> MlflowClient:
        """Made at the first question: whoever serves a folder asks none, and without a server MLflow's client would
        make a database in the working folder."""
        return MlflowClient()

    @property
    def identity(self) -> str:
        """Which registry this is, without credentials: versions of two registries are never confused."""
        return " ".join(_without_login(uri) for uri in (mlflow.get_tracking_uri(), mlflow.get_registry_uri()))

    def catalogue(self, policy: Policy) -> Catalogue:
        """The versions that the policy has to choose from.

        Raises VersionNotFound when MLflow says that there are none, RegistryUnavailable when it cannot be asked.
        """
        if isinstance(policy, Fixed) and not policy.uri.startswith(("models:", "runs:")):
            return (_folder(policy.uri),)
        try:
            found = self._patience.ask(lambda: tuple(self._with_run(version) for version in self._ask(policy)))
        except MlflowException as error:
            if _says_absent(error):
                raise VersionNotFound(f"{policy.uri} does not exist in the registry") from error
            raise _unavailable(policy, error) from error
        except Exception as error:
            raise _unavailable(policy, error) from error
        if not all(_makes_sense(version, policy) for version in found):
            raise _unavailable(policy, ValueError(NONSENSE))
        return found

    def recorded_features(self, version: ModelVersion) -> frozenset[str] | None:
        """The features that a version's run wrote down when it trained, as Feast does it (`view:feature`), if it did.

        None as well if MLflow cannot be asked now: a comparison is no reason to keep a version from serving.
        """
        if version.run_id is None or not version.uri.startswith(("models:", "runs:")):
            return None
        try:
            return within(RECORDED_SECONDS, partial(self._store_patience.ask, partial(self._recorded, version.run_id)))
        except Exception as error:  # noqa: BLE001  an artifact store's client may raise anything
            log.warning("the features of the training run are not compared: %s", cause_of(error))
            return None

    def _recorded(self, run_id: str) -> frozenset[str] | None:
        if all(found.path != RECORDED for found in self._client.list_artifacts(run_id)):
            return None
        return frozenset(map(str, load_dict(f"runs:/{run_id}/{RECORDED}")))

    def download(self, version: ModelVersion, into: Path) -> None:
        """Puts the version's files in the empty folder `into`. Raises InvalidModel, or OSError if the disk is full."""
        try:
            if version.uri.startswith(("models:", "runs:")):
                _lift(Path(download_artifacts(artifact_uri=version.uri, dst_path=str(into))), into)
            else:
                shutil.copytree(_path(version.exact), into, symlinks=True, dirs_exist_ok=True)
        except OSError:
            raise
        except Exception as error:
            if "No space left" in str(error):  # the client wraps it in an error that has only the words
                raise OSError(errno.ENOSPC, "No space left on device") from error
            raise InvalidModel(f"the files of {version.uri} could not be downloaded: {cause_of(error)}") from error
        if not (into / "MLmodel").is_file():
            raise InvalidModel(f"{version.uri} has no MLmodel file")

    def _ask(self, policy: Policy) -> Catalogue:
        client = self._client
        match policy:
            case Pinned(name, number):
                return (_version(client.get_model_version(name, number)),)
            case FollowAlias(name, alias):
                return (_with_alias(client.get_model_version_by_alias(name, alias), alias),)
            case FollowTag(name, key, value):
                found = client.search_model_versions(
                    f"name = '{name}' and tag.`{key}` = \"{value}\"",
                    max_results=5,  # the newest ones; more than one because the newest may still be incomplete
                    order_by=["version_number DESC"],
                )
                return tuple(_version(v) for v in found)
            case EveryCarrier(alias):
                return tuple(self._carriers(alias))
            case Fixed(uri):
                return (self._run(uri) if uri.startswith("runs:") else self._logged_model(uri),)
            case _:
                model = client.get_registered_model(policy.name)
                if model.name != policy.name:
                    raise ValueError(NONSENSE)
                return tuple(_version(v, model.aliases) for v in model.latest_versions)

    def _carriers(self, alias: str) -> Iterator[ModelVersion]:
        """MLflow's search knows names and tags, not aliases; but it lists each model's, a thousand models per call."""
        token = None
        while True:
            page = self._client.search_registered_models(max_results=PAGE, page_token=token)
            for model in page:
                if (number := model.aliases.get(alias)) is not None and is_name(model.name):
                    yield ModelVersion(model.name, str(number), aliases=(alias,))
            token = page.token
            if not token:
                return

    def _with_run(self, version: ModelVersion) -> ModelVersion:
        """The version with its run's feature service, if it names none itself: Feast tags the run when it trains."""
        if version.run_id is None or FEATURE_SERVICE in version.tags:
            return version
        service = self._service_of(version.run_id)
        if service is None:
            return version
        return replace(version, configuration=configuring({**version.tags, FEATURE_SERVICE: service}))

    def _ask_run(self, run_id: str) -> str | None:
        try:
            tag: str | None = self._client.get_run(run_id).data.tags.get(FEATURE_SERVICE)
        except MlflowException as error:
            if not is_answer(error):
                raise
            return None  # the run is gone, or not ours to read
        return tag

    def _logged_model(self, uri: str) -> ModelVersion:
        id = uri.rpartition("/")[2]
        found = self._client.get_logged_model(id)
        usable = str(found.status) == "READY"
        return ModelVersion("", id, str(found.artifact_location), configuring(found.tags or {}),
                            run_id=found.source_run_id, usable=usable, exact=uri)  # fmt: skip

    def _run(self, uri: str) -> ModelVersion:
        id, _, path = uri.removeprefix("runs:/").partition("/")
        run = self._client.get_run(id)
        source = f"{run.info.artifact_uri}/{path}" if run.info.run_id == id else ""
        return ModelVersion("", id, source, configuring(run.data.tags), run_id=id, exact=uri)


def _version(found: MlflowVersion, aliases: Mapping[str, Any] | None = None) -> ModelVersion:
    number = str(found.version)
    own = found.aliases if aliases is None else [a for a, v in aliases.items() if str(v) == number]
    return ModelVersion(
        name=found.name,
        version=number,
        source=found.source or "",
        configuration=configuring(found.tags or {}),
        run_id=found.run_id or None,
        stage=found.current_stage,
        aliases=usable_aliases(own or ()),
        usable=found.status == "READY",
    )


def _with_alias(found: MlflowVersion, alias: str) -> ModelVersion:
    """The store answers by alias, but not every store lists the alias on the version that it returns."""
    return _version(found, {alias: found.version, **dict.fromkeys(found.aliases or (), found.version)})


def _lift(found: Path, into: Path) -> None:
    """A run's artifact arrives in a folder of its own name below the one that was asked for."""
    if found.resolve() != into.resolve():
        for path in list(found.iterdir()):
            path.rename(into / path.name)
        found.rmdir()


def _folder(uri: str) -> ModelVersion:
    """A folder as a version: named by what its MLmodel says, and another one whenever that file is written. What MLflow's
    client notes beside it (`registered_model_meta`) is no part of the digest, so no name is taken from there."""
    file = _path(uri) / "MLmodel"
    try:
        said = read_yaml(file)
        id = next(str(said[key]) for key in ("model_id", "model_uuid", "run_id") if said.get(key))
        source = f"{uri} {file.stat().st_mtime_ns}"
        return ModelVersion("", id, source, run_id=str(said.get("run_id") or "") or None, exact=uri)
    except FileNotFoundError as error:
        raise VersionNotFound(f"{uri} has no MLmodel file") from error
    except (InvalidModel, OSError, yaml.YAMLError, AttributeError, StopIteration, ValueError) as error:
        raise RegistryUnavailable(f"{uri}/MLmodel cannot be read ({type(error).__name__})") from error


def _path(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def _makes_sense(version: ModelVersion, policy: Policy) -> bool:
    """A proxy's error page may parse as an empty answer; no version may be believed because of one."""
    if isinstance(policy, EveryCarrier):
        return bool(version.name) and version.version.isdigit()
    named = isinstance(policy, Fixed) or (version.name == policy.name and version.version.isdigit())
    return named and bool(version.source)


def _says_absent(error: MlflowException) -> bool:
    """A missing alias is an INVALID_PARAMETER_VALUE in MLflow, anything else that is missing has a code of its own."""
    return error.error_code == "RESOURCE_DOES_NOT_EXIST" or (
        "alias" in str(error.message) and "not found" in str(error.message)
    )


def _unavailable(policy: Policy, error: Exception) -> RegistryUnavailable:
    return RegistryUnavailable(f"the registry did not answer for {policy.uri}: {cause_of(error)}")


#: What the text of an error of the client gives away of its cause. The text itself holds addresses, and stays in the log.
CAUSES = (
    ("refused", "connection refused"),
    ("timed out", "it took too long"),
    ("aborted", "it hangs up"),
    ("resolve", "its name cannot be resolved"),
    ("Could not connect", "it cannot be reached"),
    ("is longer than", "its answer has no end"),
    ("redentials", "it gets no credentials, or wrong ones"),
    ("CERTIFICATE", "its certificate is not trusted"),
    ("Invalid Host header", "it refuses our Host header; see MLFLOW_SERVER_ALLOWED_HOSTS"),
    ("error code 401", "it wants other credentials"),
    ("error code 403", "it forbids the call"),
)


#: What an answer that is none becomes on the way through MLflow's client.
_MISREAD = (MlflowException, ValueError, AttributeError, TypeError, KeyError)


def cause_of(error: BaseException) -> str:
    """Why a call of MLflow's client failed, in words that may be shown to anybody."""
    if isinstance(error, NotAskedAgain) and error.__cause__ is not None:
        return f"{cause_of(error.__cause__)} (a moment ago; it is left alone for now)"
    for fragment, words in CAUSES:
        if fragment in str(error):
            return words
    status = re.search(r"error code (\d+)|too many (5\d\d)", str(error))
    if status:
        return f"it answers {status[1] or status[2]}"
    return NONSENSE if isinstance(error, _MISREAD) else f"asking it raises {type(error).__name__}"


def _without_login(uri: str) -> str:
    parts = urlsplit(uri)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
