"""Fixtures: real models in a real MLflow registry, made once per run, and real servers on real sockets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("FEAST_USAGE", "False")

from tests.servers import MlflowServer, Server, copy_registry, start_headway, start_mlflow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long work has an hour where the other tests have minutes; what waits for the trained versions comes last."""
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(3600))
    waiting = {item.path for item in items if "trained" in getattr(item, "fixturenames", ())}
    items.sort(key=lambda item: item.path in waiting)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mlflow.db` and its artifacts: the demonstration's versions, trained once per run.

    Processes that share a run share the folder; the first one makes it.
    """
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with FileLock(home.with_suffix(".lock")):
        if not (home / "done").exists():
            _train(home)
    return home


def _train(home: Path) -> None:
    from scripts.demo.train import train

    home.mkdir()
    with start_mlflow(home) as server:
        train(server.uri, home / "feast", machines=120, days=20)
    (home / "done").touch()


@pytest.fixture
def mlflow_server(trained: Path, tmp_path: Path) -> Iterator[MlflowServer]:
    """A real tracking server on a copy of the trained registry."""
    with start_mlflow(copy_registry(trained, tmp_path)) as server:
        yield server


@pytest.fixture(scope="session")
def shared(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One tracking server for every test that leaves the trained versions as they are; models of its own it may add."""
    with start_mlflow(copy_registry(trained, tmp_path_factory.mktemp("shared"))) as server:
        yield server


@pytest.fixture(scope="module", params=["protocol", "asgi"])
def lane(request: pytest.FixtureRequest) -> str:
    """Each way of an inference request over HTTP, for tests that hold on both: a value of `server.lane`."""
    return str(request.param)


@pytest.fixture
def headway(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers as processes; whatever still runs at the end is killed."""
    running: list[Server] = []

    def start(*flags: str, **environ: str) -> Server:
        server = start_headway(tmp_path / f"headway-{len(running)}.log", *flags, **environ)
        running.append(server)
        return server

    yield start
    for server in running:
        server.kill()


@pytest.fixture(scope="module")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts servers that the tests of one module share."""
    running: list[Server] = []

    def start(*flags: str, **environ: str) -> Server:
        server = start_headway(tmp_path_factory.mktemp("headway") / "log", *flags, **environ)
        running.append(server)
        return server

    yield start
    for server in running:
        server.kill()
