"""Which reader a store gets, and that our own reader of Redis is trusted only where Feast's code agrees."""

import asyncio
from pathlib import Path

import pytest

from features.blocks import Block, from_bytes
from features.errors import FeaturesUnavailable
from features.lookup import Need
from features.readers import Ask, Threaded
from features.redis_reader import RedisReader, affordable, agrees
from features.service import Key, View
from features.store import FeastSource, open_feast
from tests.stores import STAMP, RedisServer, write_yaml

HEAT = {"heat": ("double", True)}


@pytest.mark.parametrize(("kind", "reader"), [("sqlite", Threaded), ("redis", RedisReader), ("remote", Threaded)])
async def test_redis_is_read_on_the_loop_and_the_rest_in_threads(
    request: pytest.FixtureRequest, kind: str, reader: type
) -> None:
    """Chosen when the version is loaded."""
    source = FeastSource(request.getfixturevalue(f"{kind}_repository"), timeout_seconds=20)
    lookup = source.lookup("machines_only", HEAT)
    assert type(lookup.store.reader) is reader
    await source.close()


async def test_a_cluster_is_read_through_feast_and_fails_fast(
    redis_repository: Path, redis_server: RedisServer, tmp_path: Path
) -> None:
    """It has no cluster's answers to give, and the lookup says so within its time instead of retrying for seconds."""
    (tmp_path / "registry.db").write_bytes((redis_repository / "registry.db").read_bytes())
    write_yaml(
        tmp_path, f'{{type: redis, redis_type: redis_cluster, connection_string: "127.0.0.1:{redis_server.port}"}}'
    )
    source = FeastSource(tmp_path, timeout_seconds=20)
    lookup = source.lookup("machines_only", HEAT)
    assert type(lookup.store.reader) is Threaded
    with pytest.raises(FeaturesUnavailable):
        await lookup(Need(("heat",), 1, {"machine": [1]}, seconds=20))
    await source.close()


def test_another_layout_is_noticed(redis_repository: Path) -> None:
    """Feast sorts join keys; a view whose keys are not sorted would ask for keys that nobody wrote."""
    feast = open_feast(redis_repository)
    table = feast.get_feature_view("machines")
    keys = (Key("a", "a", "INT64"), Key("b", "b", "STRING"))
    sorted_view = View("machines", keys, ("heat",), (), {"heat": "DOUBLE"}, None, table)
    unsorted = View("machines", keys[::-1], ("heat",), (), {"heat": "DOUBLE"}, None, table)
    assert agrees(feast, [sorted_view], 5)
    assert not agrees(feast, [unsorted], 5)


def test_a_store_that_is_down_is_no_disagreement(redis_repository: Path, tmp_path: Path) -> None:
    """Keys and fields can be compared without it."""
    (tmp_path / "registry.db").write_bytes((redis_repository / "registry.db").read_bytes())
    write_yaml(tmp_path, '{type: redis, connection_string: "127.0.0.1:1"}')
    source = FeastSource(tmp_path, timeout_seconds=5)
    assert type(source.lookup("machines_only", HEAT).store.reader) is RedisReader


async def test_a_connection_that_died_while_idle_is_replaced(redis_repository: Path, redis_server: RedisServer) -> None:
    """The server hangs up between two lookups; the second does not notice."""
    source = FeastSource(redis_repository, timeout_seconds=20)
    lookup = source.lookup("machines_only", HEAT)
    need = Need(("heat",), 1, {"machine": [20]}, seconds=20)
    before = (await lookup(need)).columns["heat"].tolist()
    redis_server.client.client_kill_filter(_type="normal", skipme=True)
    assert (await lookup(need)).columns["heat"].tolist() == before
    await source.close()


def test_values_of_any_kind_are_read_from_their_bytes() -> None:
    """Doubles and floats at once; mixed ones, nulls and absent ones one by one; no time is no entity."""
    from feast.protos.feast.types.Value_pb2 import Value
    from google.protobuf.timestamp_pb2 import Timestamp

    view = View("v", (), ("a", "b"), ("c",), {}, None)
    stamp = Timestamp(seconds=int(STAMP.timestamp()), nanos=500_000_000).SerializeToString()
    word = Value(string_val="x").SerializeToString()

    def read(a: Value, b: Value) -> Block:
        return from_bytes(view, [[a.SerializeToString(), b.SerializeToString(), word, stamp]] * 2)

    for block in (
        read(Value(double_val=1.5), Value(double_val=2.5)),
        read(Value(float_val=1.5), Value(float_val=2.5)),
        read(Value(double_val=1.5), Value(float_val=2.5)),
    ):
        assert block.floats.tolist() == [[1.5, 2.5]] * 2
        assert block.seconds.tolist() == [STAMP.timestamp() + 0.5] * 2
        assert block.others[0].tolist() == ["x", "x"]
        assert block.examined().whole
    gaps = from_bytes(view, [[None, b"", None, None]])
    assert str(gaps.floats.tolist()) == "[[nan, nan]]"
    assert str(gaps.seconds.tolist()) == "[nan]"
    assert gaps.others[0].tolist() == [None]
    assert not gaps.examined().whole


async def test_reads_that_hang_take_no_more_threads_than_there_are() -> None:
    """The next read waits for a thread, and whoever gives up waiting harms nobody."""
    release, calls = asyncio.Event(), []
    loop = asyncio.get_running_loop()

    def hang(asks: list[Ask]) -> list[Block]:
        calls.append(1)
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
        return []

    reader = Threaded(hang, threads=2)  # type: ignore[arg-type]
    stuck = [asyncio.create_task(reader.read([])) for _ in range(2)]
    while len(calls) < 2:
        await asyncio.sleep(0)
    for task in stuck:
        task.cancel()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await reader.read([])
    assert len(calls) == 2
    release.set()
    assert await reader.read([]) == []
    reader.close()


@pytest.mark.audit("16")
@pytest.mark.parametrize(
    ("costs", "entities"),
    [
        ([0.000001] * 6, 128),
        ([0.00001] * 6, 100),
        ([0.0001] * 6, 16),
        ([0.5, 0.5, 0.000001, 0.5, 0.5, 0.5], 128),  # one honest measurement is enough
    ],
)
def test_a_slow_moment_does_not_shrink_the_reads(costs: list[float], entities: int) -> None:
    """What a chunk may have is sized by the best of some measurements; `costs` are seconds per entity."""
    times = iter(costs)
    assert affordable(lambda rows: rows * next(times)) == entities
