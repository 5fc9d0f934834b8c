"""Real processes for tests: an MLflow tracking server on SQLite, and `headway serve`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import requests
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).resolve().parent.parent


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class MlflowServer:
    """A running tracking server."""

    uri: str

    def set_alias(self, name: str, alias: str, version: str) -> None:
        self._post("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def delete_alias(self, name: str, alias: str) -> None:
        route = f"{self.uri}/api/2.0/mlflow/registered-models/alias"
        requests.delete(route, json={"name": name, "alias": alias}, timeout=20).raise_for_status()

    def set_stage(self, name: str, version: str, stage: str) -> None:
        self._post("model-versions/transition-stage", {"name": name, "version": version, "stage": stage})

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        self._post("model-versions/set-tag", {"name": name, "version": version, "key": key, "value": value})

    def _post(self, route: str, body: dict[str, str]) -> None:
        requests.post(f"{self.uri}/api/2.0/mlflow/{route}", json=body, timeout=20).raise_for_status()


def copy_registry(trained: Path, home: Path) -> Path:
    """Copies a registry's database and artifacts to `home`, and returns it."""
    shutil.copy(trained / "mlflow.db", home)
    shutil.copytree(trained / "artifacts", home / "artifacts")
    return home


@contextlib.contextmanager
def start_mlflow(
    home: Path, port: int | None = None, *flags: str, scheme: str = "http", **extra: str
) -> Iterator[MlflowServer]:
    """A tracking server whose SQLite file and artifacts lie in `home`; `extra` is environment."""
    port = port or free_port()
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{home}/mlflow.db", "--artifacts-destination", str(home / "artifacts"), *flags,
    ]  # fmt: skip
    environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **extra}
    environ.pop("COVERAGE_PROCESS_START", None)
    environ.pop("COVERAGE_PROCESS_CONFIG", None)
    with (home / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ, start_new_session=True)
    try:
        wait_for(f"{scheme}://127.0.0.1:{port}/health", process, home / "mlflow.log")
        yield MlflowServer(f"{scheme}://127.0.0.1:{port}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path, seconds: float = 90) -> None:
    """Waits until the URL answers 200; fails with the log's end if the process ends or time is up."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=2).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"{url} did not come up:\n{log.read_text()[-3000:]}")


@dataclass
class Server:
    """A running `headway serve`."""

    process: subprocess.Popen[bytes]
    port: int
    grpc_port: int
    log: Path
    session: requests.Session = field(default_factory=requests.Session)

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def get(self, path: str) -> requests.Response:
        return self.session.get(self.base + path, timeout=10)

    def post(self, path: str, body: Any, **headers: str) -> requests.Response:
        return self.session.post(self.base + path, json=body, headers=headers, timeout=10)

    def infer(self, message: Any, timeout: float | None = 30) -> Any:
        """One ModelInfer call; raises grpc.RpcError."""
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(self.grpc, options=options) as channel:
            return GRPCInferenceServiceStub(channel).ModelInfer(message, timeout=timeout)

    def metric(self, name: str, **labels: str) -> float | None:
        """The sum of a metric's samples that carry these labels, or None without any."""
        found = [
            sample.value
            for family in text_string_to_metric_families(self.get("/metrics").text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else None

    def status(self, model: str = "predictive_maintenance") -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"/v1/models/{model}").json()
        return answer

    def until_ready(self, seconds: float = 60) -> None:
        self.until(lambda: self.get("/ready").status_code == 200, "ready", seconds)

    def until_serves(self, version: str, model: str = "predictive_maintenance", seconds: float = 60) -> None:
        self.until(lambda: self.status(model)["version"] == version, f"version {version}", seconds)

    def until(self, condition: Any, what: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not {what} after {seconds} s:\n{self.log.read_text()[-3000:]}"
            time.sleep(0.05)

    def lines(self) -> list[dict[str, Any]]:
        """The log, parsed."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def terminate(self, seconds: float = 40) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        """Ends the process: politely first, so that its coverage is written."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.session.close()


def start_headway(log: Path, *flags: str, **environ: str) -> Server:
    """Starts `headway serve` on free ports and waits until it answers liveness."""
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(port),
               "--grpc-port", str(grpc_port), *flags]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "HEADWAY_REGISTRY__CACHE_DIR": str(log.parent / "cache"), **environ},
        )
    server = Server(process, port, grpc_port, log)
    try:
        wait_for(f"http://127.0.0.1:{port}/health/live", process, log)
    except BaseException:
        server.kill()
        raise
    return server
