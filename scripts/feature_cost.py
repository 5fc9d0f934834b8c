"""What a lookup costs beside Feast's own `get_online_features(...).to_dict()`, on Redis, in one interleaved run.

Starts a redis-server on loopback, fills it through Feast, and takes turns: every round measures both, and a ratio is that
of one round. Run it as `python -m scripts.feature_cost`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import redis
import uvloop
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64

from features.lookup import FeastLookup, Need
from features.readers import Ask
from features.store import FeastSource
from tests.servers import free_port

ENTITIES, FEATURES = 10_000, tuple(f"f{i}" for i in range(10))
LANES = 64
Step = Callable[[], Awaitable[object]]


def repository(home: Path, port: int) -> FeatureStore:
    """A repository of one view, `ENTITIES` entities and ten floats each."""
    (home / "feature_store.yaml").write_text(
        "project: cost\nprovider: local\nregistry: {registry_type: file, path: registry.db, cache_ttl_seconds: 0}\n"
        f'online_store: {{type: redis, connection_string: "127.0.0.1:{port}"}}\n'
        "offline_store: {type: file}\nentity_key_serialization_version: 3\n"
    )
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(ENTITIES, len(FEATURES))), columns=list(FEATURES))
    frame["id"], frame["event_timestamp"] = np.arange(ENTITIES), datetime.now(UTC)
    frame.to_parquet(home / "rows.parquet")
    entity = Entity(name="id", join_keys=["id"], value_type=ValueType.INT64)
    source = FileSource(path="rows.parquet", timestamp_field="event_timestamp")
    view = FeatureView(
        name="rows", entities=[entity], schema=[Field(name=f, dtype=Float64) for f in FEATURES], source=source
    )
    store = FeatureStore(repo_path=str(home))
    store.apply([entity, view, FeatureService(name="rows", features=[view])])
    store.write_to_online_store("rows", frame)
    return store


class Bench:
    """The same questions, put to Feast, to our lookup and to Redis."""

    def __init__(self, feast: FeatureStore, home: Path, port: int) -> None:
        self._feast, self._service = feast, feast.get_feature_service("rows")
        self._source = FeastSource(home, timeout_seconds=5)
        self.lookup: FeastLookup = self._source.lookup("rows", dict.fromkeys(FEATURES, ("double", True)))
        self._redis = redis.Redis(port=port)
        self._ids = itertools.cycle(np.random.default_rng(1).permutation(ENTITIES).tolist())

    def ids(self, n: int) -> list[int]:
        """Entities in random order."""
        return list(itertools.islice(self._ids, n))

    async def feast(self, requests: int, rows: int) -> None:
        """Feast, one request after the other: on one core nothing is quicker."""
        for _ in range(requests):
            self._feast.get_online_features(features=self._service, entity_rows={"id": self.ids(rows)}).to_dict()

    async def ours(self, requests: int, rows: int) -> None:
        """Our lookup, all requests at once."""
        await asyncio.gather(*(self.lookup(Need(FEATURES, rows, {"id": self.ids(rows)}, 5.0)) for _ in range(requests)))

    async def reader(self) -> None:
        """Our reader alone, one entity."""
        view = self.lookup.service.views[0]
        await self.lookup.store.reader.read([Ask(view, [(self.ids(1)[0],)])])

    async def raw(self) -> None:
        """One pipelined HMGET of the same fields with redis-py, and nothing made of the answer."""
        layout = self._layout
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(layout.key((self.ids(1)[0],)), layout.fields)
            pipe.execute()

    @property
    def _layout(self) -> Any:
        return self.lookup.store.reader._layouts[self.lookup.service.views[0]]  # type: ignore[attr-defined]


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a step: on the wall, and of this process's CPU, which other work on the machine disturbs less."""

    wall: float
    cpu: float


async def cost(step: Step, times: int) -> Cost:
    """The medians of a step."""
    found = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        await step()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Cost(*(statistics.median(each) for each in zip(*found, strict=True)))


async def compare(name: str, rows: int, a: tuple[str, Step], b: tuple[str, Step], times: int, rounds: int) -> None:
    """Prints both medians and the ratio of each round: median, and the range of all rounds."""
    pairs = [(await cost(a[1], times), await cost(b[1], times)) for _ in range(rounds)]
    for clock in ("wall", "cpu"):
        found = [(getattr(first, clock), getattr(second, clock)) for first, second in pairs]
        ratios = sorted(first / second for first, second in found)
        first, second = (statistics.median(pair[i] for pair in found) for i in (0, 1))
        print(
            f"{name:<24} {clock:<4}  {a[0]} {first * 1e6:7.0f} µs ({rows / first:7.0f} rows/s)   "
            f"{b[0]} {second * 1e6:7.0f} µs ({rows / second:7.0f} rows/s)   "
            f"ratio {statistics.median(ratios):5.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
            flush=True,
        )


async def measure(bench: Bench, rounds: int) -> None:
    """All comparisons."""
    for step in (lambda: bench.feast(1, 1), lambda: bench.ours(1, 1), bench.reader, bench.raw):
        await cost(step, 50)  # first calls import and connect
    for name, requests, rows, times in (
        (f"{LANES} requests of one row", LANES, 1, 20), ("1 request of 100 rows", 1, 100, 40), ("1 request of one row", 1, 1, 300),
    ):  # fmt: skip

        def feast(requests: int = requests, rows: int = rows) -> Awaitable[object]:
            return bench.feast(requests, rows)

        def ours(requests: int = requests, rows: int = rows) -> Awaitable[object]:
            return bench.ours(requests, rows)

        await compare(name, requests * rows, ("Feast", feast), ("ours", ours), times, rounds)
    await compare("the reader, one row", 1, ("reader", bench.reader), ("raw", bench.raw), 300, rounds)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="how often each pair is measured (9)")
    args = parser.parse_args()
    binary = shutil.which("redis-server")
    if binary is None:
        sys.exit("redis-server is not installed (apt-get install redis-server)")
    port = free_port()
    command = [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    with tempfile.TemporaryDirectory() as home, subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
        try:
            print(f"filling Redis with {ENTITIES} entities …", flush=True)
            feast = repository(Path(home), port)
            uvloop.run(measure(Bench(feast, Path(home), port), args.rounds))
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
