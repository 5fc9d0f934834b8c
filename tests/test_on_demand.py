"""Models that are loaded when they are asked for, under a memory budget, and by request."""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import requests
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.models import columns, heavy, linear, register, skops
from tests.servers import MlflowServer, Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
A = columns(("a", "double"))
BODY = {"instances": [[1.0]]}


@pytest.fixture(scope="module")
def heavies(shared: MlflowServer) -> MlflowServer:
    """`heavy-0` … `heavy-5`, 20 MB each, answering their number; `giant`, 80 MB; `small`, which needs nothing."""
    for i in range(6):
        register(shared.uri, f"heavy-{i}", heavy(float(i), 20), A)
    register(shared.uri, "giant", heavy(9.0, 80), A)
    register(shared.uri, "small", skops(linear(7.0)), A)
    return shared


@pytest.fixture
def start(headway: Callable[..., Server], heavies: MlflowServer, tmp_path: Path) -> Callable[..., Server]:
    def start(**server: Any) -> Server:
        demanded = [{"name": f"heavy-{i}", "uri": f"models:/heavy-{i}/1", "on_demand": True} for i in range(6)]
        entries = [{"name": "small", "uri": "models:/small/1"}, *demanded,
                   {"name": "giant", "uri": "models:/giant/1", "on_demand": True},
                   {"name": "gone", "uri": "models:/gone@champion", "on_demand": True}]  # fmt: skip
        file = tmp_path / "headway.yaml"
        file.write_text(json.dumps({
            "server": server, "models": entries, "security": {"repository_api": True}, "defaults": {"timeout_ms": 0},
        }))  # fmt: skip
        started = headway("--config", str(file), MLFLOW_TRACKING_URI=heavies.uri)
        started.until_ready()
        return started

    return start


def ask(server: Server, name: str) -> requests.Response:
    return requests.post(f"{server.base}/v1/models/{name}:predict", json=BODY, timeout=60)


def loaded(server: Server) -> dict[str, str]:
    """What the index says is READY: number by name."""
    rows = requests.post(f"{server.base}/v2/repository/index", json={"ready": True}, timeout=10).json()
    return {row["name"]: row["version"] for row in rows}


def test_a_model_costs_nothing_until_it_is_asked_for(start: Callable[..., Server]) -> None:
    """Readiness does not wait for it; it is not polled; the first request loads it, and the next finds it."""
    server = start()
    assert loaded(server) == {"small": "1"}
    status = server.get("/v1/models/heavy-1")
    assert (status.status_code, status.json()["problem"]) == (503, "it is loaded when it is asked for")
    assert not server.metric("headway_registry_polls_total", model_name="heavy-1", outcome="ok")
    answer = ask(server, "heavy-1")
    assert (answer.status_code, answer.json()["predictions"]) == (200, [1.0])
    assert loaded(server) == {"small": "1", "heavy-1": "1"}
    assert server.status("heavy-1")["problem"] is None
    states = [line for line in server.lines() if line["message"] == "state changed" and line["model"] == "heavy-1"]
    assert [line["to"] for line in states] == ["LOADING", "WARMING", "READY"]


def test_a_crowd_at_a_sleeping_model_loads_it_once(start: Callable[..., Server]) -> None:
    """Everybody waits, and everybody is answered."""
    server = start()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: ask(server, "heavy-2").json()["predictions"], range(32)))
    assert answers == [[2.0]] * 32
    assert [line.get("to") for line in server.lines() if line.get("model") == "heavy-2"].count("LOADING") == 1


def test_who_asks_for_what_cannot_be_loaded_is_told_why(start: Callable[..., Server]) -> None:
    """A model that the registry has not: 503 with the reason; too little patience: 504 or 503 with Retry-After."""
    server = start(on_demand_seconds=0.05)
    hasty = ask(server, "heavy-3")
    assert (hasty.status_code, hasty.headers["retry-after"], "being loaded" in hasty.text) == (503, "1", True)
    server.until(lambda: loaded(server).get("heavy-3") == "1", "loaded in the background")
    assert ask(server, "heavy-3").status_code == 200
    server.until(lambda: "does not exist" in ask(server, "gone").text, "told")
    own = requests.post(
        f"{server.base}/v1/models/heavy-4:predict", json=BODY, headers={"x-request-timeout-ms": "20"}, timeout=30
    )
    assert own.status_code == 504


def test_load_and_unload_by_request(start: Callable[..., Server]) -> None:
    """V2's repository calls, over REST and gRPC, for models on demand; others stay, and unknown ones are a 404."""
    server = start()
    call = partial(requests.post, timeout=60)
    base = f"{server.base}/v2/repository/models"
    assert call(f"{base}/heavy-0/load").json() == {"name": "heavy-0", "load": True}
    assert loaded(server)["heavy-0"] == "1"
    for _ in range(2):
        assert call(f"{base}/heavy-0/unload").json() == {"name": "heavy-0", "unload": True}
        assert "heavy-0" not in loaded(server)
    assert server.metric("headway_servables_alive", model_name="heavy-0") == 0
    stays = call(f"{base}/small/unload")
    assert (stays.status_code, "not loaded on demand" in stays.json()["error"]) == (400, True)
    assert call(f"{base}/nobody/load").status_code == 404
    with grpc.insecure_channel(server.grpc) as channel:
        stub = GRPCInferenceServiceStub(channel)
        assert stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="heavy-5")).isLoaded
        assert loaded(server)["heavy-5"] == "1"
        assert stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="heavy-5")).isUnloaded
        assert "heavy-5" not in loaded(server)
    assert ask(server, "heavy-5").json()["predictions"] == [5.0]


def test_a_budget_keeps_the_models_that_are_used(start: Callable[..., Server]) -> None:
    """Room for two of them: the least recently used leaves, the required one never does."""
    server = start(memory_bytes=50 * 2**20)
    for name in ("heavy-0", "heavy-1", "heavy-0", "heavy-2"):
        assert ask(server, name).status_code == 200
    assert loaded(server) == {"small": "1", "heavy-0": "1", "heavy-2": "1"}
    assert [line["model"] for line in server.lines() if line["message"] == "makes room"] == ["heavy-1"]


def test_what_can_never_fit_is_refused_and_pushes_nobody_out(start: Callable[..., Server]) -> None:
    """503 with Retry-After that names the setting, however often it is asked for; who is there stays there."""
    server = start(memory_bytes=45 * 2**20)
    assert ask(server, "heavy-0").status_code == 200
    for _ in range(2):
        refused = ask(server, "giant")
        assert (refused.status_code, "server.memory_bytes" in refused.json()["error"]) == (503, True)
        assert int(refused.headers["retry-after"]) > 0
        assert loaded(server) == {"small": "1", "heavy-0": "1"}
    assert ask(server, "heavy-0").status_code == 200


def test_random_traffic_under_a_budget(start: Callable[..., Server]) -> None:
    """Eight clients, six models, room for three: 200 with the right number or the documented 503; and while they load,
    leave and answer, the index never shows more than fits, or anything half."""
    server = start(memory_bytes=70 * 2**20)
    seen: Counter[int] = Counter()
    end = time.monotonic() + 15
    wrong: list[str] = []

    def client(seed: int) -> None:
        dice = random.Random(seed)
        while time.monotonic() < end:
            i = dice.randrange(6)
            if dice.random() < 0.05:
                requests.post(f"{server.base}/v2/repository/models/heavy-{i}/unload", timeout=60)
            answer = ask(server, f"heavy-{i}")
            seen[answer.status_code] += 1
            if answer.status_code == 200 and answer.json()["predictions"] != [float(i)]:
                wrong.append(answer.text)
            if answer.status_code == 503 and "retry-after" not in answer.headers:
                wrong.append(answer.text)

    def watch() -> None:
        while time.monotonic() < end:
            now = loaded(server)
            if len(now) > 4 or set(now.values()) != {"1"}:
                wrong.append(str(now))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)] + [threading.Thread(target=watch)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert set(seen) <= {200, 503}
    assert seen[200] > 50
    assert not [line for line in server.lines() if line["message"] == "reconciling stumbled"]
