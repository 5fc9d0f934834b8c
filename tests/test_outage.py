"""The registry fails in every way it can, at the start and while versions serve: requests go on, and the status says why."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from registry.answers import MOST_BYTES
from registry.errors import RegistryUnavailable
from registry.mlflow_registry import MlflowRegistry
from registry.policies import FollowAlias
from scripts.load import Load
from tests.proxy import Proxy, proxied
from tests.servers import MlflowServer, Server

pytestmark = pytest.mark.e2e
MODEL = "predictive_maintenance"
ROW = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
FAILURES = [
    ("500", "it answers 500"),
    ("nonsense", "what it says makes no sense"),
    ("empty", "what it says makes no sense"),
    ("cut", "it hangs up"),
    ("slow", "it took too long"),
]
UNANSWERED = "the registry has not answered yet"


@pytest.fixture(scope="module")
def proxy(shared: MlflowServer) -> Iterator[Proxy]:
    with proxied(shared.uri) as proxy:
        yield proxy


@pytest.fixture(autouse=True)
def healed(proxy: Proxy) -> Iterator[None]:
    """Every test begins and ends with a registry that answers."""
    proxy.mode = "pass"
    yield
    proxy.mode = "pass"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that outlives the servers of this module."""
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def start(headway: Callable[..., Server], proxy: Proxy, kept: Path) -> Callable[..., Server]:
    def start(uri: str = f"models:/{MODEL}@champion", **environ: str) -> Server:
        return headway("--model-uri", uri, "--model-name", MODEL, **{
            "MLFLOW_TRACKING_URI": proxy.uri, "HEADWAY_REGISTRY__POLL_SECONDS": "0.2",
            "HEADWAY_REGISTRY__CACHE_DIR": str(kept), **environ,
        })  # fmt: skip

    return start


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], proxy: Proxy, kept: Path) -> Server:
    """A server that has seen the registry well, and that many failures must not hurt."""
    server = serve("--model-uri", f"models:/{MODEL}@champion", MLFLOW_TRACKING_URI=proxy.uri,
                   HEADWAY_REGISTRY__POLL_SECONDS="0.2", HEADWAY_REGISTRY__CACHE_DIR=str(kept))  # fmt: skip
    server.until_ready()
    return server


@pytest.mark.parametrize(("mode", "says"), FAILURES)
def test_requests_go_on_while_the_registry_fails(server: Server, proxy: Proxy, mode: str, says: str) -> None:
    """No request fails, readiness stays, and the status and the metrics tell; all is well when it is back."""
    with Load(f"{server.base}/v1/models/{MODEL}:predict", {"instances": [ROW]}, rate=50) as load:
        proxy.mode = mode
        server.until(lambda: server.status()["stale"], "stale", 40)
        assert says in server.status()["problem"]
        assert proxy.uri not in server.get(f"/v1/models/{MODEL}").text
        assert server.status()["version"] == "1"
        assert server.get("/ready").status_code == 200
        assert (server.metric("headway_registry_staleness_seconds", model_name=MODEL) or 0) > 0
        proxy.mode = "pass"
        server.until(lambda: not server.status()["stale"], "fresh", 40)
    assert load.tally.lost == {}
    assert server.status()["problem"] is None


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        FAILURES[1],
        pytest.param("slow", UNANSWERED, marks=pytest.mark.audit("40")),
        pytest.param("drip", UNANSWERED, marks=pytest.mark.audit("40")),
    ],
)
def test_a_pod_starts_with_what_served_last(
    server: Server, start: Callable[..., Server], proxy: Proxy, mode: str, says: str
) -> None:
    """The registry fails, or takes its time, from the first question on; the cache knows the version, and the status that
    it may be old."""
    proxy.mode = mode
    late = start()
    late.until_ready(60)
    status = late.status()
    assert (status["version"], status["stale"]) == ("1", True)
    assert says in status["problem"]
    assert late.post(f"/v1/models/{MODEL}:predict", {"instances": [ROW]}).json()["model_version"] == "1"
    proxy.mode = "pass"
    late.until(lambda: late.status()["problem"] is None, "well again", 40)
    states = [line for line in late.lines() if line["message"] == "state changed"]
    assert [line["to"] for line in states] == ["LOADING", "WARMING", "READY"]


@pytest.mark.audit("40")
@pytest.mark.parametrize("status", [200, 500, 404])
def test_an_answer_without_an_end_is_cut(proxy: Proxy, status: int) -> None:
    """Whatever its status; the registry counts as one that does not answer, and says why."""
    proxy.mode, proxy.status, proxy.sent = "endless", status, 0
    registry = MlflowRegistry(proxy.uri)
    with pytest.raises(RegistryUnavailable, match=r"no end|answers 500"):
        registry.catalogue(FollowAlias(MODEL, "champion"))
    assert proxy.sent < 10 * MOST_BYTES  # three tries of up to two calls, and what the sockets hold


@pytest.mark.audit("11")
def test_an_artifact_store_that_is_down_stops_no_poll(proxy: Proxy) -> None:
    """Features of training runs cannot be read, again and again: the registry, which answers, is asked as ever."""
    registry, policy = MlflowRegistry(proxy.uri), FollowAlias(MODEL, "champion")
    found = registry.catalogue(policy)
    proxy.mode = "no files"
    for _ in range(4):
        assert registry.recorded_features(found[0]) is None
    assert registry.catalogue(policy) == found


def test_without_a_cache_a_pod_waits_and_says_why(start: Callable[..., Server], proxy: Proxy, tmp_path: Path) -> None:
    """It is live, not ready, and ready when the registry answers."""
    proxy.mode = "500"
    late = start(HEADWAY_REGISTRY__CACHE_DIR=str(tmp_path / "empty"))
    late.until(lambda: "it answers 500" in late.status().get("error", ""), "told")
    assert late.get("/health/live").status_code == 200
    answer = late.post(f"/v1/models/{MODEL}:predict", {"instances": [ROW]})
    assert (answer.status_code, "it answers 500" in answer.json()["error"]) == (503, True)
    proxy.mode = "pass"
    late.until_ready(60)


def test_a_kill_during_a_download_leaves_nothing_half(
    start: Callable[..., Server], proxy: Proxy, tmp_path: Path
) -> None:
    """kill -9 with files on the way; the next start serves, and the rest of the first is gone."""
    cache = tmp_path / "cache"
    proxy.mode, proxy.delay = "slow files", 2.0
    first = start(HEADWAY_REGISTRY__CACHE_DIR=str(cache))
    first.until(lambda: [p for p in (cache / "downloads").iterdir() if p.is_dir()], "downloading")
    os.kill(first.process.pid, signal.SIGKILL)
    first.process.wait()
    assert not list((cache / "trees").iterdir())
    proxy.mode, proxy.delay = "pass", 10.0
    second = start(HEADWAY_REGISTRY__CACHE_DIR=str(cache))
    second.until_ready()
    assert [p for p in (cache / "downloads").iterdir() if p.is_dir()] == []
    assert second.status()["digest"] == f"sha256:{next((cache / 'trees').iterdir()).name}"


def test_a_full_disk_keeps_the_old_version_and_a_read_only_one_starts(
    start: Callable[..., Server], shared: MlflowServer, tmp_path: Path
) -> None:
    """The pipeline fits a small disk, the forest does not; then the disk is read-only, and the pipeline still starts."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        shared.set_alias(MODEL, "disk", "1")
        server = start(f"models:/{MODEL}@disk", HEADWAY_REGISTRY__CACHE_DIR=str(disk))
        server.until_ready()
        with Load(f"{server.base}/v1/models/{MODEL}:predict", {"instances": [ROW]}, rate=50) as load:
            shared.set_alias(MODEL, "disk", "2")
            server.until(lambda: "cache_dir is full" in (server.status()["problem"] or ""), "full")
            assert (server.status()["version"], server.get("/ready").status_code) == ("1", 200)
            shared.set_alias(MODEL, "disk", "1")
            server.until(lambda: server.status()["problem"] is None, "back")
        assert load.tally.lost == {}
        assert server.terminate() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        again = start(f"models:/{MODEL}@disk", HEADWAY_REGISTRY__CACHE_DIR=str(disk))
        again.until_ready()
        assert again.terminate() == 0
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
