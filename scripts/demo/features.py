"""Builds the demonstration's Feast repository: definitions applied, histories stored, latest readings materialised."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

from feast import FeatureStore

from scripts.demo.feature_repo.definitions import DEFINITIONS, READINGS
from scripts.demo.machines import Histories

REPOSITORY = Path(__file__).parent / "feature_repo"


def build_features(home: Path, histories: Histories) -> None:
    """Makes a Feast repository in `home` whose online store holds the last reading of every machine."""
    (home / "data").mkdir(parents=True, exist_ok=True)
    for name in ("feature_store.yaml", "definitions.py"):
        shutil.copy(REPOSITORY / name, home / name)
    frame = histories.frame[["machine_id", "event_timestamp", *READINGS]]
    frame.to_parquet(home / "data" / "readings.parquet")
    store = FeatureStore(repo_path=str(home))
    store.apply(DEFINITIONS)
    last = frame["event_timestamp"].max().to_pydatetime()
    store.materialize(last - timedelta(days=2), last + timedelta(seconds=1))
