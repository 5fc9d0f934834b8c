"""A taken port is one sentence; a port that workers share is theirs alone."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from serving.ports import PortInUse, check_port, shared_port
from serving.settings import load_settings
from serving.workers.root import share
from tests.servers import ROOT

HOST = "127.0.0.1"


@pytest.fixture(params=[0, 1], ids=["plain", "shared"])
def taken(request: pytest.FixtureRequest) -> Iterator[int]:
    """A port on which somebody listens, who would share it or not."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, request.param)
        listener.bind((HOST, 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_taken_port_is_refused_even_if_it_could_be_shared(taken: int) -> None:
    """Two servers on one port would each answer half of the requests."""
    with pytest.raises(PortInUse, match=f"port {taken} on {HOST} cannot be used: Address already in use"):
        check_port(HOST, taken)


def test_several_workers_refuse_a_taken_port_as_one_does(taken: int) -> None:
    """Before anything else starts, with exit code 1 and one sentence."""
    command = [sys.executable, "-m", "serving.cli", "serve", "--workers", "2", "--host", HOST, "--port", str(taken),
               "--model-uri", "models:/m/1"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == f"headway: port {taken} on {HOST} cannot be used: Address already in use\n"


@pytest.mark.parametrize("host", [HOST, "::1"])
def test_workers_listen_on_one_port_and_connections_are_spread(host: str) -> None:
    """Port 0 is a number that all of them can have; who only holds the port gets no connection."""
    with shared_port(host, 0) as held:
        port = held.getsockname()[1]
        with shared_port(host, port) as one, shared_port(host, port) as two:
            for listener in (one, two):
                listener.listen(128)
                listener.settimeout(0)
            clients = [socket.create_connection((host, port), timeout=10) for _ in range(64)]
            spread = [accepted(one), accepted(two)]
            for client in clients:
                client.close()
    assert sum(spread) == 64
    assert min(spread) > 0


def accepted(listener: socket.socket) -> int:
    """How many connections wait there."""
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


def test_workers_share_what_the_settings_allow() -> None:
    """Memory and the caches' budgets are of all of them; what is not bounded stays so."""
    models = [
        {"name": "a", "uri": "models:/a/1", "response_cache": {"max_bytes": 300}},
        {"name": "b", "uri": "models:/b/1"},
    ]
    said = {"server": {"memory_bytes": 1000}, "defaults": {"response_cache": {"max_bytes": 90}}, "models": models}
    own = share(load_settings(said, {}), 3, 80, 81)
    assert (own.server.port, own.server.grpc_port, own.server.memory_bytes) == (80, 81, 333)
    assert own.defaults.response_cache.max_bytes == 30
    assert [entry.response_cache.max_bytes for entry in own.models] == [100, None]
    bare = load_settings({"models": models[1:]}, {})
    assert share(bare, 3, 8080, 8081) == bare
