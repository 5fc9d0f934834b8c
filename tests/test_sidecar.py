"""Behind the batcher of KServe's agent sidecar: what it does to requests, and that our answers survive it."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from sklearn.linear_model import LogisticRegression

from tests.models import columns
from tests.servers import ROOT, Server, free_port, wait_for
from tests.test_folder import save

pytestmark = pytest.mark.e2e
LONG = 60_000  # milliseconds: such a window ends by its size alone


@contextlib.contextmanager
def sidecar(target: str, log: Path, size: int = 32, latency: int = LONG) -> Iterator[str]:
    """A sidecar in front of `target`, as a process; yields its base URL."""
    port = free_port()
    command = [sys.executable, "-m", "tests.sidecar", "--target", target, "--port", str(port),
               "--max-batchsize", str(size), "--max-latency", str(latency)]  # fmt: skip
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(f"http://127.0.0.1:{port}/health/live", process, log)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@dataclass
class Upstream:
    """A model server that answers each row with itself, notes what it was asked, and how much of it at a time."""

    target: str
    asked: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    status: int = 200
    answer: Callable[[list[Any]], bytes] = lambda rows: json.dumps({"predictions": rows, "model_version": "3"}).encode()
    busy: int = 0
    busiest: int = 0


@pytest.fixture
def upstream() -> Iterator[Upstream]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply(200, b"{}")

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            made.asked.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
            made.busy += 1
            made.busiest = max(made.busiest, made.busy)
            time.sleep(0.02)  # what the model takes
            made.busy -= 1
            self.reply(made.status, made.answer(json.loads(body)["instances"]))

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made = Upstream(f"127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


def predict(base: str, rows: list[Any], name: str = "m", **headers: str) -> requests.Response:
    return requests.post(f"{base}/v1/models/{name}:predict", json={"instances": rows}, headers=headers, timeout=30)


def together(*calls: Callable[[], requests.Response]) -> list[requests.Response]:
    """Each in a thread of its own."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


# -- the stand-in does what the facts say -----------------------------------------------------------------------------


def test_one_batch_for_all_who_wait(upstream: Upstream, tmp_path: Path) -> None:
    """Everybody gets exactly their rows under one id, as text, without what else the model said; nothing of the clients
    but their rows goes upstream, numbers as Go writes them."""
    with sidecar(upstream.target, tmp_path / "log", size=4) as base:
        answers = together(
            lambda: predict(base, [{"b": 2.0, "a": 1}], **{"x-request-id": "one", "authorization": "Bearer t"}),
            lambda: predict(base, [2**53 + 1, 0.5, "<"]),
        )
    bodies = [answer.json() for answer in answers]
    assert [list(body) for body in bodies] == [["message", "batchId", "predictions"]] * 2
    assert [body["predictions"] for body in bodies] == [[{"a": 1, "b": 2}], [2**53, 0.5, "<"]]
    assert len({body["batchId"] for body in bodies}) == 1
    assert {a.headers["content-type"] for a in answers} == {"text/plain; charset=utf-8"}
    ((path, headers, body),) = upstream.asked
    assert path == "/v1/models/m:predict"
    assert headers == {"host": "example.com", "x-forwarded-for": "192.0.2.1", "accept-encoding": "gzip",
                       "content-length": str(len(body))}  # fmt: skip
    assert b'{"a":1,"b":2}' in body


def test_the_size_is_a_trigger_and_no_limit(upstream: Upstream, tmp_path: Path) -> None:
    """And a batch goes to the path of its last request: rows of two models are mixed, and one of them answers for both."""
    with sidecar(upstream.target, tmp_path / "log", size=8) as base:
        answers = together(lambda: predict(base, [1, 1, 1], "one"), lambda: predict(base, [2] * 6, "two"))
    assert [answer.json()["predictions"] for answer in answers] == [[1] * 3, [2] * 6]
    ((path, _, body),) = upstream.asked
    assert path == {1: "/v1/models/one:predict", 2: "/v1/models/two:predict"}[json.loads(body)["instances"][-1]]


def test_one_batch_is_in_flight(upstream: Upstream, tmp_path: Path) -> None:
    """However many would fill one, the model server is given the next when it has answered the last."""
    with sidecar(upstream.target, tmp_path / "log", size=2) as base:
        together(*[lambda: predict(base, [1, 2])] * 8)
    assert (len(upstream.asked), upstream.busiest) == (8, 1)


def test_a_short_batch_goes_when_its_window_ends(upstream: Upstream, tmp_path: Path) -> None:
    """One row and nobody else."""
    with sidecar(upstream.target, tmp_path / "log", latency=1) as base:
        assert predict(base, [7]).json()["predictions"] == [7]


@pytest.mark.parametrize(
    ("body", "says"),
    [(b"{", "can't Unmarshal body"), (b"[]", "can't Unmarshal body"), (b'{"instances": 1}', "can't Unmarshal body"),
     (b"{}", "no instances in the request"), (b'{"instances": []}', "no instances in the request")],
)  # fmt: skip
def test_what_the_sidecar_itself_refuses(body: bytes, says: str, upstream: Upstream, tmp_path: Path) -> None:
    """A 400 with a line of text, and the model server is not asked."""
    with sidecar(upstream.target, tmp_path / "log") as base:
        answer = requests.post(f"{base}/v1/models/m:predict", data=body, timeout=10)
    assert (answer.status_code, answer.text) == (400, f"{says}\n")
    assert (answer.headers["content-type"], upstream.asked) == ("text/plain; charset=utf-8", [])


@pytest.mark.parametrize(
    ("status", "answered", "message", "named"),
    [
        (503, b'{"error": "busy"}', '{"error": "busy"}', False),
        (200, b'{"predictions": [1]}', "size of prediction is not equal to the size of instances", True),
        (200, b"{}", "size of prediction is not equal to the size of instances", True),
    ],
)
def test_every_failure_is_a_200(
    status: int, answered: bytes, message: str, named: bool, upstream: Upstream, tmp_path: Path
) -> None:
    """The message says what happened, `predictions` is null, and everybody in the batch gets it."""
    upstream.status, upstream.answer = status, lambda rows: answered
    with sidecar(upstream.target, tmp_path / "log", size=2) as base:
        found = together(*[lambda: predict(base, [1])] * 2)
    assert {(a.status_code, a.json()["message"], a.json()["predictions"]) for a in found} == {(200, message, None)}
    assert {bool(a.json()["batchId"]) for a in found} == {named}


# -- and Headway behind it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind(serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """One classifier under two names: as it is, and with `per_instance`."""
    home = tmp_path_factory.mktemp("behind")
    x = np.random.default_rng(0).normal(size=(100, 2))
    signature = columns(("a", "double"), ("b", "double"), output="long")
    folder = str(save(home / "model", LogisticRegression().fit(x, x[:, 0] > 0), signature, model_id="m-1"))
    file = home / "headway.yaml"
    models = [{"name": "plain", "uri": folder}, {"name": "each", "uri": folder, "per_instance": True}]
    file.write_text(json.dumps({"models": models}))
    server = serve("--config", str(file), MLFLOW_TRACKING_URI="")
    server.until_ready()
    return server


ROWS: list[list[float]] = [[-2.0, 0.5], [0.1, 3], [1, 1], [-0.2, 7.25]]


@pytest.mark.parametrize("name", ["plain", "each"])
def test_every_client_gets_its_own_rows(name: str, behind: Server, tmp_path: Path) -> None:
    """Lists or objects by name, floats or integers: the same as without the sidecar."""
    direct = predict(behind.base, ROWS, name).json()["predictions"]
    with sidecar(behind.base.removeprefix("http://"), tmp_path / "log", size=4) as base:
        found = together(*[lambda row=row: predict(base, [row], name) for row in ROWS])
        named = [{"b": b, "a": a} for a, b in ROWS]
        again = together(lambda: predict(base, named[:1], name), lambda: predict(base, named[1:], name))
    assert [row for answer in found for row in answer.json()["predictions"]] == direct
    assert [row for answer in again for row in answer.json()["predictions"]] == direct


def test_per_instance_saves_the_probabilities(behind: Server, tmp_path: Path) -> None:
    """Beside the predictions they are lost, with the version that answered; inside them they arrive."""
    direct = predict(behind.base, ROWS, "plain").json()
    with sidecar(behind.base.removeprefix("http://"), tmp_path / "log", size=4) as base:
        plain, each = (predict(base, ROWS, name).json() for name in ("plain", "each"))
    assert set(plain) == {"message", "batchId", "predictions"}
    assert plain["predictions"] == direct["predictions"]
    assert [row["probabilities"] for row in each["predictions"]] == direct["probabilities"]
    assert [row["prediction"] for row in each["predictions"]] == direct["predictions"]


def test_one_bad_row_fails_its_batch_with_our_sentence(behind: Server, tmp_path: Path) -> None:
    """The sidecar makes a 200 of it; a client must look at `message`."""
    with sidecar(behind.base.removeprefix("http://"), tmp_path / "log", size=2) as base:
        good, bad = together(lambda: predict(base, [[1, 2]], "plain"), lambda: predict(base, [["x", 2]], "plain"))
    assert good.json() == bad.json()
    assert (good.status_code, good.json()["predictions"]) == (200, None)
    assert "'a'" in json.loads(good.json()["message"])["error"]


def test_our_metrics_count_batches_and_rows(behind: Server, tmp_path: Path) -> None:
    """Whoever scales by requests sees one for four; `headway_rows_total` has them all."""

    def counts() -> tuple[float, float]:
        names = ("model_predictions_total", "headway_rows_total")
        return tuple(behind.metric(name, model_name="plain") or 0 for name in names)  # type: ignore[return-value]

    before = counts()
    with sidecar(behind.base.removeprefix("http://"), tmp_path / "log", size=4) as base:
        together(*[lambda row=row: predict(base, [row], "plain") for row in ROWS])
    assert tuple(np.subtract(counts(), before)) == (1, 4)


def test_everything_but_predict_passes_untouched(behind: Server, tmp_path: Path) -> None:
    """V2, health, status and metrics, with headers in both directions."""
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": ROWS[0]}
    with sidecar(behind.base.removeprefix("http://"), tmp_path / "log") as base:
        answer = requests.post(f"{base}/v2/models/plain/infer", json={"inputs": [tensor]}, headers={"x-request-id": "me"},
                               timeout=10)  # fmt: skip
        assert [output["name"] for output in answer.json()["outputs"]] == ["predictions", "probabilities"]
        assert (answer.headers["x-request-id"], answer.headers["x-model-version"]) == ("me", "m-1")
        for path in ("/v2/health/ready", "/v1/models/plain", "/v2/models/plain"):
            assert requests.get(base + path, timeout=10).json() == behind.get(path).json()
        assert requests.post(f"{base}/v1/models/plain:explain", json={}, timeout=10).status_code == 501
        assert "model_loaded" in requests.get(f"{base}/metrics", timeout=10).text
