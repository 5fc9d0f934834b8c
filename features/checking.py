"""How fresh and how right the online store is: a sample of entities, as they are online and as they are offline."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from features.blocks import Block, from_columns
from features.errors import FeaturesUnavailable, InvalidFeatures
from features.readers import Ask, Entity, feast_read
from features.remote_reader import remote_read
from features.service import View, every_view
from features.store import open_feast

TIMEOUT_SECONDS = 30.0
#: Online and offline values that differ by less than this share are the same: a float is stored with 24 bits.
SAME = 1e-6


@dataclass(frozen=True, slots=True)
class ViewHealth:
    """What a sample says of one view. Ages are seconds; `nulls` is a share of the values found.

    `missing` entities have nothing online, `behind` ones have an older event online than offline, and `differing` counts
    values that differ although their events are of the same time: training and serving would not see the same.
    """

    view: str
    sampled: int
    missing: int
    newest_age: float | None
    ttl: float | None
    nulls: float | None
    behind: int
    differing: int

    @property
    def healthy(self) -> bool:
        """Whether everything sampled is online, young enough, and the same as offline."""
        young = self.newest_age is not None and (self.ttl is None or self.newest_age <= self.ttl)
        return young and not (self.missing or self.behind or self.differing)


def check(
    repo_path: Path, service: str | None, sample: int, days: float, progress: Callable[[str], None]
) -> list[ViewHealth]:
    """The health of a service's views, or of all. The offline store is read over the last `days`.

    Raises InvalidFeatures for a service that is not there, FeaturesUnavailable if a store cannot be read.
    """
    feast = open_feast(repo_path)
    views = every_view(feast, service)
    if not views:
        raise InvalidFeatures("the Feast repository has no feature view with an entity")
    remote = feast.config.online_store.type == "remote"
    read = remote_read(feast, TIMEOUT_SECONDS) if remote else feast_read(feast)
    found = []
    for view in views:
        progress(f"{view.name}: reading the offline store …")
        try:
            entities, offline = _offline(feast, view, sample, days)
            online = read([Ask(view, entities)])[0] if entities else offline
        except Exception as error:
            raise FeaturesUnavailable(f"the view {view.name[:64]!r} cannot be read: {error}") from error
        found.append(_compare(view, online, offline))
    return found


def _offline(feast: Any, view: View, sample: int, days: float) -> tuple[list[Entity], Block]:
    """Some entities, always the same while the data are, and the latest that the offline store has of each."""
    source, now = view.table.batch_source, datetime.now(UTC)
    mapped = {stored: column for column, stored in source.field_mapping.items()}
    keys, names = [key.stored for key in view.keys], list(view.features)
    frame = (
        feast._get_provider()
        .offline_store.pull_latest_from_table_or_query(
            config=feast.config,
            data_source=source,
            join_key_columns=[mapped.get(name, name) for name in keys],
            feature_name_columns=[mapped.get(name, name) for name in names],
            timestamp_field=source.timestamp_field,
            created_timestamp_column=source.created_timestamp_column,
            start_date=now - timedelta(days=days),
            end_date=now,
        )
        .to_df()
        .rename(columns=source.field_mapping)
        .sort_values(keys)
    )
    frame = frame.iloc[sorted(random.Random(0).sample(range(len(frame)), min(sample, len(frame))))]  # noqa: S311
    columns = {name: [_plain(value) for value in frame[name]] for name in names}
    stamps = frame[source.timestamp_field]
    seconds = [stamp.replace(tzinfo=stamp.tzinfo or UTC).timestamp() for stamp in stamps]
    entities = [tuple(_plain(value) for value in row) for row in frame[keys].itertuples(index=False, name=None)]
    return entities, from_columns(view, seconds, columns)


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, datetime):
        return None if value != value else int(value.replace(tzinfo=value.tzinfo or UTC).timestamp())
    return None if value is None or value != value else value


def _compare(view: View, online: Block, offline: Block) -> ViewHealth:
    there = ~np.isnan(online.seconds)
    same_time = there & (np.abs(online.seconds - offline.seconds) < 1)
    floats = ~np.isclose(online.floats, offline.floats, rtol=SAME, atol=0, equal_nan=True)
    others = _unequal(online.others, offline.others)
    values = there.sum() * len(view.features)
    nulls = np.isnan(online.floats[there]).sum() + sum(v is None for o in online.others for v in o[there].tolist())
    return ViewHealth(
        view=view.name,
        sampled=len(there),
        missing=int((~there).sum()),
        newest_age=float(time.time() - np.nanmax(online.seconds)) if there.any() else None,
        ttl=view.ttl,
        nulls=float(nulls / values) if values else None,
        behind=int((there & (offline.seconds - online.seconds >= 1)).sum()),
        differing=int(floats[same_time].sum()) + sum(int(o[same_time].sum()) for o in others),
    )


def _unequal(online: Sequence[np.ndarray], offline: Sequence[np.ndarray]) -> list[np.ndarray]:
    pairs = zip(online, offline, strict=True)
    return [np.array([a != b for a, b in zip(x.tolist(), y.tolist(), strict=True)], dtype=bool) for x, y in pairs]
