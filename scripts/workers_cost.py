"""What workers cost: the time from the start to ready, and the memory of all processes, with one and with two workers.

python -m scripts.workers_cost [--rounds 3] [--workers 1 2] [--weights MB]

With `--weights`, of a PyTorch network of that size instead of a logistic regression. Each start is warm: the files of the
libraries are in the page cache, the version in the artifact cache. RSS counts what processes share once for each, PSS
once.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import psutil
import requests
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression

from tests.servers import free_port

WIDTH = 10
BODY = {"instances": [[0.5] * WIDTH]}


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds from the start to ready, and to ready again after a worker was killed; MiB of all processes together."""

    ready: float
    again: float
    rss: float
    pss: float
    each: tuple[float, ...]


def main() -> None:
    """Prints a line per number of workers: medians of the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--weights", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uri = _network(Path(folder), args.weights) if args.weights else _model(Path(folder))
        _measure(uri, Path(folder), 1)  # fills the caches
        rounds = [[_measure(uri, Path(folder), count) for count in args.workers] for _ in range(args.rounds)]
    for i, count in enumerate(args.workers):
        _print(count, [costs[i] for costs in rounds])


def _model(folder: Path) -> str:
    """A logistic regression in a folder, as KServe's storage initializer would leave it."""
    x = np.random.default_rng(0).normal(size=(200, WIDTH))
    estimator, path = LogisticRegression().fit(x, x[:, 0] > 0), folder / "model"
    signature = infer_signature(x, np.arange(2))
    said = {"signature": signature, "pip_requirements": ["mlflow"], "serialization_format": "skops"}
    mlflow.sklearn.save_model(estimator, str(path), **said)
    return str(path)


def _network(folder: Path, megabytes: int) -> str:
    """A network of so many megabytes, exported as MLflow does by default."""
    import torch

    width = round((megabytes * 2**20 / 4 / 4) ** 0.5)
    layers = [torch.nn.Linear(WIDTH, width), *(torch.nn.Linear(width, width) for _ in range(4))]
    network, path = torch.nn.Sequential(*layers, torch.nn.Linear(width, 1)), folder / "model"
    example = np.zeros((2, WIDTH), np.float32)
    signature = infer_signature(example, np.zeros((2, 1), np.float32))
    mlflow.pytorch.save_model(
        network, str(path), signature=signature, input_example=example, pip_requirements=["mlflow"]
    )
    return str(path)


def _measure(uri: str, folder: Path, workers: int) -> Cost:
    port, grpc_port = free_port(), free_port()
    began = time.monotonic()
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(port), "--grpc-port",
               str(grpc_port), "--workers", str(workers), "--model-uri", uri, "--model-name", "m"]  # fmt: skip
    environ = {**os.environ, "HEADWAY_REGISTRY__CACHE_DIR": str(folder / "cache")}
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environ)
    try:
        ready = _until(port, "/ready", "true", began)
        for _ in range(20 * workers):
            requests.post(f"http://127.0.0.1:{port}/v1/models/m:predict", json=BODY, timeout=10).raise_for_status()
        every = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        held = [each.memory_full_info() for each in every]
        again = _kill_one(every, port, workers) if workers > 1 else float("nan")
        pss = [each.pss / 2**20 for each in held]
        return Cost(ready, again, sum(each.rss for each in held) / 2**20, sum(pss), tuple(pss))
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _kill_one(every: list[psutil.Process], port: int, workers: int) -> float:
    """Seconds until a worker that was killed is replaced by one that listens."""
    supervisor = every[0].pid
    next(each for each in every[1:] if each.ppid() != supervisor).kill()
    began = time.monotonic()
    _until(port, "/metrics", f"\nheadway_workers {workers - 1}.0\n", began)
    return _until(port, "/metrics", f"\nheadway_workers {workers}.0\n", began)


def _until(port: int, path: str, says: str, began: float) -> float:
    """Seconds since `began` at which that page says so."""
    while time.monotonic() < began + 120:
        try:
            answer = requests.get(f"http://127.0.0.1:{port}{path}", timeout=5)
        except requests.RequestException:
            answer = None
        if answer is not None and answer.ok and says in answer.text:
            return time.monotonic() - began
        time.sleep(0.01)
    raise SystemExit(f"{path} never said {says.strip()!r}")


def _print(workers: int, costs: list[Cost]) -> None:
    ready, again, rss, pss = (statistics.median(getattr(cost, key) for cost in costs) for key in Cost.__slots__[:4])
    each = ", ".join(f"{size:.0f}" for size in costs[-1].each)
    replaced = f"; a killed worker is replaced in {again:.2f} s" if workers > 1 else ""
    print(f"{workers} workers: ready in {ready:.2f} s; RSS {rss:.0f} MiB, PSS {pss:.0f} MiB ({each}){replaced}")


if __name__ == "__main__":
    main()
