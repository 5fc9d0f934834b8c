"""The load: closed loops of wrk or of our gRPC client, an open loop, or calls without a server. Each gives one figure."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.bench.environments import Unavailable
from scripts.bench.experiments import Wire
from scripts.bench.figures import Figure
from scripts.bench.processes import Running
from scripts.bench.wires import Message

#: How long a client waits for one answer.
PATIENCE = 60
_LUA = """
local file = io.open("{body}", "rb")
wrk.method, wrk.body = "POST", file:read("*a")
{headers}
function done(summary, latency, requests)
  local e = summary.errors
  local lost = e.connect + e.read + e.write + e.timeout
  print(string.format("figures %d %d %d %d %f %f %f", summary.requests, summary.duration, e.status, lost,
    latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
"""
#: Appended where requests differ: one body a line, each made a request once.
_IN_TURN = """
local requests, at = {}, 0
function init(args)
  for line in io.lines("{bodies}") do requests[#requests + 1] = wrk.format(nil, nil, nil, line) end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
"""


@dataclass(frozen=True)
class Load:
    """Generates load from these cores."""

    home: Path
    cores: Sequence[int]

    def closed(self, server: Running, wire: Wire, message: Message, clients: int, seconds: float) -> Figure:
        """`clients` connections (or calls in flight), each sending as soon as it is answered."""
        with _Meter(server) as meter:
            if wire == "grpc":
                found = self._client("grpc_client", server.grpc_port, message.body, clients, seconds, message.path)
            else:
                found = self._wrk(server, message, clients, seconds)
        return meter.figure(found)

    def open(self, server: Running, message: Message, rate: float, seconds: float) -> Figure:
        """`rate` requests per second, whatever the answers take; latency counts from when a request was due."""
        with _Meter(server) as meter:
            found = self._client("open_client", server.port, raw(message), rate, seconds)
        return meter.figure(found)

    def _client(self, module: str, port: int, body: bytes, amount: float, seconds: float, *more: str) -> dict[str, Any]:
        file = self.home / "body"
        file.write_bytes(body)
        words = [sys.executable, "-m", f"scripts.bench.{module}", str(port), str(file), str(amount), str(seconds)]
        return dict(json.loads(self._run([*words, *more], seconds)))

    def _wrk(self, server: Running, message: Message, clients: int, seconds: float) -> dict[str, Any]:
        (self.home / "body").write_bytes(message.body)
        headers = "\n".join(f'wrk.headers["{k}"] = "{v}"' for k, v in message.headers.items())
        (self.home / "bodies").write_bytes(b"\n".join((message.body, *message.others)))
        lua = _LUA + (_IN_TURN if message.others else "")
        for hole, text in {
            "body": str(self.home / "body"),
            "bodies": str(self.home / "bodies"),
            "headers": headers,
        }.items():
            lua = lua.replace(f"{{{hole}}}", text)
        script = self.home / "post.lua"
        script.write_text(lua)
        words = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:g}s", "--timeout", f"{PATIENCE}s", "-s", str(script)]
        return of_wrk(self._run([*words, f"http://127.0.0.1:{server.port}{message.path}"], seconds))

    def _run(self, words: Sequence[str], seconds: float) -> str:
        pinned = ["taskset", "-c", ",".join(map(str, self.cores)), *words]
        try:
            done = subprocess.run(pinned, capture_output=True, text=True, timeout=seconds + PATIENCE + 10, check=False)
        except subprocess.TimeoutExpired:
            raise Unavailable("the load did not end in time") from None
        if done.returncode:
            raise Unavailable(f"the load failed: {(done.stderr.strip().splitlines() or ['no word'])[-1][:200]}")
        return done.stdout


def of_wrk(said: str) -> dict[str, Any]:
    """What our script made wrk say: good answers, seconds, latencies in milliseconds, and how many were no success."""
    found = re.search(r"^figures (\d+) (\d+) (\d+) (\d+) ([\d.]+) ([\d.]+) ([\d.]+)$", said, re.M)
    if found is None:
        raise Unavailable("wrk gave no figures")
    count, micro, status, lost, *latencies = map(float, found.groups())
    names = ("p50", "p95", "p99")
    shown = {name: value / 1000 for name, value in zip(names, latencies, strict=True)}
    return {"answers": count - status, "seconds": micro / 1e6, "errors": int(status + lost), **shown}


def raw(message: Message) -> bytes:
    """A message as it goes over the wire; those that are sent in turn with it behind a NUL each, which JSON has not."""
    found = []
    for body in (message.body, *message.others):
        headers = {"Host": "127.0.0.1", "Content-Length": str(len(body)), **message.headers}
        head = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
        found.append(f"POST {message.path} HTTP/1.1\r\n{head}\r\n".encode() + body)
    return b"\0".join(found)


class _Meter:
    """The CPU time of a server's tree, and of the load generator, over a block."""

    def __init__(self, server: Running) -> None:
        self._server = server

    def __enter__(self) -> _Meter:
        self._before, self._children = self._server.cpu_seconds(), _children()
        self._began = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._cpu = self._server.cpu_seconds() - self._before
        self._load = (_children() - self._children) / (time.monotonic() - self._began)

    def figure(self, found: dict[str, Any]) -> Figure:
        """What a load generator found, and what it cost."""
        count, seconds = found.pop("answers"), found.pop("seconds")
        cpu = self._cpu / count * 1e6 if count else 0.0
        return Figure(rate=count / seconds, cpu=cpu, seconds=seconds, **{"load": self._load, **found})


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def direct(folder: Path, how: str, rows: int, seconds: float, cores: Sequence[int]) -> Figure:
    """The model called in a loop by a process on these cores."""
    words = ["taskset", "-c", ",".join(map(str, cores)), sys.executable, "-m", "scripts.bench.servers.calls"]
    done = subprocess.run(
        [*words, str(folder), how, str(rows), str(seconds)], capture_output=True, check=True, timeout=PATIENCE + seconds
    )
    return Figure(seconds=seconds, **json.loads(done.stdout))


def cores_of_machine() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))
