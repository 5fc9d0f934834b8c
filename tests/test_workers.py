"""Two workers on one port are one server: numbers, readiness, loading, promotion and the drain are of both."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import requests
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from scripts.load import Load
from tests.models import columns, linear, puppet, register, skops
from tests.servers import ROOT, MlflowServer, Server, free_port

pytestmark = pytest.mark.e2e
A = columns(("a", "double"))
MANY = 24
#: A channel of its own per client: channels to one address share a connection else.
OWN = [("grpc.use_local_subchannel_pool", 1)]


@pytest.fixture(scope="module")
def models(shared: MlflowServer) -> MlflowServer:
    """`pair` in two versions, `spare`, and `pair_sleeper`."""
    for weight in (1.0, 2.0):
        register(shared.uri, "pair", skops(linear(weight)), A)
    register(shared.uri, "spare", skops(linear(3.0)), A)
    register(shared.uri, "pair_sleeper", puppet(), columns(("ms", "double")))
    shared.set_alias("pair", "champion", "1")
    return shared


@pytest.fixture(scope="module")
def pair(models: MlflowServer, serve: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The server that the tests share. Whoever kills a worker waits for the next one."""
    sleeper = {"name": "sleeper", "uri": "models:/pair_sleeper/1", "allow_code": True, "isolation": "none",
               "timeout_ms": 0, "batching": {"inline_below_ms": 0, "max_rows": 1}}  # fmt: skip
    said = {
        "models": [
            {"name": "pair", "uri": "models:/pair@champion"},
            {"name": "spare", "uri": "models:/spare/1", "on_demand": True},
            sleeper,
        ],
        "security": {"repository_api": True},
        "registry": {"poll_seconds": 0.3},
    }
    file = tmp_path_factory.mktemp("config") / "headway.yaml"
    file.write_text(json.dumps(said))
    server = serve("--config", str(file), "--workers", "2", MLFLOW_TRACKING_URI=models.uri)
    server.until_ready()
    return server


def workers(server: Server) -> list[psutil.Process]:
    """The processes that the forkserver forked."""
    below = psutil.Process(server.process.pid).children(recursive=True)
    return [process for process in below if process.ppid() != server.process.pid]


def answering(server: Server, port: int) -> dict[int, int]:
    """The client's port of every open connection to that port → the worker that has it."""
    found = {}
    for worker in workers(server):
        with contextlib.suppress(psutil.NoSuchProcess):
            for connection in worker.connections("tcp"):
                if connection.raddr and connection.laddr.port == port:
                    found[connection.raddr.port] = worker.pid
    return found


class Client:
    """One connection, kept alive."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self._connection.connect()
        self.port = self._connection.sock.getsockname()[1]

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes]:
        sent = None if body is None else json.dumps(body)
        self._connection.request(method, path, sent, {"content-type": "application/json"})
        answer = self._connection.getresponse()
        return answer.status, answer.read()

    def predict(self, model: str, value: float) -> tuple[int, Any]:
        status, body = self.ask("POST", f"/v1/models/{model}:predict", {"instances": [[value]]})
        return status, json.loads(body).get("predictions")

    def named(self) -> tuple[str, str]:
        """The id that the server gives a request without one, less its count, and its count."""
        self._connection.request("POST", "/v1/models/pair:predict", '{"instances": [[1.0]]}')
        answer = self._connection.getresponse()
        answer.read()
        identity = answer.headers["x-request-id"]
        return identity[:16], identity[16:]

    def predictions(self) -> float:
        """What this connection's worker says that all of them have answered for `pair`."""
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        said = [line for line in lines if line.startswith('model_predictions_total{model_name="pair"')]
        return sum(float(line.rpartition(" ")[2]) for line in said)

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def clients(pair: Server) -> Iterator[list[Client]]:
    """Connections to both workers; the kernel spreads them."""
    pair.until(lambda: pair.metric("headway_workers") == 2, "both listen")
    made = [Client(pair) for _ in range(MANY)]
    yield made
    for client in made:
        client.close()


def test_both_answer_and_each_has_the_numbers_of_both(pair: Server, clients: list[Client]) -> None:
    """Whichever worker is asked, requests are counted once, wherever they were answered."""
    before = clients[0].predictions()
    assert [client.predict("pair", 2.0)[0] for client in clients] == [200] * MANY
    assert len(set(answering(pair, pair.port).values())) == 2
    assert {client.predictions() - before for client in clients} == {MANY}
    assert pair.metric("headway_worker_restarts_total") == 0


def test_no_two_workers_give_the_same_request_id(clients: list[Client]) -> None:
    """They are forked from one process, and what it drew by lot is theirs too, unless they draw anew."""
    given = [client.named() for client in clients]
    assert len({process for process, _ in given}) == 2
    assert len(set(given)) == MANY


def test_ctrl_c_is_the_supervisors_affair(pair: Server) -> None:
    """A terminal sends it to all; the workers would each drain before readiness had gone in every one of them."""
    found = workers(pair)
    assert len(found) == 2
    for worker in found:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        blocked = int(status.partition("SigBlk:")[2].split()[0], 16)
        assert blocked & 1 << signal.SIGINT - 1


def test_both_answer_over_grpc(pair: Server) -> None:
    """The second port is shared like the first."""
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="a", datatype="FP64", shape=[1], contents={"fp64_contents": [2.0]}
    )
    message = pb.ModelInferRequest(model_name="pair", inputs=[tensor])
    with contextlib.ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(pair.grpc, OWN)) for _ in range(MANY)]
        stubs = [GRPCInferenceServiceStub(channel) for channel in channels]
        answers = [list(stub.ModelInfer(message, timeout=30).outputs[0].contents.fp64_contents) for stub in stubs]
        assert len(set(map(tuple, answers))) == 1
        assert all(stub.ServerReady(pb.ServerReadyRequest(), timeout=30).ready for stub in stubs)
        assert len(set(answering(pair, pair.grpc_port).values())) == 2


def states(client: Client) -> str:
    """The state of the model on demand, as this connection's worker tells it."""
    rows = json.loads(client.ask("POST", "/v2/repository/index")[1])
    return next(row["state"] for row in rows if row["name"] == "spare")


def test_loading_and_unloading_is_of_both(pair: Server, clients: list[Client]) -> None:
    """Through one connection, seen through all; and an error is what it would be with one process."""
    assert clients[0].ask("POST", "/v2/repository/models/spare/load")[0] == 200
    assert {states(client) for client in clients} == {"READY"}
    assert clients[1].ask("POST", "/v2/repository/models/spare/unload")[0] == 200
    assert {states(client) for client in clients} == {"UNAVAILABLE"}
    with grpc.insecure_channel(pair.grpc, OWN) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="spare"), timeout=60).isLoaded
    assert {states(client) for client in clients} == {"READY"}
    for route, status, says in (("pair/unload", 400, "not loaded on demand"), ("none/load", 404, "no model 'none'")):
        answer = clients[2].ask("POST", f"/v2/repository/models/{route}")
        assert (answer[0], says in json.loads(answer[1])["error"]) == (status, True)


def test_a_promotion_reaches_both_and_loses_nothing(models: MlflowServer, pair: Server, clients: list[Client]) -> None:
    """Up and back, under load; in the end every connection gets the version that is aspired."""
    with Load(f"{pair.base}/v1/models/pair:predict", {"instances": [[2.0]]}, rate=100, threads=8) as load:
        for version in ("2", "1"):
            models.set_alias("pair", "champion", version)
            pair.until(lambda v=version: {_version(client) for client in clients} == {v}, f"version {version} in both")
    assert load.tally.lost == {}
    assert set(load.tally.versions) == {"1", "2"}


def _version(client: Client) -> str:
    return str(json.loads(client.ask("GET", "/v1/models/pair")[1])["version"])


def test_a_worker_that_is_killed_harms_nobody_on_the_other(pair: Server, clients: list[Client]) -> None:
    """Who is in flight there is answered; nobody hears 503 while the next one starts; no counter goes down; and what
    was loaded by request is loaded there too."""
    assert clients[0].ask("POST", "/v2/repository/models/spare/load")[0] == 200
    counted = clients[0].predictions()
    by = answering(pair, pair.port)
    victim = by[clients[0].port]
    safe = [client for client in clients if by[client.port] != victim]
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.predict, "sleeper", 1500.0) for client in safe[:2]]
        pair.until(lambda: answered(pair, "sleeper") >= 2, "two in flight")
        os.kill(victim, signal.SIGKILL)
        seen: list[int] = []
        pair.until(lambda: not psutil.pid_exists(victim), "gone")
        pair.until(lambda: back(pair, seen), "back", 90)
        assert [f.result() for f in asked] == [(200, [3000.0])] * 2
    assert set(seen) == {200}
    fresh = [Client(pair) for _ in range(MANY)]
    assert {client.predictions() for client in (*safe, *fresh)} == {counted}
    assert {states(client) for client in fresh} == {"READY"}
    assert len(set(answering(pair, pair.port).values()) - {victim}) == 2
    assert pair.metric("headway_worker_restarts_total", reason="crashed") == 1
    for client in fresh:
        client.close()


@pytest.mark.audit("30d")
def test_a_stopped_worker_fails_no_probe_and_is_replaced_soon(pair: Server) -> None:
    """Each probe has a connection of its own, half of them at the socket of the one that is stopped: the other answers
    them. It took 37 seconds, in which half of the probes timed out."""
    victim, began = workers(pair)[0].pid, time.monotonic()
    hung = pair.metric("headway_worker_restarts_total", reason="hung") or 0.0
    os.kill(victim, signal.SIGSTOP)
    seen: list[int] = []
    pair.until(lambda: _probed(pair, seen) and not psutil.pid_exists(victim), "killed", 60)
    pair.until(lambda: back(pair, seen), "back", 60)
    assert time.monotonic() - began < 25
    assert set(seen) == {200}
    assert pair.metric("headway_worker_restarts_total", reason="hung") == hung + 1


def _probed(server: Server, seen: list[int]) -> bool:
    seen.append(requests.get(f"{server.base}/ready", timeout=3).status_code)
    return True


def answered(server: Server, model: str) -> float:
    return server.metric("model_predictions_total", model_name=model) or 0.0


def back(server: Server, seen: list[int]) -> bool:
    """Whether both listen again; notes what a new connection is told of readiness and of a model."""
    for path in ("/ready", "/v2/models/pair/ready"):
        seen.append(requests.get(server.base + path, timeout=10).status_code)
    text = requests.get(f"{server.base}/metrics", timeout=10).text
    return "\nheadway_workers 2.0\n" in text


def test_the_drain_answers_whoever_is_in_flight_in_both(pair: Server, clients: list[Client]) -> None:
    """Then every process is gone, and the exit code is 0. (The server that the other tests share ends here.)"""
    every = [psutil.Process(pair.process.pid), *psutil.Process(pair.process.pid).children(recursive=True)]
    before = answered(pair, "sleeper")
    by = answering(pair, pair.port)
    chosen = [next(c for c in clients if by[c.port] == pid) for pid in {by[c.port] for c in clients}]
    assert len(chosen) == 2
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(client.predict, "sleeper", 1500.0) for client in chosen]
        pair.until(lambda: answered(pair, "sleeper") == before + 2, "in flight")
        pair.process.send_signal(signal.SIGTERM)
        assert [f.result() for f in asked] == [(200, [3000.0])] * 2
    assert pair.process.wait(40) == 0
    assert psutil.wait_procs(every[1:], 20)[1] == []
    assert [line["exit_code"] for line in pair.lines() if line["message"] == "stopped"] == [0, 0, 0]


def test_without_its_supervisor_no_worker_stays(models: MlflowServer, headway: Callable[..., Server]) -> None:
    """Killed as it is, it can tell nobody: the workers notice, drain, and end."""
    server = headway("--model-uri", "models:/pair@champion", "--workers", "2", MLFLOW_TRACKING_URI=models.uri)
    below = psutil.Process(server.process.pid).children(recursive=True)
    assert len(workers(server)) == 2
    server.process.kill()
    late = psutil.wait_procs(below, 40)[1]
    for process in late:
        process.kill()
    assert late == []


@pytest.mark.slow
def test_fail_fast_ends_both(models: MlflowServer, tmp_path: Path) -> None:
    """A required model that cannot be loaded: the exit code is 1, and the log says why."""
    command = [sys.executable, "-m", "serving.cli", "serve", "--host", "127.0.0.1", "--port", str(free_port()),
               "--grpc-port", str(free_port()), "--workers", "2", "--model-uri", "models:/pair_sleeper/1"]  # fmt: skip
    environ = {"MLFLOW_TRACKING_URI": models.uri, "HEADWAY_SERVER__FAIL_FAST": "true",
               "HEADWAY_REGISTRY__CACHE_DIR": str(tmp_path)}  # fmt: skip
    ended = subprocess.run(command, capture_output=True, cwd=ROOT, env={**os.environ, **environ}, timeout=120)
    assert ended.returncode == 1, ended.stderr
    assert b"set allow_code to load it" in ended.stderr
    assert b"a worker cannot serve; the server ends" in ended.stderr
