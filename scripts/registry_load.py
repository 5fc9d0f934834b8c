"""How many questions of ours one MLflow server answers in a second, by the kind of reference.

python -m scripts.registry_load
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from registry.mlflow_registry import MlflowRegistry
from registry.policies import parse_reference
from tests.models import columns, linear, register, skops
from tests.servers import start_mlflow

CLIENTS, SECONDS = 4, 10.0
KINDS = {
    "alias": "models:/sums@champion",
    "number": "models:/sums/1",
    "stage": "models:/sums/Production",
    "tag": "models:/sums?tag.gate=passed",
}


def main() -> None:
    """Prints questions per second for each kind: four processes that ask one MLflow server (one worker, SQLite)."""
    with tempfile.TemporaryDirectory() as folder, start_mlflow(Path(folder)) as server:
        register(server.uri, "sums", skops(linear(1.0, 1.0)), columns(("a", "double"), ("b", "double")))
        server.set_alias("sums", "champion", "1")
        server.set_stage("sums", "1", "Production")
        server.set_tag("sums", "1", "gate", "passed")
        for kind, uri in KINDS.items():
            print(f"{kind:6} {_rate(server.uri, uri):.0f} questions per second", flush=True)


def _rate(server: str, uri: str) -> float:
    """All clients begin when the last one is ready, and each counts for the same seconds."""
    command = [sys.executable, "-m", "scripts.registry_load", server, uri]
    clients = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(CLIENTS)
    ]
    for client in clients:
        assert client.stdout is not None
        client.stdout.readline()
    for client in clients:
        assert client.stdin is not None
        client.stdin.write("go\n")
        client.stdin.flush()
    return sum(int(client.communicate()[0]) for client in clients) / SECONDS


def ask(server: str, uri: str) -> None:
    """One client: says that it is ready, waits for a line, and prints how many answers it got."""
    registry, policy = MlflowRegistry(server), parse_reference(uri)
    registry.catalogue(policy)
    print("ready", flush=True)
    sys.stdin.readline()
    answered, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        registry.catalogue(policy)
        answered += 1
    print(answered)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        ask(*sys.argv[1:])
    else:
        main()
