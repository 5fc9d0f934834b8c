"""One pod of a manifest, played on this machine: its command, arguments, environment, files and probes, from the YAML."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import requests
import yaml

from tests.deployment.controller import Json
from tests.servers import free_port

AMBIENT = ("PYTHONPATH", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG", "MLFLOW_DISABLE_TELEMETRY", "FEAST_USAGE")


class Pod:
    """The first container of a predictor. Every mount is a folder below `folder`, and every port one that is free."""

    def __init__(self, predictor: Json, config: Json, folder: Path, tracking_uri: str) -> None:
        self.spec, self.container = predictor, predictor["containers"][0]
        self._folder = folder
        self._mounts = {mount["mountPath"]: folder / mount["name"] for mount in self.container["volumeMounts"]}
        self.port = free_port()
        self._write(config, tracking_uri)

    def start(self) -> None:
        """What the kubelet does first."""
        program, *words = [self._mapped(word) for word in self.container["command"] + self.container["args"]]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(Path(sys.executable).parent / program), *words],
                env=self._environment(),
                cwd=self._folder,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> Path:
        return self._folder / "log"

    def probe(self, name: str) -> bool:
        """One try of a probe."""
        probe = self.container[name]
        with contextlib.suppress(requests.RequestException):
            url = f"http://127.0.0.1:{self.port}{probe['httpGet']['path']}"
            return requests.get(url, timeout=probe["timeoutSeconds"]).status_code == 200
        return False

    def passes(self, name: str, tries: int | None = None) -> bool:
        """Whether a probe passes within so many tries; without a number, its own threshold."""
        probe = self.container[name]
        for _ in range(tries or probe["failureThreshold"]):
            if self.probe(name):
                return True
            time.sleep(probe["periodSeconds"])  # the kubelet's own pace
        return False

    def delete(self) -> int:
        """What the kubelet does last: preStop, SIGTERM, and the rest of the grace. Returns the exit code.

        Raises subprocess.TimeoutExpired where the kubelet would kill.
        """
        end = time.monotonic() + self.spec["terminationGracePeriodSeconds"]
        time.sleep(self.container["lifecycle"]["preStop"]["sleep"]["seconds"])
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(end - time.monotonic())

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _write(self, config: Json, tracking_uri: str) -> None:
        for folder in self._mounts.values():
            folder.mkdir(parents=True, exist_ok=True)
        [volume] = [v for v in self.spec["volumes"] if v.get("configMap", {}).get("name") == config["metadata"]["name"]]
        for name, text in config["data"].items():
            stated = yaml.safe_load(text)["registry"]["tracking_uri"]
            (self._folder / volume["name"] / name).write_text(self._mapped(text.replace(stated, tracking_uri)))

    def _mapped(self, text: str) -> str:
        """A path below a mount, where the mount is."""
        paths = "|".join(map(re.escape, self._mounts))
        return re.sub(rf"(?<![\w/.-])({paths})(?![\w.-])", lambda found: str(self._mounts[found[1]]), text)

    def _environment(self) -> dict[str, str]:
        """The manifest's, without what comes from optional secrets; and the ports, which are taken on this machine."""
        ports = {"HEADWAY_SERVER__PORT": str(self.port), "HEADWAY_SERVER__GRPC_PORT": str(free_port())}
        stated = {entry["name"]: self._mapped(entry["value"]) for entry in self.container["env"] if "value" in entry}
        ambient = {name: os.environ[name] for name in AMBIENT if name in os.environ}
        return {"PATH": os.environ["PATH"], **ambient, **stated, **ports}


@dataclass
class Callers:
    """Clients of a Service, on connections that they keep, and renew every twenty requests while the pod is an endpoint.

    It is one until readiness was red as often in a row as the probe's threshold says; nobody connects after that.
    """

    pod: Pod
    path: str
    body: bytes
    endpoint: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[int, bool]] = field(default_factory=list)  # status, and whether the server will hang up
    lost: list[str] = field(default_factory=list)

    def start(self, callers: int = 4) -> None:
        self.endpoint.set()
        self._threads = [threading.Thread(target=self._call) for _ in range(callers)]
        self._threads.append(threading.Thread(target=self._watch))
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(60)

    def _watch(self) -> None:
        red = 0
        while red < self.pod.container["readinessProbe"]["failureThreshold"]:
            red = 0 if self.pod.probe("readinessProbe") else red + 1
            time.sleep(0.5)  # the pace of a gateway's own health check
        self.endpoint.clear()

    def _call(self) -> None:
        while self.endpoint.is_set():
            connection = HTTPConnection("127.0.0.1", self.pod.port, timeout=30)
            try:
                for _ in range(20):
                    if self._ask(connection):
                        break
            except (OSError, HTTPException) as error:
                self.lost.append(repr(error))
            finally:
                connection.close()

    def _ask(self, connection: HTTPConnection) -> bool:
        """One request. Returns whether the server said that it will hang up."""
        connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        closes = answer.getheader("connection") == "close"
        self.answers.append((answer.status, closes))
        return closes
