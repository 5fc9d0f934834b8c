"""What KServe's batcher sidecar costs, and what our own batcher gives without it: paired runs, one after the other in turn.

python -m scripts.sidecar_cost        (needs wrk; the sidecar is the stand-in of the tests, in Python)
"""

from __future__ import annotations

import contextlib
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import requests
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, Schema
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression

from tests.servers import free_port

WIDTH, CALLS, CLIENTS, SECONDS, ROUNDS = 10, 100, 64, 4, 5
DEFAULT_MS, SHORT_MS = 5000, 5
ROW = [0.5] * WIDTH


def main() -> None:
    """Prints, for a light and a heavy model, the median latency of a lone client and the throughput of 64."""
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is needed for the throughput: apt-get install wrk")
    x = np.random.default_rng(0).normal(size=(500, WIDTH))
    models = {"light": LogisticRegression(), "heavy": RandomForestClassifier(100, random_state=0)}
    with tempfile.TemporaryDirectory() as home:
        for name, model in models.items():
            folder = Path(home) / name
            _save(model.fit(x, x[:, 0] > 0), folder)
            with _headway(name, folder) as ours, _sidecar(ours, SHORT_MS) as theirs:
                _print_idle(name, f"{SHORT_MS} ms", *_idle([_url(ours, name), _url(theirs, name)], CALLS))
                _print_busy(name, *_busy([_url(ours, name), _url(theirs, name)], Path(home)))
                with _sidecar(ours, DEFAULT_MS) as slow:
                    _print_idle(name, f"{DEFAULT_MS} ms", *_idle([_url(ours, name), _url(slow, name)], 3))


def _save(model: Any, folder: Path) -> None:
    signature = ModelSignature(Schema([ColSpec("double", f"c{i}") for i in range(WIDTH)]), Schema([ColSpec("boolean")]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            model, str(folder), serialization_format="skops", signature=signature, pip_requirements=["mlflow"],
            skops_trusted_types=["sklearn.tree._tree.Tree"],
        )  # fmt: skip


@contextlib.contextmanager
def _headway(name: str, folder: Path) -> Iterator[int]:
    port = free_port()
    flags = ["--model-uri", str(folder), "--model-name", name, "--host", "127.0.0.1", "--port", str(port)]
    with _program("/ready", port, "serving.cli", "serve", *flags, "--grpc-port", str(free_port())):
        yield port


@contextlib.contextmanager
def _sidecar(target: int, milliseconds: int) -> Iterator[int]:
    port = free_port()
    flags = ["--target", f"127.0.0.1:{target}", "--port", str(port), "--max-latency", str(milliseconds)]
    with _program("/ready", port, "tests.sidecar", *flags):
        yield port


@contextlib.contextmanager
def _program(ready: str, port: int, *command: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 120
        while not _answers(f"http://127.0.0.1:{port}{ready}"):
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"{command[0]} did not come up")
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(url: str) -> bool:
    with contextlib.suppress(requests.RequestException):
        return requests.get(url, timeout=1).ok
    return False


def _url(port: int, name: str) -> str:
    return f"http://127.0.0.1:{port}/v1/models/{name}:predict"


def _idle(urls: list[str], calls: int) -> list[float]:
    """The median milliseconds of one client that asks each in turn."""
    taken: list[list[float]] = [[] for _ in urls]
    with requests.Session() as session:
        for call in range(calls):
            for which in (0, 1) if call % 2 else (1, 0):
                began = time.perf_counter()
                found = session.post(urls[which], json={"instances": [ROW]}, timeout=30).json()
                taken[which].append((time.perf_counter() - began) * 1000)
                assert found["predictions"], found
    return [statistics.median(each) for each in taken]


def _busy(urls: list[str], home: Path) -> list[float]:
    """The median requests per second of 64 clients that ask again as soon as they are answered."""
    script = home / "post.lua"
    row = ",".join(map(str, ROW))
    script.write_text(
        'wrk.method = "POST"\nwrk.headers["Content-Type"] = "application/json"\n'
        f"wrk.body = '{{\"instances\": [[{row}]]}}'\n"
    )
    rates: list[list[float]] = [[] for _ in urls]
    for turn in range(ROUNDS):
        for which in (0, 1) if turn % 2 else (1, 0):
            command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{SECONDS}", "-s", str(script), urls[which]]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found = re.search(r"Requests/sec:\s+([\d.]+)", said)
            assert found is not None and "Non-2xx" not in said, said  # noqa: PT018
            rates[which].append(float(found[1]))
    return [statistics.median(each) for each in rates]


def _print_idle(name: str, window: str, ours: float, theirs: float) -> None:
    print(f"{name}: one client, window {window}: {ours:.2f} ms alone, {theirs:.2f} ms through the sidecar; "
          f"{theirs / ours:.1f} x")  # fmt: skip


def _print_busy(name: str, ours: float, theirs: float) -> None:
    print(f"{name}: {CLIENTS} clients, window {SHORT_MS} ms: {ours:.0f} requests per second alone, {theirs:.0f} through the "
          f"sidecar; {theirs / ours:.2f} x")  # fmt: skip


if __name__ == "__main__":
    main()
