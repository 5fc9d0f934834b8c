"""Which feature service a version has, and what keeps it from becoming READY: in a real registry and a real repository."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from mlflow.tracking import MlflowClient

from features.errors import InvalidFeatures
from features.store import FeastSource
from registry.mlflow_registry import MlflowRegistry
from registry.policies import Pinned
from registry.versions import ModelVersion
from serving.configuration import ModelOptions, resolve
from serving.loading import Loaded, Loader
from tests.models import Folder, columns, linear, register, skops
from tests.servers import MlflowServer, Server
from tests.stores import build, frames

STORED = frames()[2].set_index("machine")
REFS = ["machines:heat", "machines:load", "machines:wear"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("feast"), "{type: sqlite, path: online.db}")


def trained(uri: str, name: str, service: str | None, refs: list[str] | None) -> ModelVersion:
    """A version of heat and load whose run says what Feast's integration says: its service, and its features."""

    def log(**more: Any) -> None:
        if service is not None:
            mlflow.set_tag("feast.feature_service", service)
        if refs is not None:
            mlflow.log_dict(refs, "feast_features.json")  # type: ignore[arg-type]  # a list is JSON as well
        skops(linear(1.0, 10.0))(**more)

    version = register(uri, name, log, columns(("heat", "double"), ("load", "double")))
    return MlflowRegistry(uri).catalogue(Pinned(name, version))[0]


def load(uri: str, version: ModelVersion, repository: Path, home: Path) -> Loaded:
    registry = MlflowRegistry(uri)
    folder = home / version.name
    folder.mkdir()
    registry.download(version, folder)
    loader = Loader(Folder(folder), ModelOptions(), FeastSource(repository), recorded=registry.recorded_features)
    return loader.load(version)


def test_the_runs_tag_stands_in_for_the_versions(shared: MlflowServer, repository: Path, tmp_path: Path) -> None:
    """The version's own tag wins over its run's, and both over the metadata; the features written down are compared."""
    version = trained(shared.uri, "by_run", "machines_only", REFS)
    assert version.tags["feast.feature_service"] == "machines_only"
    loaded = load(shared.uri, version, repository, tmp_path)
    assert loaded.lookup is not None
    assert (loaded.lookup.keys, loaded.lookup.columns) == ({"machine"}, {"heat", "load"})
    shared.set_tag("by_run", version.version, "feast.feature_service", "ratios")
    again = MlflowRegistry(shared.uri).catalogue(Pinned("by_run", version.version))[0]
    assert resolve(ModelOptions(), again.tags, {"feast.feature_service": "other"}).feature_service == "ratios"
    assert resolve(ModelOptions(), {}, {"feast.feature_service": "other"}).feature_service == "other"


@pytest.mark.parametrize(("name", "service", "refs", "says"), [
    ("gone", "gone", None, "no feature service 'gone'"),
    ("changed", "machines_only", ["machines:heat", "machines:age"], "'machines:age' that it lacks.*'machines:load', 'machines:wear'"),
])  # fmt: skip
def test_a_service_that_is_gone_or_changed_does_not_load(
    shared: MlflowServer, repository: Path, tmp_path: Path, name: str, service: str, refs: list[str] | None, says: str
) -> None:
    """The error shows the difference."""
    version = trained(shared.uri, name, service, refs)
    with pytest.raises(InvalidFeatures, match=says):
        load(shared.uri, version, repository, tmp_path)


def test_a_version_without_a_run_has_no_service_of_it(shared: MlflowServer) -> None:
    """A run that was deleted is no reason to fail the poll."""
    version = trained(shared.uri, "orphan", None, None)
    assert version.run_id is not None
    assert "feast.feature_service" not in version.tags
    assert MlflowRegistry(shared.uri).recorded_features(version) is None
    MlflowClient(shared.uri).delete_run(version.run_id)
    assert MlflowRegistry(shared.uri).catalogue(Pinned("orphan", version.version))[0].tags == {}


@pytest.mark.e2e
def test_two_versions_with_two_services_and_one_that_is_gone(
    shared: MlflowServer, repository: Path, serve: Callable[..., Server], tmp_path: Path
) -> None:
    """Side by side, each with its own features; a tag that names nothing leaves the version that serves in its place."""
    one = register(shared.uri, "ab", skops(linear(1.0)), columns(("heat", "double")))
    two = register(shared.uri, "ab", skops(linear(1.0)), columns(("pace", "double")))
    shared.set_tag("ab", one, "feast.feature_service", "machines_only")
    shared.set_tag("ab", two, "feast.feature_service", "ratios")
    shared.set_tag("ab", two, "headway.features", json.dumps({"on_missing": "default", "default": 0.25}))
    shared.set_alias("ab", "a", one)
    file = tmp_path / "headway.yaml"
    entry = partial(dict, uri="models:/ab@a")
    file.write_text(yaml.safe_dump({
        "features": {"repo_path": str(repository), "timeout_ms": 10_000}, "defaults": {"timeout_ms": 20_000},
        "models": [entry(name="a"), entry(name="b", uri=f"models:/ab/{two}")],
    }))  # fmt: skip
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=shared.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2")
    server.until_ready(90)

    def predict(name: str, **row: Any) -> float:
        answer = server.post(f"/v1/models/{name}:predict", {"instances": [row]})
        assert answer.status_code == 200, answer.text
        return float(answer.json()["predictions"][0])

    assert predict("a", machine=20) == pytest.approx(STORED.heat[20])
    assert predict("b", machine=20, speed=2.0) == pytest.approx(STORED.load[20] * 2)
    missing = server.post("/v1/models/b:predict", {"instances": [{"machine": 20}]})
    assert (missing.status_code, "'speed'" in missing.json()["error"]) == (400, True)
    shared.set_tag("ab", one, "feast.feature_service", "nowhere")
    server.until(lambda: any("nowhere" in (v["reason"] or "") for v in server.status("a")["versions"]), "refused")
    assert predict("a", machine=20) == pytest.approx(STORED.heat[20])
    assert server.status("a")["ready"]
