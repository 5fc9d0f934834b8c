"""A reader of the layout in which Feast keeps features in Redis: one hash per entity, all views' fields in it.

The key is Feast's serialised entity key and the project; a field is the murmur3 hash of `view:feature`, and `_ts:view`
holds the event time. All commands of a read leave in one write. `agrees` compares keys, fields and values with what
Feast's own code makes of them, before this reader is trusted with a repository.
"""

from __future__ import annotations

import itertools
import logging
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from features.blocks import Block, from_bytes, unwrap
from features.readers import Ask, Entity, block_of, entity_keys
from features.service import View

log = logging.getLogger("headway.features")
SAMPLE, SCANNED = 32, 100_000
#: What a chunk may take of the event loop, in seconds, and its size in entities.
CHUNK_SECONDS, SMALLEST, LARGEST = 0.001, 16, 128
TRIES = 5
_STRING, _INT32, _INT64 = 2, 3, 4  # feast.protos.feast.types.Value_pb2.ValueType


class Layout:
    """How one view is asked for: a constant head and tail, with the entity's key between them."""

    def __init__(self, store: Any, view: View) -> None:
        from feast.infra.online_stores.helpers import _mmh3
        from feast.infra.online_stores.redis import _versioned_fv_name

        name = _versioned_fv_name(view.table, store.config)
        self.fields = [*(_mmh3(f"{name}:{feature}") for feature in view.features), f"_ts:{name}".encode()]
        names = [key.stored.encode() for key in view.keys]
        self._prefix = struct.pack("<I", len(names)) + b"".join(struct.pack("<II", _STRING, len(n)) + n for n in names)
        self._encode = [_ENCODE[key.type] for key in view.keys]
        self._project: bytes = store.config.project.encode()
        self._head = b"*%d\r\n$5\r\nHMGET\r\n" % (2 + len(self.fields))
        self._tail = b"\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(f), f) for f in self.fields)

    def key(self, entity: Entity) -> bytes:
        """The Redis key of an entity."""
        return self._prefix + b"".join(e(v) for e, v in zip(self._encode, entity, strict=True)) + self._project

    def command(self, entity: Entity) -> bytes:
        """`HMGET key field …`, ready to be sent."""
        key = self.key(entity)
        return b"%s$%d\r\n%s%s" % (self._head, len(key), key, self._tail)


def _text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<II", _STRING, len(encoded)) + encoded


_ENCODE: dict[str, Callable[[Any], bytes]] = {
    "STRING": _text,
    "INT32": lambda value: struct.pack("<IIi", _INT32, 4, value),
    "INT64": lambda value: struct.pack("<IIq", _INT64, 8, value),
}


class RedisReader:
    """Reads on the event loop, over connections that redis-py makes (its TLS, its logins)."""

    def __init__(self, store: Any, timeout_seconds: float) -> None:
        self._store = store
        self._client = client(store, timeout_seconds, on_loop=True)
        self._idle: list[Any] = []
        self._layouts: WeakKeyDictionary[View, Layout] = WeakKeyDictionary()  # gone with their version
        self._affordable: WeakKeyDictionary[View, int] = WeakKeyDictionary()
        self.chunk = LARGEST

    def prepare(self, views: Sequence[View]) -> None:
        """Takes the views of one more version, and sizes the chunk by what reading them costs here. Blocks shortly."""
        for view in views:
            self._layouts[view] = Layout(self._store, view)
            self._affordable[view] = affordable(partial(_decoding, view))
        self.chunk = min(self._affordable.values(), default=LARGEST)  # of those that are still there

    async def read(self, asks: Sequence[Ask]) -> list[Block]:
        """A block per ask, from one round trip. Raises what redis-py raises."""
        commands = [self._layouts[ask.view].command(entity) for ask in asks for entity in ask.entities]
        replies = iter(await self._exchange(b"".join(commands), len(commands)))
        return [from_bytes(ask.view, list(itertools.islice(replies, len(ask.entities)))) for ask in asks]

    async def _exchange(self, commands: bytes, count: int) -> list[Any]:
        """Sends the commands and collects their replies. An idle connection may have died meanwhile: once more, afresh."""
        from redis.exceptions import ConnectionError as Lost

        while self._idle:
            try:
                return await self._talk(self._idle.pop(), commands, count)
            except Lost:
                continue
        return await self._talk(self._client.connection_pool.make_connection(), commands, count)

    async def _talk(self, connection: Any, commands: bytes, count: int) -> list[Any]:
        try:
            await connection.send_packed_command(commands, check_health=False)
            replies = [await connection.read_response() for _ in range(count)]
        except BaseException:  # what is left of the replies must not meet another question
            await connection.disconnect(nowait=True)
            raise
        self._idle.append(connection)
        return replies

    async def aclose(self) -> None:
        """Closes the connections."""
        for connection in self._idle:
            await connection.disconnect(nowait=True)
        self._idle.clear()


def client(store: Any, timeout_seconds: float, *, on_loop: bool) -> Any:
    """A redis-py client for the store's connection string; what that does not say fails fast instead of retrying."""
    import redis
    from feast.infra.online_stores.redis import RedisOnlineStore
    from redis.backoff import NoBackoff

    nodes, said = RedisOnlineStore._parse_connection_string(store.config.online_store.connection_string)
    module, retry = (redis.asyncio, redis.asyncio.retry.Retry) if on_loop else (redis, redis.retry.Retry)
    if said.get("retry") is None:
        said["retry"] = retry(NoBackoff(), 0)
    limits = {"socket_connect_timeout": timeout_seconds} | ({} if on_loop else {"socket_timeout": timeout_seconds})
    return module.Redis(**{**limits, **said, "host": nodes[0]["host"], "port": int(nodes[0].get("port", 6379))})


def fail_fast(store: Any, timeout_seconds: float) -> None:
    """The same for Feast's own client, where that reads: by default it would wait for ever, and then try again."""
    from feast.infra.online_stores.redis import RedisOnlineStore

    online = store.config.online_store
    said = RedisOnlineStore._parse_connection_string(online.connection_string)[1]
    limits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds, "retry": "null"}
    online.connection_string += "".join(f",{key}={value}" for key, value in limits.items() if key not in said)


def readable(store: Any) -> bool:
    """Whether the repository's online store is one Redis server in Feast's stock arrangement."""
    config = store.config
    online = config.online_store
    return bool(
        online.type == "redis"
        and online.redis_type == "redis"
        and online.client == "redis"
        and config.entity_key_serialization_version == 3
    )


def agrees(store: Any, views: Sequence[View], timeout_seconds: float) -> bool:
    """Whether this reader and Feast's own code mean the same keys and fields, and read the same values. Blocks.

    The values are those of entities that the store holds; a store that is down or empty is no disagreement.
    """
    from redis.exceptions import RedisError

    with client(store, timeout_seconds, on_loop=False) as redis:
        for view in views:
            layout = Layout(store, view)
            try:
                entities = list(_stored(redis, store, view))
                replies = [redis.hmget(layout.key(entity), layout.fields) for entity in entities]
            except RedisError:
                entities, replies = [], []
            if not _same(store, view, layout, entities or [_blank(view)], replies):
                log.warning(
                    "Feast keeps this view in another layout: it is read through Feast", extra={"view": view.name}
                )
                return False
    return True


def _stored(redis: Any, store: Any, view: View) -> Iterator[Entity]:
    """A few entities of the view's kind that the store holds."""
    from feast.infra.key_encoding_utils import deserialize_entity_key, serialize_entity_key_prefix

    project = store.config.project.encode()
    prefix = serialize_entity_key_prefix([key.stored for key in view.keys])
    pattern = b"".join(b"\\" + bytes([c]) if c in b"*?[]^\\" else bytes([c]) for c in prefix) + b"*" + project
    for raw in _scan(redis, pattern)[:SAMPLE]:
        values = deserialize_entity_key(raw[: -len(project)]).entity_values
        yield tuple(unwrap(value) for value in values)


def _scan(redis: Any, pattern: bytes) -> list[bytes]:
    """Keys that fit a pattern, from no more than the first SCANNED keys: a store may have a hundred million."""
    found: list[bytes] = []
    cursor = 0
    for _ in range(SCANNED // 1000):
        cursor, keys = redis.scan(cursor, match=pattern, count=1000)
        found += keys
        if cursor == 0 or len(found) >= SAMPLE:
            break
    return found


def _same(store: Any, view: View, layout: Layout, entities: Sequence[Entity], replies: Sequence[Any]) -> bool:
    from feast.infra.online_stores.redis import RedisOnlineStore, _versioned_fv_name

    feast, name, protos = RedisOnlineStore(), _versioned_fv_name(view.table, store.config), entity_keys(view, entities)
    names, theirs = feast._generate_hset_keys_for_features(view.table, list(view.features), fv_name_override=name)
    same_fields = [f.encode() if isinstance(f, str) else f for f in theirs] == layout.fields
    same_keys = feast._generate_redis_keys_for_entities(store.config, protos) == [layout.key(e) for e in entities]
    if not (same_fields and same_keys and replies):
        return same_fields and same_keys
    expected = block_of(view, feast._convert_redis_values_to_protobuf(replies, name, names))
    return equal(expected, from_bytes(view, replies))


def equal(a: Block, b: Block) -> bool:
    """Whether two blocks hold the same; times to the microsecond, which is what Feast's own code keeps."""
    return (
        np.allclose(a.seconds, b.seconds, rtol=0, atol=1e-5, equal_nan=True)
        and np.array_equal(a.floats, b.floats, equal_nan=True)
        and all(x.tolist() == y.tolist() for x, y in zip(a.others, b.others, strict=True))
    )


def _blank(view: View) -> Entity:
    return tuple("" if key.type == "STRING" else 0 for key in view.keys)


def _decoding(view: View, rows: int) -> float:
    """The seconds that reading so many replies of a view takes."""
    from feast.protos.feast.types.Value_pb2 import Value

    reply = [Value(double_val=1.5).SerializeToString()] * len(view.floats) + [None] * (len(view.others) + 1)
    replies = [reply] * rows
    began = time.perf_counter()
    from_bytes(view, replies)
    return time.perf_counter() - began


def affordable(cost: Callable[[int], float]) -> int:
    """How many entities can be read within CHUNK_SECONDS; `cost(rows)` measures. What else the machine does only adds."""
    cost(SMALLEST)
    per_row = min(cost(LARGEST) for _ in range(TRIES)) / LARGEST
    return max(SMALLEST, min(LARGEST, int(CHUNK_SECONDS / per_row)))
