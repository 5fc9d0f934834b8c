"""A server with versions in processes of their own: what one breaks, no other model notices."""

import contextlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from scripts.load import Load
from tests.models import columns, fiend, linear, puppet, register, skops, stuck, with_helper
from tests.servers import MlflowServer, Server
from tests.serving.test_process import alive, children

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
DO = columns(("do", "string"), output="long")
NUMBER = columns(("a", "double"))
ONE = {"instances": [[1.0]]}
LOAD_SECONDS = 25


@pytest.fixture(scope="module")
def registered(shared: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> MlflowServer:
    """A good model, one that does as it is told, one that never loads, one that sleeps, and two with a helper each."""
    folder = tmp_path_factory.mktemp("helpers")
    register(shared.uri, "good", skops(linear(2.0)), NUMBER)
    register(shared.uri, "fiend", fiend(), DO)
    register(shared.uri, "stuck", stuck(), DO)
    register(shared.uri, "slow", puppet(), columns(("ms", "double")))
    for who in (1, 2):
        register(shared.uri, "helped", with_helper(folder / str(who), who), NUMBER)
    shared.set_alias("helped", "champion", "1")
    return shared


def configuration(folder: Path, *names: str) -> str:
    own: dict[str, dict[str, Any]] = {
        "fiend": {"memory_mb": 700, "hang_seconds": 2, "timeout_ms": 0},
        "stuck": {"required": False},
        "slow": {"isolation": "none", "hang_seconds": 0.5, "timeout_ms": 200},
        "helped": {"uri": "models:/helped@champion"},
    }
    models = [{"name": name, "uri": f"models:/{name}/1", **own.get(name, {})} for name in names]
    server = {"load_seconds": LOAD_SECONDS}
    file = folder / "headway.yaml"
    groups = {
        "server": server,
        "registry": {"poll_seconds": 0.2},
        "defaults": {"allow_code": True, "timeout_ms": 10_000},
    }
    file.write_text(json.dumps({**groups, "models": models}))
    return str(file)


@pytest.fixture(scope="module")
def server(serve: Callable[..., Server], registered: MlflowServer, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """All of them in one server."""
    file = configuration(tmp_path_factory.mktemp("config"), "good", "fiend", "stuck", "slow", "helped")
    server = serve("--config", file, MLFLOW_TRACKING_URI=registered.uri)
    server.until_ready()
    return server


def ask(server: Server, *what: str) -> requests.Response:
    return requests.post(f"{server.base}/v1/models/fiend:predict", json={"instances": [[w] for w in what]}, timeout=60)


@contextlib.contextmanager
def good_goes_on(server: Server) -> Iterator[None]:
    """A steady load on the good model, all of which must be answered right."""
    url = f"{server.base}/v1/models/good:predict"
    with Load(url, ONE, rate=50, right=lambda body: body["predictions"] == [2.0]) as load:
        yield
    assert load.tally.lost == {}
    assert load.tally.sent > 20


def restarts(server: Server, reason: str) -> float:
    return server.metric("headway_process_restarts_total", model_name="fiend", reason=reason) or 0.0


def reason(server: Server) -> str | None:
    (version,) = server.status("fiend")["versions"]
    assert version["state"] == "READY"
    found: str | None = version["reason"]
    return found


def check_comes_back(server: Server, ending: str, says: str) -> None:
    """The status says why there is no process, later requests are refused and then answered, and it is counted."""
    reasons = []
    while (answer := ask(server, "fine")).status_code != 200:
        assert (answer.status_code, list(answer.json())) == (503, ["error"])
        reasons.append(reason(server))
    assert answer.json()["predictions"] == [4]
    assert any(says in text for text in reasons if text)
    server.until(lambda: reason(server) is None, "well again")
    assert restarts(server, ending) == 1
    assert server.get("/ready").status_code == 200
    (line,) = [x for x in server.lines() if x["message"] == "the version's process is gone" and x["reason"] == ending]
    assert (line["model"], line["version"]) == ("fiend", "1")


@pytest.mark.parametrize(
    ("what", "ending", "says"),
    [("crash", "crashed", "SIGSEGV"), ("exit", "exited", "code 3"), ("hang", "hung", "hang_seconds")],
)
def test_a_crash_or_a_hang_harms_nobody_else(server: Server, what: str, ending: str, says: str) -> None:
    """Its own request is a 500 of fixed text, and the process is back."""
    with good_goes_on(server):
        answer = ask(server, "fine", what)
        assert (answer.status_code, list(answer.json())) == (500, ["error"])
        assert what not in answer.text
        check_comes_back(server, ending, says)


def test_a_leak_harms_nobody_else(server: Server) -> None:
    """At `memory_mb` the process is replaced."""
    with good_goes_on(server):
        for _ in range(40):
            if ask(server, "leak").status_code != 200:
                break
        check_comes_back(server, "memory", "memory_mb (700)")


def test_whoever_waits_behind_a_crash_is_refused_not_lost(server: Server) -> None:
    """One batch at a time is in the process: the others get a 503 that says to ask again, or are answered after all."""
    before = restarts(server, "crashed")
    with ThreadPoolExecutor(6) as pool:
        crash = pool.submit(ask, server, "crash")
        server.until(lambda: restarts(server, "crashed") > before, "crashed")
        others = [pool.submit(ask, server, "fine") for _ in range(5)]
    assert crash.result().status_code == 500
    assert {other.result().status_code for other in others} <= {200, 503}
    server.until(lambda: ask(server, "fine").status_code == 200, "back")


def test_a_version_that_only_crashes_is_given_up_on_and_tried_again(
    headway: Callable[..., Server], registered: MlflowServer, tmp_path: Path
) -> None:
    """FAILED with the reason, and readiness says so; it is loaded again after a pause that grows."""
    file = configuration(tmp_path, "good", "fiend")
    server = headway("--config", file, MLFLOW_TRACKING_URI=registered.uri)
    server.until_ready()
    failed: list[dict[str, Any]] = []

    def given_up() -> bool:
        ask(server, "crash")
        failed.append(server.status("fiend"))
        return failed[-1]["state"] == "FAILED"

    for _ in range(2):
        with good_goes_on(server):
            server.until(given_up, "given up")
            assert "ended 5 times in a row" in failed[-1]["error"]
            assert server.get("/ready").status_code == 503
            answer = ask(server, "fine")
            assert (answer.status_code, list(answer.json())) == (503, ["error"])
            server.until_ready()
    assert ask(server, "fine").status_code == 200
    lines = [
        x for x in server.lines() if x["message"] == "state changed" and x["from"] == "READY" and x["to"] == "FAILED"
    ]
    assert [(x["model"], x["retry_in_seconds"]) for x in lines] == [("fiend", 1), ("fiend", 2)]


def test_a_version_that_hangs_in_loading_fails_alone(server: Server) -> None:
    """FAILED with the reason, and its process has gone; the others have been READY all the while."""
    server.until(lambda: server.status("stuck")["state"] == "FAILED", "failed", 2 * LOAD_SECONDS)
    assert f"loading took longer than {LOAD_SECONDS} seconds" in server.status("stuck")["error"]
    assert server.get("/ready").status_code == 200


def test_swapped_versions_keep_their_own_helper(server: Server, registered: MlflowServer) -> None:
    """Forth and back under load, each version answers with its own module, and no request is lost."""
    url = f"{server.base}/v1/models/helped:predict"

    def own(body: dict[str, Any]) -> bool:
        return body["predictions"] == [int(body["model_version"])]

    with Load(url, ONE, rate=60, right=own) as load, good_goes_on(server):
        for version in ("2", "1", "2", "1"):
            registered.set_alias("helped", "champion", version)
            server.until_serves(version, "helped")
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1", "2"}


def test_a_hang_in_the_server_is_reported(server: Server) -> None:
    """It cannot be stopped: its caller gets a 504, the log and the metrics tell the operator."""
    answer = requests.post(f"{server.base}/v1/models/slow:predict", json={"instances": [[1500]]}, timeout=10)
    assert answer.status_code == 504
    server.until(lambda: server.metric("headway_predictions_overdue_total", model_name="slow") == 1, "reported")
    (line,) = [x for x in server.lines() if x["message"] == "a prediction hangs"]
    assert (line["model"], line["seconds"] >= 0.5) == ("slow", True)  # later, where it held the loop


def test_what_a_version_prints_is_a_log_line(server: Server) -> None:
    """With the version beside it; a flood is cut."""
    assert ask(server, *["print"] * 200).status_code == 200

    def printed() -> list[dict[str, Any]]:
        return [x for x in server.lines() if x.get("line") == "told to print"]

    server.until(printed, "printed")
    assert {(x["model"], x["version"]) for x in printed()} == {("fiend", "1")}
    assert len(printed()) <= 50


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("what", ["fine", "hang"])
def test_no_process_outlives_the_server(
    headway: Callable[..., Server], registered: MlflowServer, tmp_path: Path, signum: signal.Signals, what: str
) -> None:
    """However the server ends, and whatever its versions are doing."""
    file = configuration(tmp_path, "fiend")
    environ = {"HEADWAY_SERVER__DRAIN_SECONDS": "0.5"}
    server = headway("--config", file, MLFLOW_TRACKING_URI=registered.uri, **environ)
    server.until_ready()
    pids = children(server.process.pid)
    assert len(pids) == 1
    with ThreadPoolExecutor(1) as pool:
        pool.submit(ask, server, what)
        server.until(lambda: server.metric("model_predictions_total", model_name="fiend"), "asked")
        os.kill(server.process.pid, signum)
        code = server.process.wait(30)
    assert code == (0 if signum is signal.SIGTERM else -signal.SIGKILL)
    server.until(lambda: not any(map(alive, pids)), "gone", 10)
