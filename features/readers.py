"""Readers: what asks a store for blocks. One that blocks runs in threads, and holds its thread until it has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from features.blocks import Block, from_columns, unwrap
from features.service import View
from features.threads import Threads

_FIELDS = {"INT32": "int32_val", "INT64": "int64_val", "STRING": "string_val"}
#: An entity: its key values in the order of `View.keys`.
Entity = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Ask:
    """Entities of one view, each once."""

    view: View
    entities: Sequence[Entity]


#: What asks a store and blocks until it has answered.
Read = Callable[[Sequence[Ask]], list[Block]]


class Reader(Protocol):
    """Reads from one store. `chunk` is how many entities one read may ask for at most."""

    chunk: int

    async def read(self, asks: Sequence[Ask]) -> list[Block]:
        """A block per ask. Raises whatever the store's client raises."""
        ...


class Threaded:
    """A reader of a blocking function."""

    chunk = 500

    def __init__(self, read: Read, threads: int = 4) -> None:
        self._read, self._threads = read, Threads(threads, "headway-features")

    async def read(self, asks: Sequence[Ask]) -> list[Block]:
        """A block per ask; waits for a free thread first."""
        return await self._threads.run(self._read, asks)

    def close(self) -> None:
        """Lets the threads end; what hangs is left behind."""
        self._threads.close()


def feast_read(store: Any) -> Read:
    """Reads any store that Feast knows, below `get_online_features`: no registry, no response message."""
    provider, config = store._get_provider(), store.config

    def read_one(ask: Ask) -> Block:
        view, keys = ask.view, entity_keys(ask.view, ask.entities)
        rows = provider.online_read(
            config=config, table=view.table, entity_keys=keys, requested_features=list(view.features)
        )
        return block_of(view, rows)

    return lambda asks: [read_one(ask) for ask in asks]


def entity_keys(view: View, entities: Sequence[Entity]) -> list[Any]:
    """The entities as Feast's messages."""
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey
    from feast.protos.feast.types.Value_pb2 import Value

    names = [key.stored for key in view.keys]
    fields = [_FIELDS[key.type] for key in view.keys]
    return [
        EntityKey(join_keys=names, entity_values=[Value(**{f: v}) for f, v in zip(fields, entity, strict=True)])
        for entity in entities
    ]


def block_of(view: View, rows: Sequence[tuple[Any, Any]]) -> Block:
    """Feast's own rows as a block. Redis answers a key that it does not know with the epoch and nulls."""
    seconds = [None if when is None or when.timestamp() == 0 else when.timestamp() for when, _ in rows]
    columns = {
        name: [None if found is None or name not in found else unwrap(found[name]) for _, found in rows]
        for name in view.features
    }
    return from_columns(view, seconds, columns)
