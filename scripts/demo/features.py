"""The demonstration's Feast repository: definitions applied, histories stored, latest readings materialised; and pushes.

`python -m scripts.demo.features --feature-repo DIR --machine 17 --vibration 1.4` pushes one new reading of a machine.
"""

from __future__ import annotations

import argparse
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import yaml
from feast import FeatureStore

from scripts.demo.feature_repo.definitions import DEFINITIONS, READINGS, stream
from scripts.demo.machines import Histories

REPOSITORY = Path(__file__).parent / "feature_repo"


def build_features(home: Path, histories: Histories, redis: str | None = None) -> None:
    """Makes a Feast repository in `home` whose online store, a file or `redis` (host:port), holds every machine's last reading."""
    (home / "data").mkdir(parents=True, exist_ok=True)
    shutil.copy(REPOSITORY / "definitions.py", home / "definitions.py")
    config = yaml.safe_load((REPOSITORY / "feature_store.yaml").read_text())
    if redis is not None:
        config["online_store"] = {"type": "redis", "connection_string": redis}
    (home / "feature_store.yaml").write_text(yaml.safe_dump(config))
    frame = histories.frame[["machine_id", "event_timestamp", *READINGS]]
    frame = frame.assign(rated_kw=20.0 + frame["machine_id"] % 30)
    frame.to_parquet(home / "data" / "readings.parquet")
    store = FeatureStore(repo_path=str(home))
    store.apply(DEFINITIONS)
    last = frame["event_timestamp"].max().to_pydatetime()
    store.materialize(last - timedelta(days=2), last + timedelta(seconds=1))


def push_reading(home: Path, machine: int, vibration: float) -> None:
    """Pushes a reading of now to the online store: the machine's last one, with another vibration."""
    frame = pd.read_parquet(home / "data" / "readings.parquet")
    last = frame[frame["machine_id"] == machine].sort_values("event_timestamp").tail(1)
    reading = last.assign(vibration=vibration, event_timestamp=datetime.now(UTC))
    FeatureStore(repo_path=str(home)).push(stream.name, reading)


def main() -> None:
    """Pushes one reading."""
    parser = argparse.ArgumentParser(description="push one new reading of a machine to the online store")
    parser.add_argument("--feature-repo", required=True, type=Path)
    parser.add_argument("--machine", required=True, type=int)
    parser.add_argument("--vibration", required=True, type=float, help="mm/s, RMS")
    args = parser.parse_args()
    push_reading(args.feature_repo, args.machine, args.vibration)


if __name__ == "__main__":
    main()
