"""`headway transform`: a transformer with Feast in front of a predictor without, each a process of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from tests.models import columns, linear, register, skops
from tests.servers import ROOT, MlflowServer, Server, free_port, wait_for
from tests.stores import ABSENT, NULL, build

pytestmark = pytest.mark.e2e
LOADED = columns(("heat", "double"), ("load", "double"), ("age", "long"))
PREDICT, INFER = "/v1/models/worn:predict", "/v2/models/worn/infer"
PATIENT = {"HEADWAY_DEFAULTS__TIMEOUT_MS": "20000", "HEADWAY_FEATURES__TIMEOUT_MS": "10000"}


@contextlib.contextmanager
def transformer(log: Path, predictor: str, repository: Path, name: str = "worn", **environ: str) -> Iterator[Server]:
    """A running `headway transform`, with the words that KServe's controller passes."""
    port = free_port()
    command = [sys.executable, "-m", "serving.cli", "transform", "--feature-service", "machines_only", "--model_name", name,
               "--predictor_host", predictor, "--http_port", str(port)]  # fmt: skip
    own = {**os.environ, **PATIENT, "HEADWAY_FEATURES__REPO_PATH": str(repository), **environ}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=ROOT, env=own)
    server = Server(process, port, 0, log)
    try:
        wait_for(f"{server.base}/health/live", process, log)
        yield server
    finally:
        server.kill()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("feast"), "{type: sqlite, path: online.db}")


@pytest.fixture(scope="module")
def worn(shared: MlflowServer) -> str:
    """A registered model of two features and one column of its own."""
    version = register(shared.uri, "worn", skops(linear(1.0, 10.0, 0.5)), LOADED)
    shared.set_tag("worn", version, "feast.feature_service", "machines_only")
    return f"models:/worn/{version}"


@pytest.fixture(scope="module")
def complete(shared: MlflowServer, worn: str, repository: Path, serve: Callable[..., Server]) -> Server:
    """A server that looks features up itself."""
    feast = {"HEADWAY_FEATURES__REPO_PATH": str(repository)}
    server = serve("--model-uri", worn, MLFLOW_TRACKING_URI=shared.uri, **PATIENT, **feast)
    server.until_ready(90)
    return server


@pytest.fixture(scope="module")
def plain(shared: MlflowServer, worn: str, serve: Callable[..., Server]) -> Server:
    """A server of the same version that knows no feature store."""
    server = serve("--model-uri", worn, MLFLOW_TRACKING_URI=shared.uri, **PATIENT)
    server.until_ready()
    return server


@pytest.fixture(scope="module")
def front(plain: Server, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The transformer in front of it."""
    log = tmp_path_factory.mktemp("transformer") / "log"
    with transformer(log, plain.base.removeprefix("http://"), repository) as server:
        server.until_ready(90)
        yield server


def tensor(name: str, datatype: str, data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": [len(data), 1], "data": data}


V1 = {
    "keys alone": [{"machine": 20, "age": 3}, {"machine": 7, "age": 4}],
    "some values given": [{"machine": 20, "age": 3}, {"machine": 7, "age": 4, "heat": 1.5}],
    "every value given": [{"machine": 20, "age": 3, "heat": 1.5, "load": 2}],
    "no key": [{"age": 3, "heat": 1.5, "load": 2}],
    "lists": [[1.5, 2, 3]],
    "an unknown entity": [{"machine": ABSENT, "age": 3}],
    "a key of another type": [{"machine": "twenty", "age": 3}],
    "no column of its own": [{"machine": 20}],
    "an unknown column": [{"machine": 20, "age": 3, "colour": 1}],
    "a null where none may be": [{"machine": 20, "age": 3, "heat": None}],
    "lists beside objects": [{"machine": 20, "age": 3}, [1, 2, 3]],
    "nothing": [],
}
V2 = {
    "keys alone": [tensor("machine", "INT64", [20, 7]), tensor("age", "INT64", [3, 4])],
    "a value given": [tensor("machine", "INT64", [20]), tensor("age", "INT64", [3]), tensor("heat", "FP64", [1.5])],
    "one matrix": [{"name": "rows", "datatype": "FP64", "shape": [1, 3], "data": [1.5, 2, 3]}],
    "an unknown entity": [tensor("machine", "INT64", [ABSENT]), tensor("age", "INT64", [3])],
    "rows that do not match": [tensor("machine", "INT64", [20, 7]), tensor("age", "INT64", [3])],
    "no tensor": ["machine"],
}


@pytest.mark.parametrize(("path", "body"), [
    *(pytest.param(PREDICT, {"instances": rows}, id=f"v1 {name}") for name, rows in V1.items()),
    *(pytest.param(INFER, {"inputs": tensors, "id": "7"}, id=f"v2 {name}") for name, tensors in V2.items()),
])  # fmt: skip
def test_it_answers_as_the_server_that_looks_up_itself(
    complete: Server, front: Server, path: str, body: dict[str, Any]
) -> None:
    """Numbers, statuses, errors and the note on what was looked up are the same, in both protocols."""
    expected, answer = complete.post(path, body), front.post(path, body)
    assert (answer.status_code, answer.json()) == (expected.status_code, expected.json())
    for header in ("content-type", "x-model-version", "x-headway-features"):
        assert answer.headers.get(header) == expected.headers.get(header)


def test_a_null_feature_is_the_predictors_to_refuse(complete: Server, front: Server) -> None:
    """The metadata do not say which columns are required, so the text is the predictor's; the status is the same."""
    body = {"instances": [{"machine": NULL, "age": 3}]}
    assert complete.post(PREDICT, body).status_code == 400
    answer = front.post(PREDICT, body)
    assert (answer.status_code, answer.json()) == (400, {"error": "Column 'heat' is required and has a missing value."})


def test_requests_and_questions_reach_the_predictor_as_they_are(plain: Server, front: Server) -> None:
    """Whatever is asked about the model, and versions in the path; another model is not asked for."""
    body = {"instances": [[1.5, 2, 3]]}
    for path in ("/v1/models/worn", "/v2/models/worn", "/v2/models/worn/ready", "/v2/models/worn/versions/99"):
        assert (front.get(path).status_code, front.get(path).json()) == (
            plain.get(path).status_code,
            plain.get(path).json(),
        )
    assert front.post("/v1/models/worn/versions/99:predict", body).status_code == 404
    assert front.post("/v1/models/other:predict", body).json() == {
        "error": "There is no such model here; a transformer stands before one alone."
    }
    size = {"parameters": {"binary_data_size": 8}, "shape": [1]}
    kinds = {"heat": "FP64", "load": "FP64", "age": "INT64"}
    raw = json.dumps({"inputs": [{"name": name, "datatype": kind, **size} for name, kind in kinds.items()]}).encode()
    tensors = np.array([1.5, 2.0]).tobytes() + np.array([3]).tobytes()
    headers = {"inference-header-content-length": str(len(raw)), "content-type": "application/octet-stream"}
    one, other = (requests.post(s.base + INFER, raw + tensors, headers=headers, timeout=10) for s in (plain, front))
    assert (other.status_code, other.json()) == (200, one.json())


def test_what_it_refuses_itself_it_refuses_in_the_same_words(complete: Server, front: Server) -> None:
    """A body that is no JSON, another media type, an unknown route, a deadline that is none."""
    for path, body, headers in (
        (PREDICT, "{", {}),
        (PREDICT, "a,b", {"content-type": "text/csv"}),
        ("/v3", "{}", {}),
        (PREDICT, "{}", {"x-request-timeout-ms": "soon"}),
    ):
        one, other = (requests.post(s.base + path, body, headers=headers, timeout=10) for s in (complete, front))
        assert (other.status_code, other.json()) == (one.status_code, one.json())


def test_lookups_are_counted(front: Server) -> None:
    """Under the model's name and no version: which one answers is the predictor's to count."""
    before = front.metric("headway_feature_lookups_total", model_name="worn", outcome="ok") or 0.0
    front.post(PREDICT, {"instances": [{"machine": 20, "age": 3}]})
    assert (
        front.metric("headway_feature_lookups_total", model_name="worn", model_version="", outcome="ok") == before + 1
    )


@pytest.mark.slow
def test_it_waits_for_its_predictor_and_follows_it(
    shared: MlflowServer, repository: Path, headway: Callable[..., Server], tmp_path: Path
) -> None:
    """Alive and not ready until the model is served; new columns are found; 503 and still ready when it is gone; 0 at the end."""
    one = register(shared.uri, "late", skops(linear(1.0)), columns(("heat", "double")))
    two = register(shared.uri, "late", skops(linear(1.0)), columns(("load", "double")))
    body = {"instances": [{"machine": 20}]}
    flags = ("--model-uri", "models:/late@champion")
    predictor = headway(*flags, MLFLOW_TRACKING_URI=shared.uri, HEADWAY_REGISTRY__POLL_SECONDS="0.2", **PATIENT)
    with transformer(tmp_path / "transformer", predictor.base, repository, "late") as front:
        front.until(lambda: "metadata" in front.log.read_text(), "asked in vain")
        early = front.post("/v1/models/late:predict", body)
        assert (front.get("/ready").status_code, early.status_code, list(early.json())) == (503, 503, ["error"])
        shared.set_alias("late", "champion", one)
        front.until_ready(90)
        assert front.post("/v1/models/late:predict", body).json()["model_version"] == one
        shared.set_alias("late", "champion", two)
        front.until(lambda: front.post("/v1/models/late:predict", body).json().get("model_version") == two, "followed")
        predictor.kill()
        gone = front.post("/v1/models/late:predict", body)
        assert (gone.status_code, gone.json()) == (503, {"error": "The predictor cannot be reached."})
        assert (front.get("/ready").status_code, front.get("/health/live").status_code) == (200, 200)
        assert front.terminate() == 0


class Foreign(ThreadingHTTPServer):
    """A predictor that is not Headway: it has metadata, no tea for V2, and never answers V1."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), ForeignAnswers)
        self.left: list[str | None] = []
        self.sent: list[Any] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.hung_up = threading.Semaphore(0)


class ForeignAnswers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Foreign

    def do_GET(self) -> None:
        inputs = [{"name": name, "datatype": "FP64", "shape": [-1, 1]} for name in ("heat", "other")]
        self._say(200, "application/json", json.dumps({"name": "tea", "inputs": inputs}).encode())

    def do_POST(self) -> None:
        self.server.sent.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
        if self.path.endswith("/infer"):
            self.server.may_answer.wait(60)
            self._say(418, "text/plain", b"short and stout")
            return
        self.server.left.append(self.headers["x-request-timeout-ms"])
        self.connection.recv(1)  # returns when the other side closes
        self.server.hung_up.release()
        self.close_connection = True

    def _say(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def foreign() -> Iterator[Foreign]:
    server = Foreign()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()


def test_a_predictor_that_is_not_headway(foreign: Foreign, repository: Path, tmp_path: Path) -> None:
    """Whatever it answers is the answer; a deadline, or a client that hangs up, ends the exchange with it too."""
    host, body = (
        f"127.0.0.1:{foreign.server_port}",
        {"instances": [{"machine": 20, "other": 1}], "parameters": {"x": 1}},
    )
    with transformer(tmp_path / "log", host, repository, "tea") as front:
        front.until_ready(90)
        answer = front.post("/v2/models/tea/infer", {"inputs": [tensor("machine", "INT64", [20])]})
        assert (answer.status_code, answer.headers["content-type"], answer.text) == (
            418,
            "text/plain",
            "short and stout",
        )
        assert [(t["name"], t["datatype"], t["shape"]) for t in foreign.sent[0]["inputs"]] == [("heat", "FP64", [1, 1])]
        late = front.post("/v1/models/tea:predict", body, **{"x-request-timeout-ms": "500"})
        assert (late.status_code, list(late.json())) == (504, ["error"])
        assert foreign.hung_up.acquire(timeout=15)
        assert 0 < int(foreign.left[0] or 0) <= 500
        ((row,), more) = foreign.sent[1]["instances"], foreign.sent[1]["parameters"]
        assert (row.keys(), more) == ({"heat", "other"}, {"x": 1})
        with pytest.raises(requests.Timeout):
            requests.post(front.base + "/v1/models/tea:predict", json=body, timeout=1)
        assert foreign.hung_up.acquire(timeout=15)
        assert front.metric("model_prediction_errors_total", model_name="tea", error_type="deadline") == 1


@pytest.mark.slow
def test_whoever_is_in_flight_is_answered_before_it_ends(foreign: Foreign, repository: Path, tmp_path: Path) -> None:
    """After a signal it is not ready, hands the predictor's late answer on, closes its port, and ends with 0."""
    host, body = f"127.0.0.1:{foreign.server_port}", {"inputs": [tensor("machine", "INT64", [20])]}
    delay = {"HEADWAY_SERVER__DRAIN_DELAY_SECONDS": "3"}
    with transformer(tmp_path / "log", host, repository, "tea", **delay) as front, ThreadPoolExecutor(1) as pool:
        front.until_ready(90)
        foreign.may_answer.clear()
        asked = pool.submit(requests.post, front.base + "/v2/models/tea/infer", json=body, timeout=60)
        front.until(lambda: foreign.sent, "asked the predictor")
        front.process.send_signal(signal.SIGTERM)
        front.until(lambda: front.get("/ready").status_code == 503, "draining")
        front.until(lambda: refused(front), "closed")
        foreign.may_answer.set()
        assert (asked.result().status_code, asked.result().text) == (418, "short and stout")
        assert front.process.wait(30) == 0


@pytest.mark.slow
def test_a_predictor_that_never_answers_does_not_keep_it(foreign: Foreign, repository: Path, tmp_path: Path) -> None:
    """Past the drain bound the exchange with the predictor is ended, its client told, and the process ends with 0."""
    host, body = f"127.0.0.1:{foreign.server_port}", {"instances": [{"machine": 20, "other": 1}]}
    bound = {"HEADWAY_SERVER__DRAIN_SECONDS": "0.5"}
    with transformer(tmp_path / "log", host, repository, "tea", **bound) as front, ThreadPoolExecutor(1) as pool:
        front.until_ready(90)
        asked = pool.submit(requests.post, front.base + "/v1/models/tea:predict", json=body, timeout=60)
        front.until(lambda: foreign.sent, "asked the predictor")
        assert front.terminate(30) == 0
        assert (asked.result().status_code, asked.result().json()) == (503, {"error": "The server is shutting down."})
        assert foreign.hung_up.acquire(timeout=15)


def refused(server: Server) -> bool:
    """Whether nobody listens on its port any more."""
    with contextlib.suppress(requests.ConnectionError):
        requests.get(server.base + "/health/live", timeout=10)
        return False
    return True
