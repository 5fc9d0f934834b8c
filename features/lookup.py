"""The lookup of one version: prepared when it is loaded, then called once per request with what the request left open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import numpy as np

from features.blocks import Block, Matrix
from features.coalescing import Coalescer, Found, Store
from features.errors import FeaturesUnavailable
from features.on_demand import compute
from features.planning import Place, Plan, features_of, make_plan, place
from features.readers import Entity
from features.service import OnDemand, Service, View
from features.settling import Event, Feature, Memory, settle
from features.threads import Threads
from features.values import check_key, to_column

#: How long the function of an on-demand view may take, if the request has no deadline.
ON_DEMAND_SECONDS = 10.0


@dataclass(slots=True)  # not frozen, like Completed and Block: one is made per request, and frozen ones take longer
class Need:
    """What a request left open: the columns `names` for `rows` rows, by `keys` (join keys and inputs, one value per row).

    `wanted` marks the rows `[n]` that want a column, where not all do; `given` holds what the request brought itself.
    The answer is due within `seconds`.
    """

    names: tuple[str, ...]
    rows: int
    keys: Mapping[str, Sequence[Any]]
    seconds: float
    wanted: Mapping[str, np.ndarray] = field(default_factory=dict)
    given: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(slots=True)
class Completed:
    """Columns `[n]` by name, and what policies had to do for them."""

    columns: Mapping[str, np.ndarray]
    events: Sequence[Event] = ()


class FeastLookup:
    """Completes rows from one feature service. Belongs to the event loop."""

    def __init__(
        self,
        store: Store,
        service: Service,
        columns: Mapping[str, tuple[str, bool]],
        layers: Sequence[Mapping[str, Any]],
        threads: Threads,
    ) -> None:
        """`columns` are the signature's: MLflow type, and whether it is required. Raises InvalidFeatures."""
        self.store, self.service, self._threads = store, service, threads
        self._types = {name: type for name, (type, _) in columns.items()}
        self._coalescer = Coalescer(store)
        self._memory = Memory()
        self._features = features_of(service, columns, layers)
        self._plan = lru_cache(maxsize=64)(partial(make_plan, service, self._features))
        self.keys, self.columns = service.asked, service.columns
        self.sources = frozenset(name for made, _ in service.computed.values() for _, name in made.sources)

    async def __call__(self, need: Need) -> Completed:
        """The columns that a request left open.

        Raises InvalidEntity for a key or input that is missing or of the wrong type, UnknownEntity, NullFeature,
        StaleFeature or FeaturesUnavailable where the policy is `error`, FeatureFailed if an on-demand view does.
        """
        plan = self._plan(need.names)
        entities = {view: self._entities(view, plan, need) for view in plan.views}
        found = await self._read(entities, need)
        if plan.clean and not need.wanted and found is not None and all(block.whole for block in found.values()):
            return Completed(self._plain_columns(plan, found))
        return await self._settled(plan, need, entities, found)

    async def _read(self, entities: Mapping[View, Sequence[Entity]], need: Need) -> Found | None:
        """What the store holds, or None if it is out of reach."""
        if need.wanted:
            entities = {view: rows for view, rows in entities.items() if rows}
        if not entities:
            return {}
        try:
            return await self._coalescer.read(entities, need.rows, min(need.seconds, self.store.timeout_seconds))
        except FeaturesUnavailable:
            return None

    async def _settled(
        self,
        plan: Plan,
        need: Need,
        entities: Mapping[View, Sequence[Entity]],
        found: Found | None,
    ) -> Completed:
        """Policies applied feature by feature, and on-demand views computed from what they leave."""
        events: list[Event] = []
        columns: dict[str, np.ndarray] = {}
        wanted = {view: _rows(need, self._wanting(view, plan)) for view in plan.views}
        spread = {view: _spread(entities[view], mask) for view, mask in wanted.items()}
        blocks = None if found is None else {view: _widen(view, found.get(view), mask) for view, mask in wanted.items()}

        def settled(feature: Feature, view: View, at: Place, rows: np.ndarray) -> np.ndarray:
            block = None if blocks is None else blocks[view]
            values = _blank(at, need.rows) if block is None else _values(block, at)
            values, done = settle(feature, values, block, rows, spread[view], self._memory)
            events.extend(done)
            return values

        for column, view, at in plan.stored:
            values = settled(self._features[column], view, at, _rows(need, [column]))
            columns[column] = self._column(column, values)
        for on_demand, outputs in plan.computed:
            rows = _rows(need, [column for column, _ in outputs])
            sources = {
                name: settled(self._features[f"{view.name}__{name}"], view, place(view, name), rows)
                for view, name in on_demand.sources
            }
            for column, values in (await self._compute(on_demand, outputs, sources, need, rows)).items():
                now = Block(np.full(need.rows, time.time()), np.empty((need.rows, 0)), ())
                values, done = settle(self._features[column], values, now, rows, (), self._memory)
                events.extend(done)
                columns[column] = self._column(column, values)
        return Completed(columns, events)

    async def _compute(
        self,
        on_demand: OnDemand,
        outputs: Sequence[tuple[str, str]],
        sources: Mapping[str, np.ndarray],
        need: Need,
        rows: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """The outputs by column, object arrays `[n]`, for the rows that want them."""
        index = np.flatnonzero(rows).tolist()
        inputs: dict[str, list[Any]] = {}
        types = {name: view.types[name] for view, name in on_demand.sources} | dict(on_demand.inputs)
        for name, values in sources.items():
            plain = [None if value != value else value for value in values[index].tolist()]
            inputs[name] = _brought(need.given.get(name), index, plain)
        for name, type in on_demand.inputs.items():
            inputs[name] = check_key(name, type, _some(need.keys.get(name), index), "input")
        try:
            async with asyncio.timeout(min(need.seconds, ON_DEMAND_SECONDS)):
                found = await self._threads.run(compute, on_demand, inputs, types, len(index))
        except TimeoutError as error:
            text = f"The on-demand view {on_demand.name[:64]!r} did not finish in time."
            raise FeaturesUnavailable(text, len(index)) from error
        made = {}
        for column, output in outputs:
            made[column] = np.full(need.rows, None, dtype=object)
            made[column][index] = found[output]
        return made

    def _plain_columns(self, plan: Plan, found: Found) -> Mapping[str, np.ndarray]:
        """The columns of blocks that need no second look."""
        if plan.matrix is not None:
            view, names = plan.matrix
            return Matrix(names, found[view].floats)
        return {column: self._column(column, _values(found[view], at)) for column, view, at in plan.stored}

    def _column(self, column: str, values: np.ndarray) -> np.ndarray:
        return values if values.dtype.kind == "f" else to_column(values.tolist(), self._types[column])

    def _entities(self, view: View, plan: Plan, need: Need) -> list[Entity]:
        """The entities of the rows that want a view. Raises InvalidEntity."""
        keys = need.keys
        if need.wanted:
            index = np.flatnonzero(_rows(need, self._wanting(view, plan))).tolist()
            keys = {name: [values[i] for i in index] for name, values in keys.items()}
            if not index:
                return []
        return list(zip(*[check_key(key.asked, key.type, keys.get(key.asked)) for key in view.keys], strict=True))

    def _wanting(self, view: View, plan: Plan) -> list[str]:
        """The columns that come from a view, directly or computed."""
        columns = [column for column, source, _ in plan.stored if source is view]
        for on_demand, outputs in plan.computed:
            if any(source is view for source, _ in on_demand.sources):
                columns += [column for column, _ in outputs]
        return columns


def _rows(need: Need, columns: Sequence[str]) -> np.ndarray:
    """The rows `[n]` that want any of the columns."""
    rows = np.zeros(need.rows, dtype=bool)
    for column in columns:
        rows |= need.wanted.get(column, True)
    return rows


def _some(values: Sequence[Any] | None, index: Sequence[int]) -> list[Any] | None:
    return None if values is None else [values[i] for i in index]


def _brought(given: np.ndarray | None, index: Sequence[int], looked_up: list[Any]) -> list[Any]:
    """What the request brought wins over what is stored."""
    if given is None:
        return looked_up
    return [
        stored if own is None or own != own else own
        for own, stored in zip(given[index].tolist(), looked_up, strict=True)
    ]


def _spread(entities: Sequence[Entity], rows: np.ndarray) -> Sequence[Entity]:
    """Entities by row; rows that want nothing have an empty one."""
    if len(entities) == len(rows):
        return entities
    each = iter(entities)
    return [next(each) if wants else () for wants in rows.tolist()]


def _widen(view: View, block: Block | None, rows: np.ndarray) -> Block:
    """A block with all rows of the request; those that wanted nothing are not stored."""
    if block is not None and len(block.seconds) == len(rows):
        return block
    n = len(rows)
    wide = Block(np.full(n, np.nan), np.full((n, len(view.floats)), np.nan), tuple(_nones(n) for _ in view.others))
    if block is not None:
        wide.seconds[rows], wide.floats[rows] = block.seconds, block.floats
        for ours, theirs in zip(wide.others, block.others, strict=True):
            ours[rows] = theirs
    return wide


def _values(block: Block, at: Place) -> np.ndarray:
    """One feature of a block."""
    return block.floats[:, at[1]] if at[0] else block.others[at[1]]


def _blank(at: Place, n: int) -> np.ndarray:
    return np.full(n, np.nan) if at[0] else _nones(n)


def _nones(n: int) -> np.ndarray:
    return np.full(n, None, dtype=object)
