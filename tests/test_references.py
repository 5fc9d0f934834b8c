"""Every way to name a model, and every way to promote one, against a real MLflow server over HTTP."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking import MlflowClient

from scripts.load import Load
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
AB = columns(("a", "double"), ("b", "double"))
BODY = {"instances": [[1.0, 2.0]]}


def publish(mlflow_server: MlflowServer, name: str, versions: int) -> None:
    """Version n answers n for [1, 2]."""
    for n in range(1, versions + 1):
        register(mlflow_server.uri, name, skops(linear(float(n), 0.0)), AB)


@pytest.fixture(scope="module")
def sums(shared: MlflowServer) -> MlflowServer:
    """The registered model `sums`, three versions."""
    publish(shared, "sums", 3)
    return shared


def test_references_without_a_number(sums: MlflowServer, serve: Callable[..., Server], tmp_path: Path) -> None:
    """A logged model, a run's artifact and a folder answer under the name that they are given; `version` is their id."""
    client = MlflowClient(sums.uri)
    version = client.get_model_version("sums", "2")
    logged = version.source.removeprefix("models:/")
    mlflow.set_tracking_uri(sums.uri)
    folder = Path(mlflow.artifacts.download_artifacts("models:/sums/3", dst_path=str(tmp_path / "folder")))
    uris = {"logged": f"models:/{logged}", "run": f"runs:/{version.run_id}/model", "folder": str(folder)}
    file = tmp_path / "headway.yaml"
    file.write_text(json.dumps({"models": [{"name": name, "uri": uri} for name, uri in uris.items()]}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=sums.uri, HEADWAY_REGISTRY__PINNED_POLL_SECONDS="0.2")
    server.until_ready()
    ids = {
        "logged": logged,
        "run": version.run_id,
        "folder": client.get_model_version("sums", "3").source.partition("/")[2],
    }
    for name, answer in (("logged", 2.0), ("run", 2.0), ("folder", 3.0)):
        body = server.post(f"/v1/models/{name}:predict", BODY).json()
        assert (body["predictions"], body["model_version"]) == ([answer], ids[name])
        shown = "folder" if name == "folder" else uris[name]  # not where it lies
        assert (server.status(name)["version"], server.status(name)["uri"]) == (ids[name], shown)
    assert server.status("run")["run_id"] == version.run_id
    replace(folder, Path(mlflow.artifacts.download_artifacts("models:/sums/1", dst_path=str(tmp_path / "new"))))
    server.until(lambda: server.post("/v1/models/folder:predict", BODY).json()["predictions"] == [1.0], "the new files")


def replace(folder: Path, new: Path) -> None:
    """Another model's files in the same folder, the MLmodel last, as a careful copy does."""
    for path in sorted(new.iterdir(), key=lambda p: p.name == "MLmodel"):
        shutil.copy(path, folder / path.name)


@pytest.fixture(scope="module")
def server(sums: MlflowServer, serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Follows `sums` by alias, stage, tag and latest."""
    sums.set_alias("sums", "champion", "1")
    sums.set_stage("sums", "1", "Production")
    sums.set_tag("sums", "1", "gate", "passed")
    uris = {"alias": "models:/sums@champion", "stage": "models:/sums/production", "latest": "models:/sums/LATEST",
            "tag": "models:/sums?tag.gate=passed"}  # fmt: skip
    file = tmp_path_factory.mktemp("references") / "headway.yaml"
    file.write_text(json.dumps({"models": [{"name": name, "uri": uri} for name, uri in uris.items()]}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI=sums.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2")
    server.until_ready()
    return server


def answers(server: Server, name: str) -> tuple[float, str]:
    body = server.post(f"/v1/models/{name}:predict", BODY).json()
    return body["predictions"][0], body["model_version"]


def until_polled(server: Server, name: str) -> None:
    """Waits for two polls: the first may have asked before now."""

    def polls() -> float:
        return server.metric("headway_registry_polls_total", model_name=name, outcome="ok") or 0.0

    before = polls()
    server.until(lambda: polls() >= before + 2, "polled")


def test_promotion_by_alias_stage_and_tag(server: Server, sums: MlflowServer) -> None:
    """Each reference follows its own; a stage means its highest number, a tag its newest carrier."""
    assert [answers(server, name) for name in ("alias", "stage", "tag", "latest")] == [
        (1, "1"),
        (1, "1"),
        (1, "1"),
        (3, "3"),
    ]
    sums.set_alias("sums", "champion", "2")
    sums.set_stage("sums", "2", "Production")
    sums.set_tag("sums", "2", "gate", "passed")
    for name in ("alias", "stage", "tag"):
        server.until_serves("2", name)
        assert answers(server, name) == (2, "2")
    sums.set_tag("sums", "2", "gate", "failed")
    server.until_serves("1", "tag")
    sums.set_stage("sums", "1", "Production")  # changes nothing: version 2 is still in Production
    until_polled(server, "stage")
    assert (answers(server, "stage"), server.status("stage")["aspired"]) == ((2, "2"), ["2"])
    sums.set_stage("sums", "2", "Archived")
    server.until_serves("1", "stage")


def test_an_alias_moved_twice_in_a_moment(server: Server, sums: MlflowServer) -> None:
    """Whatever is seen of it, the last move is what serves, and no request is lost on the way."""
    with Load(f"{server.base}/v1/models/alias:predict", BODY, rate=100) as load:
        for version in ("3", "1", "2", "3", "1"):
            sums.set_alias("sums", "champion", version)
        server.until(
            lambda: server.status("alias")["problem"] is None and server.status("alias")["version"] == "1", "settled"
        )
        until_polled(server, "alias")
        assert (answers(server, "alias"), server.status("alias")["aspired"]) == ((1, "1"), ["1"])
    assert load.tally.lost == {}


def test_a_version_that_is_deleted_while_it_serves(sums: MlflowServer, serve: Callable[..., Server]) -> None:
    """It serves on, by alias and by number, and the status says that the registry no longer has it."""
    publish(sums, "doomed", 1)
    sums.set_alias("doomed", "champion", "1")
    server = serve(
        "--model-uri", "models:/doomed@champion", MLFLOW_TRACKING_URI=sums.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2"
    )
    server.until_ready()
    MlflowClient(sums.uri).delete_model_version("doomed", "1")
    server.until(lambda: "does not exist" in (server.status("doomed")["problem"] or ""), "missed")
    assert answers(server, "doomed") == (1, "1")
    assert server.get("/ready").status_code == 200
    publish(sums, "doomed", 1)
    sums.set_alias("doomed", "champion", "2")
    server.until_serves("2", "doomed")
