"""Long work, with a command of its own: `make soak`. Nothing may grow with the number of promotions."""

import os
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from scripts.load import Load
from tests.servers import MlflowServer, Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
SWAPS = int(os.environ.get("SOAK_SWAPS", "200"))


def measure(server: Server, temporary: Path) -> dict[str, float]:
    """What the process holds now: megabytes, threads, descriptors, files in its temporary folder, servables."""
    process = psutil.Process(server.process.pid)
    return {
        "rss_mb": round(process.memory_info().rss / 2**20, 1),
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "temporary": len(list(temporary.iterdir())),
        "servables": server.metric("headway_servables_alive", model_name=MODEL) or 0,
    }


def test_two_hundred_swaps_leak_nothing(
    mlflow_server: MlflowServer, headway: Callable[..., Server], tmp_path: Path
) -> None:
    """Three kinds of model in turn, under load: no error; objects, threads, descriptors and folders stay as many, and
    memory settles. Prints the series (pytest -s)."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    server = headway("--model-uri", f"models:/{MODEL}@champion", MLFLOW_TRACKING_URI=mlflow_server.uri,
                     HEADWAY_REGISTRY__POLL_SECONDS="0.1", TMPDIR=str(temporary))  # fmt: skip
    server.until_ready()
    series = []
    with Load(f"{server.base}/v1/models/{MODEL}:predict", {"instances": [ROW]}, rate=50) as load:
        for swap in range(SWAPS):
            version = str((swap + 1) % 3 + 1)
            mlflow_server.set_alias(MODEL, "champion", version)
            server.until_serves(version)
            if swap % (SWAPS // 20) == SWAPS // 20 - 1:
                server.until(lambda: measure(server, temporary)["servables"] == 1, "old versions collected")
                series.append({"swaps": swap + 1, **measure(server, temporary)})
                print(series[-1], flush=True)  # noqa: T201  the series is what the command is for
    assert load.tally.lost == {}
    half = series[len(series) // 2 :]
    for what in ("threads", "descriptors", "temporary"):
        assert half[-1][what] <= max(s[what] for s in series[: len(series) // 2]) + 2, what
    grown = half[-1]["rss_mb"] - half[0]["rss_mb"]
    assert grown < 0.05 * half[0]["rss_mb"], f"{grown} MB in the second half"
