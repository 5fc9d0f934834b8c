"""Feast lookups against a real repository on files."""

import os
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Int64, String, UnixTimestamp

from features.errors import FeaturesUnavailable, InvalidEntity, InvalidFeatures, UnknownEntity
from features.store import FeastLookup, FeastSource

NOW = datetime.now(UTC).replace(microsecond=0)
COLUMNS = {
    "kind": "string",
    "pressure": "double",
    "count": "long",
    "on": "boolean",
    "seen": "datetime",
    "own": "double",
}
YAML = """
project: test
provider: local
registry: {registry_type: file, path: registry.db}
offline_store: {type: file}
online_store: {type: sqlite, path: online.db}
entity_key_serialization_version: 3
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views with different keys, every type, a missing value; and services over them."""
    home = tmp_path_factory.mktemp("feast")
    (home / "feature_store.yaml").write_text(YAML)
    stamp = pd.Timestamp(NOW - timedelta(hours=1))
    pumps = pd.DataFrame({
        "pump": ["a", "b"], "event_timestamp": stamp, "kind": ["x", None], "pressure": [1.5, np.nan],
        "count": [3, 2**40], "on": [True, False], "seen": [stamp, stamp],
    })  # fmt: skip
    sites = pd.DataFrame({"site": [1, 2], "event_timestamp": stamp, "height": [10.0, 20.0]})
    pumps.to_parquet(home / "pumps.parquet")
    sites.to_parquet(home / "sites.parquet")
    pump = Entity(name="pump", join_keys=["pump"], value_type=ValueType.STRING)
    site = Entity(name="site", join_keys=["site"], value_type=ValueType.INT64)
    pump_view = FeatureView(
        name="pumps", entities=[pump], ttl=timedelta(days=1), source=FileSource(path="pumps.parquet", timestamp_field="event_timestamp"),
        schema=[Field(name="kind", dtype=String), Field(name="pressure", dtype=Float32), Field(name="count", dtype=Int64),
                Field(name="on", dtype=Bool), Field(name="seen", dtype=UnixTimestamp)],
    )  # fmt: skip
    site_view = FeatureView(
        name="sites", entities=[site], ttl=timedelta(days=1), source=FileSource(path="sites.parquet", timestamp_field="event_timestamp"),
        schema=[Field(name="height", dtype=Float32)],
    )  # fmt: skip
    store = FeatureStore(repo_path=str(home))
    services = [
        FeatureService(name="pumps_only", features=[pump_view]),
        FeatureService(name="both", features=[pump_view, site_view]),
    ]
    store.apply([pump, site, pump_view, site_view, *services])
    store.materialize(NOW - timedelta(days=1), NOW)
    return home


@pytest.fixture(scope="module")
def source(repository: Path) -> FeastSource:
    return FeastSource(repository)


@pytest.fixture
def lookup(source: FeastSource) -> FeastLookup:
    return source.lookup("pumps_only", COLUMNS)


def test_columns_come_by_name_in_the_order_of_the_rows(lookup: FeastLookup) -> None:
    """Each type as its array; rows keep their order and may repeat; a stored null is missing."""
    found = lookup({"pump": ["b", "a", "a"]}, ["on", "kind", "count", "pressure", "seen"])
    assert list(found) == ["on", "kind", "count", "pressure", "seen"]
    assert found["kind"].tolist() == [None, "x", "x"]
    assert found["count"].dtype == np.int64
    assert found["count"].tolist() == [2**40, 3, 3]
    np.testing.assert_array_equal(found["pressure"], [np.nan, 1.5, 1.5])
    assert found["on"].dtype == bool
    assert found["on"].tolist() == [False, True, True]
    assert found["seen"].dtype == np.dtype("datetime64[ns]")
    assert found["seen"][0] == np.datetime64((NOW - timedelta(hours=1)).replace(tzinfo=None))


def test_the_lookup_says_what_it_needs_and_brings(source: FeastSource) -> None:
    """Keys are the service's join keys; columns are those of the signature that it holds."""
    lookup = source.lookup("both", {"pressure": "double", "height": "float", "own": "double"})
    assert lookup.keys == {"pump", "site"}
    assert lookup.columns == {"pressure", "height"}
    found = lookup({"pump": ["a", "b"], "site": [2, 1.0]}, ["height", "pressure"])
    assert found["height"].tolist() == [20.0, 10.0]


@pytest.mark.parametrize("keys", [
    {"pump": ["a"], "site": [True]}, {"pump": ["a"], "site": ["1"]}, {"pump": ["a"], "site": [1.5]},
    {"pump": ["a"], "site": [None]}, {"pump": ["a"], "site": [2**63]}, {"pump": [1], "site": [1]},
    {"pump": [["a"]], "site": [1]}, {"pump": ["a"]}, {},
])  # fmt: skip
def test_keys_of_another_type_are_refused(source: FeastSource, keys: dict[str, list[object]]) -> None:
    """Feast would take true for 1 and "3" for 3; the text names the key and shows no value."""
    with pytest.raises(InvalidEntity, match=r"'(pump|site)'"):
        source.lookup("both", {"height": "double", "kind": "string"})(keys, ["height", "kind"])


def test_an_unknown_entity_names_its_key(source: FeastSource) -> None:
    """The key's column is named, its value is not."""
    with pytest.raises(UnknownEntity, match="'site'") as caught:
        source.lookup("both", {"height": "double"})({"pump": ["a", "a"], "site": [1, 987]}, ["height"])
    assert "987" not in str(caught.value)


@pytest.mark.parametrize(("service", "columns", "text"), [
    ("nobody", COLUMNS, "no feature service 'nobody'"),
    ("pumps_only", {"own": "double"}, "none of the model's columns"),
    ("pumps_only", {"kind": "double"}, "'kind' is a STRING in Feast and a double"),
    ("pumps_only", {"count": "integer"}, "'count' is a INT64 in Feast and a integer"),
])  # fmt: skip
def test_a_service_that_does_not_fit_is_refused_at_load(
    source: FeastSource, service: str, columns: dict[str, str], text: str
) -> None:
    """Before the first request, with the name of what does not fit."""
    with pytest.raises(InvalidFeatures, match=text):
        source.lookup(service, columns)


def test_a_repository_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """The path is named, and the load is retried like any other."""
    with pytest.raises(FeaturesUnavailable, match=str(tmp_path)):
        FeastSource(tmp_path).lookup("pumps_only", COLUMNS)


def test_a_store_that_fails_is_unavailable_and_comes_back(
    repository: Path, source: FeastSource, lookup: FeastLookup, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken online store is one warning and an error per lookup; when it is back, so are the features."""
    caplog.set_level("INFO")
    with sqlite3.connect(repository / "online.db") as db:
        db.execute("ALTER TABLE test_pumps RENAME TO gone")
    for _ in range(3):
        with pytest.raises(FeaturesUnavailable, match="did not answer"):
            lookup({"pump": ["a"]}, ["kind"])
    source.lookup("pumps_only", COLUMNS)  # a version still loads: full rows can be served
    with sqlite3.connect(repository / "online.db") as db:
        db.execute("ALTER TABLE gone RENAME TO test_pumps")
    assert lookup({"pump": ["a"]}, ["kind"])["kind"].tolist() == ["x"]
    assert [r.message for r in caplog.records].count("feature store does not answer") == 2
    assert [r.message for r in caplog.records].count("feature store answers again") == 1


def test_feast_does_not_switch_the_metrics_of_the_process(repository: Path) -> None:
    """Importing Feast turns on prometheus_client's multi-process mode; that is undone. In a process of its own, because
    this one has imported Feast itself."""
    code = (
        "import os, pathlib, sys; from features.store import FeastSource;"
        "FeastSource(pathlib.Path(sys.argv[1])).lookup('pumps_only', {'kind': 'string'})({'pump': ['a']}, ['kind']);"
        "sys.exit('PROMETHEUS_MULTIPROC_DIR' in os.environ)"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS")}
    assert subprocess.run([sys.executable, "-c", code, str(repository)], env=environ, check=False).returncode == 0


def test_feast_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a lookup cannot be prepared, and the reason names the extra."""
    monkeypatch.setitem(sys.modules, "feast", None)  # makes the import fail
    with pytest.raises(FeaturesUnavailable, match="extra 'feast'"):
        FeastSource(tmp_path).lookup("machine_health", {"temperature": "double"})
