"""The experiments, as data: which servers, which model, which load. `python -m scripts.bench --list` shows them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

#: Under which name every server has the model.
NAME = "bench"
#: Bounds of our batcher wherever a row says nothing else.
MAX_ROWS, MAX_QUEUE = 64, 4096
#: The rows that a peer's batch of 32 requests has, where a request has 32.
MANY = 1024
ALL_CLIENTS = (1, 16, 64, 256)
PEERS = ("mlflow", "ray", "mosec", "litserve", "bentoml", "mlserver")
#: The peers that run in our own environment.
OWN = ("kserve", "mlflow", "ray")

Wire = Literal["v1", "v2", "v2-binary", "grpc", "entities", "frame", "tensor", "plain"]
Kind = Literal["closed", "start", "open", "capacity"]
Model = Literal["linear", "wide", "forest", "network"]


@dataclass(frozen=True)
class Server:
    """One way to serve the model. `program` says how it is started; `options` are that program's own."""

    program: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Side:
    """One server under one protocol: a line of a table."""

    name: str
    server: Server
    wire: Wire = "v1"


@dataclass(frozen=True)
class Experiment:
    """One row of the benchmark. The first side is ours; ratios are of the first side to each other one.

    `rows` per request; `cores` of the server; `kind` says what is measured: a closed loop of `clients`, the start of
    each server, an open loop at `rate` requests per second, or the rate that one core carries.
    """

    name: str
    title: str
    sides: tuple[Side, ...]
    model: Model = "linear"
    rows: int = 1
    clients: tuple[int, ...] = ALL_CLIENTS
    cores: int = 1
    kind: Kind = "closed"
    rate: float = 100.0

    @property
    def bounds(self) -> str:
        """`max_rows` and `max_queue` of our side, as the page states them with each row."""
        said = self.sides[0].server.options
        return f"max_rows {said.get('max_rows', MAX_ROWS)}, max_queue {said.get('max_queue', MAX_QUEUE)}"


def ours(name: str = "headway", wire: Wire = "v1", **options: Any) -> Side:
    """Headway with everything of the contract on, and these settings."""
    return Side(name, Server("headway", options), wire)


def kserve(wire: Wire = "v1", **options: Any) -> Side:
    """A minimal model on KServe's SDK with its defaults."""
    return Side("kserve" + "".join(f"-{key}" for key in options), Server("kserve", options), wire)


def bare(name: str, how: str) -> Side:
    """A protocol without routes, checks, limits, metrics and errors around the same calls of the model."""
    return Side(name, Server("bare", {"how": how}))


def direct(name: str, how: str) -> Side:
    """The model called in a loop, in one process, without any server."""
    return Side(name, Server("direct", {"how": how}))


def batched(program: str) -> tuple[Side, ...]:
    """A peer with a window of 5 ms, of 1 ms, and without batching."""
    found = {"5ms": {"max_rows": 32, "wait_ms": 5}, "1ms": {"max_rows": 32, "wait_ms": 1}, "unbatched": {"max_rows": 1}}
    wire: Wire = "v2" if program == "mlserver" else "plain"
    return tuple(Side(f"{program}-{how}", Server(program, options), wire) for how, options in found.items())


#: Each peer in the ways of using it that may be its best.
PEER_SIDES: Mapping[str, tuple[Side, ...]] = {
    "mlflow": (Side("mlflow-frame", Server("mlflow", {"signature": "frame"}), "frame"),
               Side("mlflow-tensor", Server("mlflow", {"signature": "tensor"}), "tensor")),
    "bentoml": (Side("bentoml-batched", Server("bentoml", {"max_rows": 32}), "plain"),
                Side("bentoml-unbatched", Server("bentoml", {"max_rows": 1}), "plain")),
    **{program: batched(program) for program in ("ray", "mosec", "litserve", "mlserver")},
}  # fmt: skip

NATIVE = ours("headway-native", accelerate="off")
MOSEC = PEER_SIDES["mosec"]

EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("kserve-v1", "KServe's SDK, V1, one row", (ours(), NATIVE, kserve(), kserve(proba=True))),
    Experiment(
        "ceiling", "a bare protocol around the same calls of the model",
        (ours(), NATIVE, bare("bare-compiled", "compiled"), bare("bare-library", "library"), bare("bare-nothing", "nothing")),
    ),
    *[Experiment(f"direct-{rows}", f"the model called in-process, {rows} row{'s' * (rows > 1)} a call",
                 (ours(), NATIVE, direct("call-compiled", "compiled"), direct("call-library", "library")),
                 rows=rows, clients=(1,)) for rows in (1, 32)],
    *[Experiment(f"peer-{name}", f"{name}, one row", (ours(), *sides)) for name, sides in PEER_SIDES.items()],
    *[Experiment(f"peer-{name}-32", f"{name}, 32 rows", (ours(max_rows=MANY), *sides), rows=32, clients=(16,))
      for name, sides in PEER_SIDES.items()],
    Experiment("kserve-v1-32", "KServe's SDK, V1, 32 rows", (ours(), NATIVE, kserve()), rows=32),
    Experiment("kserve-v2", "KServe's SDK, V2 JSON, one row", (ours(wire="v2"), kserve("v2")), clients=(1, 16, 64)),
    Experiment("kserve-v2-1000", "KServe's SDK, V2 JSON, 1000 rows of 20 columns",
               (ours(wire="v2", max_rows=1024), kserve("v2")), model="wide", rows=1000, clients=(1,)),
    Experiment("kserve-v2-binary", "KServe's SDK, V2 binary tensors, one row",
               (ours(wire="v2-binary"), kserve("v2-binary")), clients=(1, 16)),
    Experiment("kserve-grpc", "KServe's SDK, gRPC, one row", (ours(wire="grpc"), kserve("grpc")), clients=(1, 16, 64)),
    *[Experiment("protocols" + "-32" * (rows > 1), f"our protocols, {rows} row{'s' * (rows > 1)}",
                 (ours("v1"), ours("v2", "v2"), ours("v2-binary", "v2-binary"), ours("grpc", "grpc")),
                 rows=rows, clients=(1, 16, 64)) for rows in (1, 32)],
    Experiment("forest", "a forest of 100 trees: accelerated, left to its library, and KServe's SDK",
               (ours(), NATIVE, kserve()), model="forest", clients=(1, 16, 64)),
    Experiment("forest-mosec", "a forest of 100 trees beside Mosec", (ours(), *MOSEC), model="forest", clients=(16, 64)),
    Experiment("network", "a PyTorch network beside KServe's SDK", (ours(), kserve()), model="network", clients=(1, 16, 64)),
    Experiment("workers", "two workers on two cores, a forest left to its library",
               (ours("2-workers", accelerate="off", workers=2), ours("1-worker", accelerate="off")),
               model="forest", clients=(64,), cores=2),
    Experiment("features", "columns in the request, or looked up by key (Feast, SQLite)",
               (ours("columns", features=True), ours("looked-up", "entities", features=True)), clients=(1, 16, 64)),
    Experiment("batch-sizes", "the largest batch, left to its library",
               tuple(ours(f"max_rows {n}", accelerate="off", max_rows=n) for n in (64, 1, 8, 32, 128, 256)), clients=(64, 256)),
    Experiment("windows", "the batcher's window, left to its library",
               tuple(ours(f"{ms} ms", accelerate="off", max_wait_ms=ms) for ms in (0, 1, 2, 5)), clients=(1, 16, 64)),
    *[Experiment(f"inline-{model}", f"on the loop or in a thread: {model}, left to its library",
                 (ours("on the loop", accelerate="off", inline_below_ms=1e6),
                  ours("in a thread", accelerate="off", inline_below_ms=0)), model=model, clients=(1, 16, 64))
      for model in ("linear", "forest")],
    Experiment("lanes", "below ASGI or through it", (ours("protocol"), ours("asgi", lane="asgi")), clients=(1, 16, 64)),
    Experiment("outputs", "labels and probabilities, or labels alone, left to the library",
               (ours("auto", accelerate="off"), ours("labels", accelerate="off", output="labels")), clients=(1, 16, 64)),
    Experiment("start", "from start to the first right answer, and memory after 200 requests, without Feast",
               (ours(), kserve()), clients=(1,), kind="start"),
    Experiment("demo", "a steady 100 requests a second, features looked up by key",
               (ours("looked-up", "entities", features=True),), clients=(1,), kind="open"),
    Experiment("capacity", "the rate one core carries before P95 passes 50 ms, features looked up by key",
               (ours("looked-up", "entities", features=True),), clients=(1,), kind="capacity"),
)  # fmt: skip


def chosen(names: list[str], peers: str) -> list[Experiment]:
    """The experiments of these names, or all; without the peers that are not wanted. Raises KeyError for unknown names."""
    known = {e.name: e for e in EXPERIMENTS}
    found = [known[name] for name in names] if names else list(EXPERIMENTS)
    return found if names else [e for e in found if _programs(e) <= allowed(peers)]


def allowed(peers: str) -> set[str]:
    """The programs of `--peers kserve`, `own` or `all`."""
    foreign = {"kserve": {"kserve"}, "own": set(OWN), "all": {*OWN, *PEERS}}[peers]
    return {"headway", "bare", "direct"} | foreign


def _programs(experiment: Experiment) -> set[str]:
    return {side.server.program for side in experiment.sides}


def estimate(experiment: Experiment, rounds: int, seconds: float) -> float:
    """Seconds that an experiment takes, about: what is measured, what starts, and what it takes to begin."""
    sides = len(experiment.sides)
    if experiment.kind == "start":
        return rounds * sides * 6
    if experiment.kind == "capacity":
        return 10 + 1.5 * STEPS * (seconds + 1)
    if experiment.kind == "open":
        return 10 + rounds * (seconds * 3 + 1)
    return sides * 6 + rounds * sides * len(experiment.clients) * (seconds + 0.5)


#: Steps of the bisection over rates.
STEPS = 10
