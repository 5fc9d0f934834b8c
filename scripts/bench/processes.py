"""Servers as processes: started on their cores, awaited until they answer right, weighed, and stopped with their children."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import requests

from scripts.bench.commands import Command
from scripts.bench.environments import Unavailable
from scripts.bench.experiments import Wire
from scripts.bench.saved import Saved
from scripts.bench.wires import Message, ask, read, same

#: What no waiting will mend.
REFUSED = (400, 405, 415, 422, 500)
START_SECONDS, STOP_SECONDS = 120, 15


@dataclass(frozen=True)
class Running:
    """A server that was started at `began` (monotonic seconds)."""

    port: int
    grpc_port: int
    process: psutil.Popen
    log: Path
    began: float

    def tree(self) -> list[psutil.Process]:
        """The process and all that it started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []

    def cpu_seconds(self) -> float:
        """What the tree has computed so far, the system's part included."""
        return sum(sum(times[:2]) for times in self._each("cpu_times"))

    def memory(self) -> float:
        """MB of the tree; what its processes share is counted once (PSS)."""
        return float(sum(info.pss for info in self._each("memory_full_info"))) / 1e6

    def _each(self, what: str) -> Iterator[Any]:
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                yield getattr(process, what)()


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextlib.contextmanager
def started(command: Command, cores: Sequence[int], ports: Sequence[int], home: Path) -> Iterator[Running]:
    """A process on these cores until the block ends; its log is in `home`."""
    log, environ = home / "log", {**os.environ, **_QUIET, **command.environ}
    pinned = ["taskset", "-c", ",".join(map(str, cores)), *command.words]
    began = time.monotonic()
    with log.open("wb") as out:
        process = psutil.Popen(pinned, stdout=out, stderr=subprocess.STDOUT, env=environ, cwd=_ROOT)
    running = Running(ports[0], ports[1], process, log, began)
    try:
        yield running
    finally:
        _stop(running)


_ROOT = Path(__file__).parents[2]
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "FEAST_USAGE": "False"}


def _stop(running: Running) -> None:
    """First a request to end, then the whole tree at once: some of these leave children behind."""
    tree = running.tree()
    with contextlib.suppress(psutil.NoSuchProcess):
        running.process.terminate()
    _, alive = psutil.wait_procs(tree, timeout=STOP_SECONDS)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def await_answer(running: Running, wire: Wire, saved: Saved, rows: int = 1, *, judged: bool = True) -> float:
    """Asks until the answer is there, and right; returns the seconds since the start. Raises Unavailable if it never is.

    Where it is not `judged`, one prediction for each row is enough: those that are looked up have no expected answer.
    """
    message, end, problem = ask(wire, saved.columns, saved.asked(rows)), running.began + START_SECONDS, ""
    while time.monotonic() < end and running.process.poll() is None:
        try:
            answers = read(wire, *send(running, wire, message))
        except (requests.RequestException, grpc.RpcError, KeyError, ValueError, TypeError) as error:
            problem = f"{type(error).__name__}: {_short(error)}"
            if getattr(getattr(error, "response", None), "status_code", 0) in REFUSED:
                break
            time.sleep(0.05)
            continue
        if same(answers, saved.expected(rows)) or (not judged and len(answers) == rows):
            return time.monotonic() - running.began
        raise Unavailable(f"it answers otherwise: {np.asarray(answers).ravel()[:4].tolist()}")
    raise Unavailable(f"it did not come up: {problem if running.process.poll() is None else last_line(running.log)}")


def _short(error: Exception) -> str:
    return str(error).replace("\n", " ")[:120]


def send(running: Running, wire: Wire, message: Message) -> tuple[bytes, Mapping[str, str]]:
    """One request, and the body and headers of its answer. Raises what the client raises, a status included."""
    if wire == "grpc":
        with grpc.insecure_channel(f"127.0.0.1:{running.grpc_port}") as channel:
            return channel.unary_unary(message.path)(message.body, timeout=10), {}
    url = f"http://127.0.0.1:{running.port}{message.path}"
    answer = requests.post(url, data=message.body, headers=dict(message.headers), timeout=10)
    answer.raise_for_status()
    return answer.content, answer.headers


def last_line(log: Path) -> str:
    """What a process said last."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1][:200]


def require(*tools: str) -> None:
    """Exits with a sentence if a tool is not installed."""
    for tool in tools:
        if shutil.which(tool) is None:
            raise SystemExit(f"{tool} is not installed: apt-get install wrk util-linux")
