"""The request path, measured beside a minimal model on KServe's SDK and beside a bare protocol around the same model.

python -m scripts.bench --clients 1,16,64,256 --rounds 5

Every round measures every server once, in a new order, with the same load; the figures are medians over the rounds, and
ratios are taken within a round, so that what else the machine does cancels out. Servers run on one core, wrk on another.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlflow
import numpy as np
import psutil
import requests
from mlflow.models import infer_signature
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from scripts.bench_servers import NAME
from scripts.demo.machines import EXAMPLE, simulate

PREDICT = f"/v1/models/{NAME}:predict"
OURS = ("ours", "ours-native", "ours-asgi", "ours-labels")


@dataclass(frozen=True)
class Figure:
    """One run of wrk: requests per second, microseconds of the server's CPU per request, milliseconds."""

    rate: float
    cpu: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """What it has computed so far, the system's part included."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@dataclass
class Bench:
    """What was measured so far: figures by server and number of clients, one per round."""

    figures: dict[tuple[str, int], list[Figure]] = field(default_factory=dict)

    def median(self, server: str, clients: int, what: str) -> float:
        """The median of one figure over the rounds."""
        return float(statistics.median(getattr(f, what) for f in self.figures[server, clients]))

    def ratio(self, server: str, other: str, clients: int, what: str = "rate") -> float:
        """The median over the rounds of a figure divided by another server's in the same round."""
        pairs = zip(self.figures[server, clients], self.figures[other, clients], strict=True)
        return float(statistics.median(getattr(a, what) / getattr(b, what) for a, b in pairs))


def main() -> None:
    """Trains, starts the servers, measures in rounds, and prints a table."""
    args = _arguments()
    for tool in ("wrk", "taskset"):
        if shutil.which(tool) is None:
            sys.exit(f"{tool} is not installed: apt-get install wrk util-linux")
    servers, clients = args.servers.split(","), [int(c) for c in args.clients.split(",")]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        save_model(home / "model")
        script = write_load(home, args.rows)
        running = {s: stack.enter_context(started(s, home, args.port + 2 * i, args)) for i, s in enumerate(servers)}
        bench = measure(servers, clients, running, script, args)
    print(table(bench, servers, clients))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--servers", default="ours,kserve,ceiling", help=f"of {', '.join(OURS)}, kserve, kserve-proba, ceiling"
    )
    parser.add_argument("--clients", default="1,16,64", help="connections of wrk, one figure each")
    parser.add_argument("--rows", type=int, default=1, help="rows per request")
    parser.add_argument("--max-rows", type=int, default=64, help="batching.max_rows of ours")
    parser.add_argument("--max-queue", type=int, default=4096, help="batching.max_queue of ours")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3, help="of each measurement")
    parser.add_argument("--server-core", default="0")
    parser.add_argument("--load-core", default="1")
    parser.add_argument("--port", type=int, default=18080, help="the first of the ports to use")
    return parser.parse_args()


def save_model(folder: Path) -> None:
    """The demonstration's pipeline, as MLflow saves it: ten doubles in, a class out."""
    histories = simulate(120, 20)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.5))
    pipeline.fit(histories.x.to_numpy(), histories.y)  # a frame's names would cost the others a warning per request
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.sklearn.save_model(
            pipeline,
            str(folder),
            serialization_format="skops",
            signature=infer_signature(histories.x, np.asarray(histories.y[:10])),
            pip_requirements=["scikit-learn"],
        )


def write_load(home: Path, rows: int) -> Path:
    """wrk's script: one POST, always the same."""
    body = json.dumps({"instances": [list(EXAMPLE)] * rows})
    script = home / "post.lua"
    script.write_text(
        f'wrk.method = "POST"\nwrk.body = \'{body}\'\nwrk.headers["Content-Type"] = "application/json"\n'
        "function done(summary, latency, requests)\n"
        "  local e = summary.errors\n"
        '  print("errors " .. e.connect + e.read + e.write + e.status + e.timeout)\n'
        '  print("p50 " .. latency:percentile(50) .. " p99 " .. latency:percentile(99))\nend\n'
    )
    return script


@contextlib.contextmanager
def started(server: str, home: Path, port: int, args: argparse.Namespace) -> Iterator[Running]:
    """A server on the server's core, until the block ends."""
    command = _ours(server, home, port, args) if server in OURS else _other(server, home, port)
    environ = {**os.environ, "HEADWAY_REGISTRY__CACHE_DIR": str(home / "cache")}
    with (home / f"{server}.log").open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", args.server_core, *command], stdout=log, stderr=subprocess.STDOUT, env=environ
        )
    try:
        _wait(f"http://127.0.0.1:{port}/v1/models/{NAME}", process, home / f"{server}.log")
        yield Running(port, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait()


def _ours(server: str, home: Path, port: int, args: argparse.Namespace) -> list[str]:
    batching = {"max_rows": args.max_rows, "max_queue": args.max_queue}
    model = {"name": NAME, "uri": str(home / "model"), "batching": batching}
    if server == "ours-native":
        model["accelerate"] = "off"
    if server == "ours-labels":
        model["output"] = "labels"
    lane = "asgi" if server == "ours-asgi" else "protocol"
    file = home / f"{server}.yaml"
    file.write_text(json.dumps({"models": [model], "server": {"lane": lane}}))
    flags = ["--host", "127.0.0.1", "--port", str(port), "--grpc-port", str(port + 1)]
    return [sys.executable, "-m", "serving.cli", "serve", "--config", str(file), *flags]


def _other(server: str, home: Path, port: int) -> list[str]:
    return [sys.executable, "-m", "scripts.bench_servers", server, str(home / "model"), str(port)]


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(requests.RequestException):
            requests.get(url, timeout=5).raise_for_status()
            return
        time.sleep(0.2)
    sys.exit(f"{url} did not come up:\n{log.read_text()[-2000:]}")


def measure(
    servers: Sequence[str], clients: Sequence[int], running: dict[str, Running], script: Path, args: argparse.Namespace
) -> Bench:
    """All rounds, after one second of warm-up for each server."""
    bench = Bench({(s, c): [] for s in servers for c in clients})
    for server in servers:
        run_wrk(running[server], 4, 1, script, args.load_core)
    for number in range(args.rounds):
        for count in clients:
            for server in [*servers[number % len(servers) :], *servers[: number % len(servers)]]:
                figure = run_wrk(running[server], count, args.seconds, script, args.load_core)
                bench.figures[server, count].append(figure)
                print(f"round {number + 1}/{args.rounds}, {count:3} clients, {server:12} {figure.rate:8.0f}/s",
                      file=sys.stderr, flush=True)  # fmt: skip
    return bench


def run_wrk(server: Running, clients: int, seconds: int, script: Path, core: str) -> Figure:
    """One closed loop of wrk. Exits if a single answer was no 2xx."""
    command = ["taskset", "-c", core, "wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "60s", "-s", str(script),
               f"http://127.0.0.1:{server.port}{PREDICT}"]  # fmt: skip
    before = server.cpu_seconds()
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "errors 0\n" not in said:
        sys.exit(f"wrk met errors:\n{said}")
    rate = float(re.findall(r"Requests/sec:\s+([\d.]+)", said)[0])
    count = int(re.findall(r"(\d+) requests in", said)[0])
    p50, p99 = (float(x) / 1000 for x in re.findall(r"p50 ([\d.]+) p99 ([\d.]+)", said)[0])
    return Figure(rate, (server.cpu_seconds() - before) / count * 1e6, p50, p99)


def table(bench: Bench, servers: Sequence[str], clients: Sequence[int]) -> str:
    """Markdown: requests per second and latency of each, and the ratio of the first server to each other."""
    first = servers[0]
    lines = ["| clients | server | requests/s | CPU µs each | p50 ms | p99 ms | ratio of rates | of CPU | of p99 |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    digits = {"rate": 0, "cpu": 0, "p50": 2, "p99": 2}
    for count in clients:
        for server in servers:
            cells = [f"{bench.median(server, count, what):.{d}f}" for what, d in digits.items()]
            ratios = [f"{bench.ratio(first, server, count, what):.3g}" for what in ("rate", "cpu", "p99")]
            lines.append(f"| {' | '.join([str(count), server, *cells, *ratios])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
