"""A real server under three times the load that it can take: what is still answered, and who else feels it.

python -m scripts.overload

The server has both cores, and the load shares one of them. A forest is asked in an open loop, from 0.8 to three times its
capacity, which a loop of wrk finds before; liveness and another model are asked twenty times a second meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
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
import psutil
import requests
import uvloop
from mlflow.models import infer_signature
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.demo.machines import EXAMPLE, Histories, simulate
from scripts.open_loop import Heard, OpenLoop

BESIDE_RATE = 20.0


def main() -> None:
    """Trains, starts the server, measures in rounds, and prints a table of medians."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        histories = simulate(120, 20)
        _save(home / "other", make_pipeline(StandardScaler(), LogisticRegression()), histories)
        _save(home / "forest", RandomForestClassifier(args.trees, random_state=0), histories)
        script = _write_load(home / "post.lua")
        with _started(home, args) as server:
            os.sched_setaffinity(0, {args.load_core})
            capacity = args.capacity or statistics.median(_capacity(script, args) for _ in range(3))
            print(f"capacity: {capacity:.0f}/s", flush=True)
            rounds = [_round(capacity, server, args) for _ in range(args.rounds)]
    _print(rounds, args.seconds)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trees", type=int, default=500, help="of the forest: what a batch costs")
    parser.add_argument("--isolation", default="process", help="where the forest computes: process, or none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each load")
    parser.add_argument(
        "--capacity", type=float, help="requests per second; unsaid, what 128 clients in a closed loop get"
    )
    parser.add_argument("--times", default="0.8,1,1.2,3", help="loads, in capacities")
    parser.add_argument("--server-cores", default="0,1")
    parser.add_argument("--load-core", type=int, default=1)
    parser.add_argument("--port", type=int, default=18280)
    return parser.parse_args()


def _save(folder: Path, model: Any, histories: Histories) -> None:
    kept = {"serialization_format": "skops", "skops_trusted_types": ["sklearn.tree._tree.Tree"]}
    signature = infer_signature(histories.x, histories.y[:10])
    model.fit(histories.x.to_numpy(), histories.y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(model, str(folder), signature=signature, pip_requirements=["scikit-learn"], **kept)


def _write_load(script: Path) -> Path:
    """wrk's script: one POST, always the same."""
    body = json.dumps({"instances": [list(EXAMPLE)]})
    head = 'wrk.headers["Content-Type"] = "application/json"'
    script.write_text(f"wrk.method = \"POST\"\nwrk.body = '{body}'\n{head}\n")
    return script


@contextlib.contextmanager
def _started(home: Path, args: argparse.Namespace) -> Iterator[psutil.Process]:
    models = [
        {"name": "forest", "uri": str(home / "forest"), "accelerate": "off", "isolation": args.isolation},
        {"name": "other", "uri": str(home / "other")},
    ]
    (home / "headway.yaml").write_text(json.dumps({"models": models}))
    flags = ["--config", str(home / "headway.yaml"), "--host", "127.0.0.1"]
    ports = ["--port", str(args.port), "--grpc-port", str(args.port + 1)]
    environ = {**os.environ, "HEADWAY_REGISTRY__CACHE_DIR": str(home / "cache")}
    command = ["taskset", "-c", args.server_cores, sys.executable, "-m", "serving.cli", "serve", *flags, *ports]
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environ)
    try:
        end = time.monotonic() + 120
        while time.monotonic() < end and process.poll() is None:
            with contextlib.suppress(requests.RequestException):
                requests.get(f"http://127.0.0.1:{args.port}/ready", timeout=5).raise_for_status()
                break
            time.sleep(0.2)
        else:
            sys.exit(f"the server did not come up:\n{(home / 'log').read_text()[-2000:]}")
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()


def _capacity(script: Path, args: argparse.Namespace) -> float:
    """Requests per second that 128 clients get, each asking again when it is answered."""
    url = f"http://127.0.0.1:{args.port}/v1/models/forest:predict"
    command = ["wrk", "-t1", "-c128", f"-d{args.seconds:.0f}s", "-s", str(script), url]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=args.seconds + 60).stdout
    refused = sum(map(int, re.findall(r"Non-2xx or 3xx responses: (\d+)", said)))
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    return rate - refused / float(args.seconds)


Round = dict[str, dict[str, float]]


def _round(capacity: float, server: psutil.Process, args: argparse.Namespace) -> Round:
    """One of each load; what was seen, by load."""
    seen = {}
    for times in args.times.split(","):
        before = server.memory_info().rss
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            heard = runner.run(_load(float(times) * capacity, args))
        seen[times] = _figures(heard, args.seconds)
        seen[times]["MiB before"], seen[times]["MiB after"] = before / 2**20, server.memory_info().rss / 2**20
        print(f"{times} x: {_shown(seen[times])}", file=sys.stderr, flush=True)
    return seen


async def _load(rate: float, args: argparse.Namespace) -> list[Heard]:
    """The forest at a rate, liveness and the other model beside it."""
    body = json.dumps({"instances": [list(EXAMPLE)]}).encode()
    loops = [
        OpenLoop(args.port, _post("forest", body)),
        OpenLoop(args.port, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"),
        OpenLoop(args.port, _post("other", body)),
    ]
    rates = (rate, BESIDE_RATE, BESIDE_RATE)
    heard = await asyncio.gather(*(loop.run(r, args.seconds) for loop, r in zip(loops, rates, strict=True)))
    for loop in loops:
        loop.close()
    await asyncio.sleep(1)
    return heard


def _post(model: str, body: bytes) -> bytes:
    head = f"POST /v1/models/{model}:predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _figures(heard: list[Heard], seconds: float) -> dict[str, float]:
    forest, health, other = heard
    return {
        "sent/s": sum(map(len, forest.latencies.values())) / seconds,
        "answered/s": forest.count(200) / seconds,
        "shed/s": forest.count(503) / seconds,
        "late/s": forest.count(504) / seconds,
        "not sent": forest.unsent,
        "Retry-After": max(forest.retry_after, default=0),
        "p50 ms": forest.percentile(0.5),
        "p99 ms": forest.percentile(0.99),
        "p99 of a 503": forest.percentile(0.99, 503),
        "liveness p99": health.percentile(0.99),
        "other p50": other.percentile(0.5),
        "other p99": other.percentile(0.99),
        "other failed": sum(map(len, other.latencies.values())) - other.count(200),
    }


def _shown(figures: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def _print(rounds: list[Round], seconds: float) -> None:
    """Medians over the rounds; the goodput of the largest load over the best of the others, within each round."""
    loads = list(rounds[0])
    names = list(rounds[0][loads[0]])
    print("| |", " | ".join(f"{load} x" for load in loads), "|\n|---|" + "---|" * len(loads))
    for name in names:
        print(
            f"| {name} |", " | ".join(f"{statistics.median(r[load][name] for r in rounds):.4g}" for load in loads), "|"
        )
    good = [r[loads[-1]]["answered/s"] / max(r[load]["answered/s"] for load in loads[:-1]) for r in rounds]
    print(f"goodput at {loads[-1]} x capacity over its peak: {statistics.median(good):.3f} ({seconds:g} s each)")


if __name__ == "__main__":
    main()
