"""What clients notice when one of two workers ends: python -m scripts.workers_lost [--clients 50]

Stopped (SIGSTOP, as one that hangs): how long until another listens in its place, and how many readiness probes, each on a
connection of its own with a second to be answered, failed meanwhile. Killed with as many requests in flight as there are
clients, each held for half a second by `max_wait_ms`: how many were lost, of those on connections that a worker had
taken up before.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import requests

from scripts.workers_cost import BODY, _model, _until
from tests.servers import free_port

PROBE_SECONDS, EVERY_SECONDS, LONGEST_SECONDS = 1.0, 0.25, 90.0


def main() -> None:
    """Prints a line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with _server(Path(folder)) as (supervisor, port):
            print(_stopped(supervisor, port), flush=True)
            _until(port, "/metrics", "\nheadway_workers 2.0\n", time.monotonic())
            print(_killed(supervisor, port, args.clients), flush=True)


@contextmanager
def _server(folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """Two workers, and their port."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(port), "--grpc-port",
               str(free_port()), "--workers", "2", "--model-uri", _model(folder), "--model-name", "m"]  # fmt: skip
    environ = {"HEADWAY_REGISTRY__CACHE_DIR": str(folder / "cache"), "HEADWAY_DEFAULTS__BATCHING__MAX_WAIT_MS": "500"}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **environ})
    try:
        _until(port, "/ready", "true", time.monotonic())
        _until(port, "/metrics", "\nheadway_workers 2.0\n", time.monotonic())
        yield psutil.Process(process.pid), port
    finally:
        process.terminate()
        process.wait(60)


def _worker(supervisor: psutil.Process) -> psutil.Process:
    return next(each for each in supervisor.children(recursive=True) if each.ppid() != supervisor.pid)


def _stopped(supervisor: psutil.Process, port: int) -> str:
    victim, outcomes, over = _worker(supervisor), Counter[str](), threading.Event()

    def probe() -> None:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}/ready", timeout=PROBE_SECONDS)
            outcomes["answered" if answer.ok else str(answer.status_code)] += 1
        except requests.RequestException as error:
            outcomes[type(error).__name__] += 1

    began = time.monotonic()
    os.kill(victim.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(16) as pool:
        replaced = pool.submit(_replaced, port, began, over)
        while not over.wait(EVERY_SECONDS):
            pool.submit(probe)
    return f"stopped: replaced after {replaced.result():.1f} s; readiness probes meanwhile: {dict(outcomes)}"


def _replaced(port: int, began: float, over: threading.Event) -> float:
    """Seconds until a third worker listens beside the one that goes on."""
    try:
        while time.monotonic() < began + LONGEST_SECONDS:
            try:
                text = requests.get(f"http://127.0.0.1:{port}/metrics", timeout=3).text
            except requests.RequestException:
                continue
            if "\nheadway_workers 2.0\n" in text and 'headway_worker_restarts_total{reason="hung"} 1.0' in text:
                break
            time.sleep(0.05)
        return time.monotonic() - began
    finally:
        over.set()


def _killed(supervisor: psutil.Process, port: int, clients: int) -> str:
    """Every client asks on a connection that was made before."""
    taken = [http.client.HTTPConnection("127.0.0.1", port, timeout=20) for _ in range(clients)]
    for each in taken:
        each.connect()
    time.sleep(0.5)
    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(_ask, each) for each in taken]
        time.sleep(0.25)
        _worker(supervisor).kill()
        outcomes = Counter(each.result() for each in asked)
    return f"killed with {clients} in flight: {dict(outcomes)}"


def _ask(connection: http.client.HTTPConnection) -> str:
    try:
        connection.request("POST", "/v1/models/m:predict", json.dumps(BODY), {"content-type": "application/json"})
        return str(connection.getresponse().status)
    except (OSError, http.client.HTTPException) as error:
        return type(error).__name__


if __name__ == "__main__":
    main()
