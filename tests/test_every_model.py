"""`models:/*@champion` on a real registry with hundreds of names: they come and go, and cost nothing until asked for."""

import contextlib
import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from registry.mlflow_registry import MlflowRegistry
from registry.policies import EveryCarrier
from tests.models import columns, linear, register, skops
from tests.servers import MlflowServer, Server, start_mlflow

pytestmark = pytest.mark.e2e
NAMES = 300
V1 = {"instances": [[1.0]]}


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """Real models `one` and `two`, and hundreds of names that nobody ever loads; every third has no champion."""
    home = tmp_path_factory.mktemp("crowd")
    with start_mlflow(home) as server:
        for name, answer in (("one", 1.0), ("two", 2.0)):
            register(server.uri, name, skops(linear(answer)), columns(("a", "double")))
        server.set_alias("one", "champion", "1")
        multiply(home / "mlflow.db", "one")
        yield server


def multiply(database: Path, name: str) -> None:
    """Copies the rows of a registered model, as MLflow wrote them, to many names: asking MLflow takes a minute."""
    with contextlib.closing(sqlite3.connect(database)) as db, db:
        for table in ("registered_models", "model_versions", "registered_model_aliases"):
            cursor = db.execute(f"SELECT * FROM {table} WHERE name = ?", (name,))
            (row,) = cursor.fetchall()
            at = [column[0] for column in cursor.description].index("name")
            skip = table == "registered_model_aliases"
            copies = [(*row[:at], f"m-{i}", *row[at + 1 :]) for i in range(NAMES) if i % 3 or not skip]
            db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(row))})", copies)


def ask(server: Server, name: str) -> requests.Response:
    return requests.post(f"{server.base}/v1/models/{name}:predict", json=V1, timeout=60)


def test_the_registry_lists_all_carriers(crowd: MlflowServer) -> None:
    """Over as many pages as it takes, and without those that lack the alias."""
    registry = MlflowRegistry(crowd.uri)
    found = registry.catalogue(EveryCarrier("champion"))
    assert {v.name for v in found} == {"one"} | {f"m-{i}" for i in range(NAMES) if i % 3}
    assert registry.catalogue(EveryCarrier("nobody")) == ()


def test_names_come_and_go_with_the_registry(
    crowd: MlflowServer, headway: Callable[..., Server], tmp_path: Path
) -> None:
    """Listed by the next poll, loaded by the first request, and served on while loaded when the alias is gone."""
    file = tmp_path / "headway.yaml"
    file.write_text(json.dumps({
        "models": [{"uri": "models:/*@champion", "timeout_ms": 0}], "registry": {"poll_seconds": 0.3},
        "security": {"repository_api": True},
    }))  # fmt: skip
    server = headway("--config", str(file), MLFLOW_TRACKING_URI=crowd.uri)
    server.until(lambda: len(server.get("/v1/models").json()["models"]) == 1 + NAMES * 2 // 3, "listed")
    rows = server.post("/v2/repository/index", {}).json()
    assert {(row["state"], row["version"]) for row in rows} == {("UNAVAILABLE", "")}
    assert server.metric("headway_servables_alive") is None
    assert server.get("/v1/models/m-1").status_code == 503
    assert ask(server, "one").json()["predictions"] == [1.0]
    assert ask(server, "two").status_code == 404
    assert ask(server, "nobody").status_code == 404
    assert server.metric("model_prediction_errors_total", model_name="nobody") is None
    crowd.set_alias("two", "champion", "1")
    crowd.delete_alias("one", "champion")
    server.until(lambda: ask(server, "two").status_code == 200, "two listed")
    assert ask(server, "one").json()["predictions"] == [1.0]
    server.until(lambda: "does not exist" in (server.status("one")["problem"] or ""), "told")
    assert server.post("/v2/repository/models/one/unload", {}).status_code == 200
    server.until(lambda: ask(server, "one").status_code == 404, "one forgotten")
    ready = server.post("/v2/repository/index", {"ready": True}).json()
    assert [(row["name"], row["version"]) for row in ready] == [("two", "1")]
    polled = server.metric("headway_registry_polls_total", model_name="m-1")
    assert (polled, server.status("two")["version"]) == (None, "1")
