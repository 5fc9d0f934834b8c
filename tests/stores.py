"""Feast repositories over real stores: SQLite, a Redis server of the test's own, and Feast's own feature server."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import redis
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int64, String, UnixTimestamp

from tests.servers import free_port, wait_for

NOW = datetime.now(UTC).replace(microsecond=0)
STAMP = NOW - timedelta(hours=1)
OLD = NOW - timedelta(days=3)
MACHINES = 600
#: What is amiss with some machines of `machines`: nothing stored, a null, an old reading.
ABSENT, NULL, STALE = 9_999, 3, 5


class RedisServer:
    """A redis-server on loopback that can be killed, frozen and started again; it keeps its data."""

    def __init__(self, home: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("redis-server is not installed (apt-get install redis-server)")
        self._home, self.port = home, free_port()
        self._command = [binary, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(home), "--save", ""]
        self.client = redis.Redis(port=self.port)
        self.start()

    def start(self) -> None:
        with (self._home / "redis.log").open("ab") as log:
            self.process = subprocess.Popen([*self._command, "--appendonly", "yes"], stdout=log, stderr=log)
        until(self._answers, "redis-server answers")

    def _answers(self) -> bool:
        with contextlib.suppress(redis.RedisError):
            return bool(self.client.ping())
        return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        self.client.close()
        self.kill()


def until(condition: Any, what: str, seconds: float = 30) -> None:
    """Waits for a condition."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not after {seconds} s: {what}"
        time.sleep(0.02)


def write_yaml(home: Path, online: str, registry: str = "registry.db") -> None:
    """A repository's `feature_store.yaml`."""
    home.mkdir(exist_ok=True)
    (home / "feature_store.yaml").write_text(
        f"project: test\nprovider: local\nregistry: {{registry_type: file, path: {registry}}}\n"
        f"offline_store: {{type: file}}\nonline_store: {online}\nentity_key_serialization_version: 3\n"
    )


def redis_yaml(server: RedisServer) -> str:
    return f'{{type: redis, connection_string: "127.0.0.1:{server.port}"}}'


def frames() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Pumps of every type, sites, and many machines with floats of which some are amiss."""
    pumps = pd.DataFrame({
        "pump": ["a", "b"], "event_timestamp": STAMP, "kind": ["x", None], "pressure": [1.5, np.nan],
        "count": [3, 2**40], "on": [True, False], "seen": [STAMP, STAMP],
    })  # fmt: skip
    sites = pd.DataFrame({"site": [1, 2], "event_timestamp": STAMP, "height": [10.0, 20.0]})
    rng = np.random.default_rng(0)
    ids = np.arange(1, MACHINES + 1)
    machines = pd.DataFrame({"machine": ids, "event_timestamp": STAMP, "heat": rng.normal(70, 9, MACHINES),
                             "load": rng.uniform(0.1, 1, MACHINES), "wear": rng.uniform(0, 2, MACHINES)})  # fmt: skip
    machines.loc[machines.machine == NULL, "heat"] = np.nan
    machines.loc[machines.machine == STALE, "event_timestamp"] = OLD
    return pumps, sites, machines


def definitions() -> list[Any]:
    """Entities, views (an on-demand one with a request-time input among them) and services."""
    pump = Entity(name="pump", join_keys=["pump"], value_type=ValueType.STRING)
    site = Entity(name="site", join_keys=["site"], value_type=ValueType.INT64)
    machine = Entity(name="machine", join_keys=["machine"], value_type=ValueType.INT64)
    pumps = _view("pumps", pump, [("kind", String), ("pressure", Float32), ("count", Int64), ("on", Bool),
                                  ("seen", UnixTimestamp)])  # fmt: skip
    sites = _view("sites", site, [("height", Float32)])
    machines = _view("machines", machine, [("heat", Float64), ("load", Float64), ("wear", Float64)])
    speed = RequestSource(name="drive", schema=[Field(name="speed", dtype=Float64)])

    @on_demand_feature_view(
        sources=[machines, speed],
        schema=[Field(name="heat_per_load", dtype=Float64), Field(name="pace", dtype=Float64)],
        mode="python",
    )
    def ratios(inputs: dict[str, Any]) -> dict[str, Any]:
        pairs = list(zip(inputs["heat"], inputs["load"], strict=True))
        return {
            "heat_per_load": [None if h is None or v is None else h / v for h, v in pairs],
            "pace": [None if v is None else v * s for v, s in zip(inputs["load"], inputs["speed"], strict=True)],
        }

    return [pump, site, machine, pumps, sites, machines, ratios,
            FeatureService(name="pumps_only", features=[pumps]), FeatureService(name="both", features=[pumps, sites]),
            FeatureService(name="machines_only", features=[machines]),
            FeatureService(name="ratios", features=[machines[["wear"]], ratios])]  # fmt: skip


def _view(name: str, entity: Entity, fields: list[tuple[str, Any]]) -> FeatureView:
    source = FileSource(path=f"{name}.parquet", timestamp_field="event_timestamp")
    schema = [Field(name=field, dtype=dtype) for field, dtype in fields]
    return FeatureView(name=name, entities=[entity], ttl=timedelta(days=1), source=source, schema=schema)


def build(home: Path, online: str) -> Path:
    """A repository with its features in the online store."""
    write_yaml(home, online)
    pumps, sites, machines = frames()
    store = FeatureStore(repo_path=str(home))
    for name, frame in (("pumps", pumps), ("sites", sites), ("machines", machines)):
        frame.to_parquet(home / f"{name}.parquet")
    store.apply(definitions())
    for name, frame in (("pumps", pumps), ("sites", sites), ("machines", machines)):
        store.write_to_online_store(name, frame)
    return home


@contextlib.contextmanager
def feast_server(repository: Path) -> Iterator[str]:
    """Feast's feature server over a repository, and the online store by which another repository reaches it."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "feast.cli.cli",
        "-c",
        str(repository),
        "serve",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    log = repository / "server.log"
    environ = {**os.environ, "FEAST_USAGE": "False"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environ, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, log)
        yield f'{{type: remote, path: "http://127.0.0.1:{port}"}}'
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextlib.contextmanager
def remote(home: Path, repository: Path) -> Iterator[Path]:
    """A repository in `home` with the other's definitions, and Feast's server over the other for their values."""
    with feast_server(repository) as online:
        shutil.copy(repository / "registry.db", home)
        write_yaml(home, online)
        yield home
