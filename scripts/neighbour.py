"""What a model in the server notices of one in a process that hangs or crashes: its latency, turn by turn.

python -m scripts.neighbour
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.models import columns, fiend, linear, register, skops
from tests.servers import Server, start_headway, start_mlflow

TURNS, SECONDS, GAP = 4, 8.0, 0.005
GOOD, FIEND = "/v1/models/good:predict", "/v1/models/fiend:predict"
WHAT = ("quiet", "hang", "crash")
MODELS = [
    {"name": "good", "uri": "models:/good/1"},
    {"name": "fiend", "uri": "models:/fiend/1", "allow_code": True, "hang_seconds": 2, "timeout_ms": 0},
]


def main() -> None:
    """Prints a table: requests, lost ones, and milliseconds, by what the neighbour does."""
    taken: dict[str, list[float]] = {what: [] for what in WHAT}
    lost = dict.fromkeys(WHAT, 0)
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder)) as server:
        for _ in range(TURNS):
            for what in WHAT:
                with _neighbour(server, what):
                    lost[what] += _measure(server, taken[what])
        ends = {r: server.metric("headway_process_restarts_total", reason=r) for r in ("hung", "crashed")}
    for what in WHAT:
        _print(what, taken[what], lost[what])
    print(f"ended by reason: {ends}")


@contextlib.contextmanager
def _server(home: Path) -> Iterator[Server]:
    """A server with a scikit-learn model, and beside it one that does as it is told."""
    with start_mlflow(home) as registry:
        register(registry.uri, "good", skops(linear(2.0)), columns(("a", "double")))
        register(registry.uri, "fiend", fiend(), columns(("do", "string"), output="long"))
        file = home / "headway.yaml"
        file.write_text(json.dumps({"registry": {"pinned_poll_seconds": 600}, "models": MODELS}))
        server = start_headway(home / "log", "--config", str(file), MLFLOW_TRACKING_URI=registry.uri)
        try:
            server.until_ready()
            yield server
        finally:
            server.kill()


@contextlib.contextmanager
def _neighbour(server: Server, what: str) -> Iterator[None]:
    """It hangs or crashes again and again meanwhile, and is well again afterwards."""
    done = threading.Event()

    def misbehave() -> None:
        while not done.is_set():
            if _ask(server, what) == 503:
                done.wait(0.2)

    thread = threading.Thread(target=misbehave)
    if what != "quiet":
        thread.start()
    yield
    done.set()
    if what != "quiet":
        thread.join()
        server.until(lambda: _ask(server, "fine") == 200, "well again", 120)


def _ask(server: Server, what: str) -> int:
    return requests.post(server.base + FIEND, json={"instances": [[what]]}, timeout=30).status_code


def _measure(server: Server, taken: list[float]) -> int:
    """One turn: appends the milliseconds of every request, and returns how many were not answered right."""
    lost, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        began = time.perf_counter()
        answer = server.post(GOOD, {"instances": [[1.0]]})
        taken.append((time.perf_counter() - began) * 1000)
        lost += answer.status_code != 200 or answer.json()["predictions"] != [2.0]
        time.sleep(GAP)
    return lost


def _print(what: str, taken: list[float], lost: int) -> None:
    cuts = statistics.quantiles(taken, n=100)
    print(
        f"{what:6} {len(taken):6} requests, {lost} lost, p50 {cuts[49]:.1f}, p95 {cuts[94]:.1f}, p99 {cuts[98]:.1f}, "
        f"longest {max(taken):.0f} ms"
    )


if __name__ == "__main__":
    main()
