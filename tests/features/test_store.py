"""Feast lookups against real repositories: what comes back from every kind of store, and what is refused at load."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from features.errors import FeaturesUnavailable, InvalidEntity, InvalidFeatures, UnknownEntity
from features.lookup import FeastLookup, Need
from features.store import FeastSource
from tests.stores import STAMP, frames

COLUMNS = {
    "kind": ("string", False),
    "pressure": ("double", False),
    "count": ("long", True),
    "on": ("boolean", True),
    "seen": ("datetime", True),
    "own": ("double", True),
}
HEIGHT = {"height": ("double", True)}


@pytest_asyncio.fixture
async def source(repository: Path) -> AsyncIterator[FeastSource]:
    source = FeastSource(repository, timeout_seconds=20)
    yield source
    await source.close()


async def ask(lookup: FeastLookup, keys: dict[str, Any], *names: str) -> dict[str, np.ndarray]:
    """The named columns for some entities."""
    rows = max(len(values) for values in keys.values()) if keys else 1
    return dict((await lookup(Need(names, rows, keys, seconds=20))).columns)


async def test_columns_come_by_name_in_the_order_of_the_rows(source: FeastSource) -> None:
    """Each type as its array; rows keep their order and may repeat; a stored null is missing."""
    lookup = source.lookup("pumps_only", COLUMNS)
    found = await ask(lookup, {"pump": ["b", "a", "a"]}, "on", "kind", "count", "pressure", "seen")
    assert found["kind"].tolist() == [None, "x", "x"]
    assert (found["count"].dtype, found["count"].tolist()) == (np.int64, [2**40, 3, 3])
    np.testing.assert_array_equal(found["pressure"], [np.nan, 1.5, 1.5])
    assert (found["on"].dtype, found["on"].tolist()) == (bool, [False, True, True])
    assert found["seen"].dtype == np.dtype("datetime64[ns]")
    assert found["seen"][0] == np.datetime64(STAMP.replace(tzinfo=None))


async def test_the_lookup_says_what_it_needs_and_brings(source: FeastSource) -> None:
    """Keys are the service's join keys; columns are those of the signature that it holds, by short or by full name."""
    columns = {"pressure": ("double", True), "sites__height": ("float", True), "own": ("double", True)}
    lookup = source.lookup("both", columns)
    assert lookup.keys == {"pump", "site"}
    assert lookup.columns == {"pressure", "sites__height"}
    found = await ask(lookup, {"pump": ["a", "a"], "site": [2, 1.0]}, "sites__height", "pressure")
    assert found["sites__height"].tolist() == [20.0, 10.0]


async def test_only_the_views_that_are_needed_need_their_keys(source: FeastSource) -> None:
    """A request that wants a site's height names no pump."""
    lookup = source.lookup("both", {"kind": ("string", False), **HEIGHT})
    assert (await ask(lookup, {"site": [2]}, "height"))["height"].tolist() == [20.0]


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
@pytest.mark.parametrize("keys", [
    {"pump": ["a"], "site": [True]}, {"pump": ["a"], "site": ["1"]}, {"pump": ["a"], "site": [1.5]},
    {"pump": ["a"], "site": [None]}, {"pump": ["a"], "site": [2**63]}, {"pump": [1], "site": [1]},
    {"pump": [["a"]], "site": [1]}, {"pump": ["a"]}, {},
])  # fmt: skip
async def test_keys_of_another_type_are_refused(source: FeastSource, keys: dict[str, list[object]]) -> None:
    """Feast would take true for 1 and "3" for 3; the text names the key and shows no value."""
    with pytest.raises(InvalidEntity, match=r"'(pump|site)'"):
        await ask(source.lookup("both", {"kind": ("string", False), **HEIGHT}), keys, "height", "kind")


async def test_an_unknown_entity_names_its_key(source: FeastSource) -> None:
    """The key's column is named, its value is not."""
    with pytest.raises(UnknownEntity, match="'site'") as caught:
        await ask(source.lookup("both", HEIGHT), {"site": [1, 987]}, "height")
    assert "987" not in str(caught.value)
    assert caught.value.rows == 1


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("service", "columns", "text"), [
    ("nobody", COLUMNS, "no feature service 'nobody'"),
    ("pumps_only", {"own": ("double", True)}, "none of the model's columns"),
    ("pumps_only", {"kind": ("double", True)}, "'kind' is a STRING in Feast and a double"),
    ("pumps_only", {"kind": ("double", True), "count": ("integer", True)}, "'kind' .*'count' is a INT64 in Feast"),
])  # fmt: skip
async def test_a_service_that_does_not_fit_is_refused_at_load(
    source: FeastSource, service: str, columns: dict[str, tuple[str, bool]], text: str
) -> None:
    """Before the first request, with the name of everything that does not fit."""
    with pytest.raises(InvalidFeatures, match=text):
        source.lookup(service, columns)


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_what_training_wrote_down_must_still_be_there(source: FeastSource) -> None:
    """The difference is shown, both ways; the same set in any order fits."""
    same = frozenset({"sites:height", "pumps:kind", "pumps:pressure", "pumps:count", "pumps:on", "pumps:seen"})
    source.lookup("both", HEIGHT, recorded=same)
    with pytest.raises(InvalidFeatures, match=r"trained with 'pumps:old' that it lacks, and it has 'pumps:on' beyond"):
        source.lookup("both", HEIGHT, recorded=same - {"pumps:on"} | {"pumps:old"})


async def test_a_repository_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """The path is named, and the load is retried like any other."""
    with pytest.raises(FeaturesUnavailable, match=str(tmp_path)):
        FeastSource(tmp_path).lookup("pumps_only", COLUMNS)


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_a_store_that_fails_is_unavailable_and_comes_back(
    repository: Path, source: FeastSource, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken online store is one warning and an error per lookup; when it is back, so are the features."""
    caplog.set_level("INFO")
    lookup = source.lookup("pumps_only", COLUMNS)
    with sqlite3.connect(repository / "online.db") as db:
        db.execute("ALTER TABLE test_pumps RENAME TO gone")
    try:
        for _ in range(3):
            with pytest.raises(FeaturesUnavailable, match="did not answer"):
                await ask(lookup, {"pump": ["a"]}, "kind")
        source.lookup("pumps_only", COLUMNS)  # a version still loads: full rows can be served
    finally:
        with sqlite3.connect(repository / "online.db") as db:
            db.execute("ALTER TABLE gone RENAME TO test_pumps")
    assert (await ask(lookup, {"pump": ["a"]}, "kind"))["kind"].tolist() == ["x"]
    assert [r.message for r in caplog.records].count("feature store does not answer") == 1
    assert [r.message for r in caplog.records].count("feature store answers again") == 1


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_a_broken_registry_never_reaches_a_request(repository: Path, source: FeastSource) -> None:
    """What a lookup needs was read when its version was loaded; the next version to load hears of it."""
    lookup = source.lookup("both", HEIGHT)
    registry = repository / "registry.db"
    kept = registry.read_bytes()
    registry.unlink()
    try:
        assert (await ask(lookup, {"site": [1]}, "height"))["height"].tolist() == [10.0]
        with pytest.raises(FeaturesUnavailable, match="cannot be opened"):
            source.lookup("both", HEIGHT)
    finally:
        registry.write_bytes(kept)


def test_feast_does_not_switch_the_metrics_of_the_process(sqlite_repository: Path) -> None:
    """Importing Feast turns on prometheus_client's multi-process mode; that is undone. In a process of its own, because
    this one has imported Feast itself."""
    code = (
        "import os, pathlib, sys; from features.store import FeastSource;"
        "FeastSource(pathlib.Path(sys.argv[1])).lookup('pumps_only', {'kind': ('string', False)});"
        "sys.exit('PROMETHEUS_MULTIPROC_DIR' in os.environ)"
    )
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PROMETHEUS")}
    assert (
        subprocess.run([sys.executable, "-c", code, str(sqlite_repository)], env=environ, check=False).returncode == 0
    )


def test_feast_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a lookup cannot be prepared, and the reason names the extra."""
    monkeypatch.setitem(sys.modules, "feast", None)  # makes the import fail
    with pytest.raises(FeaturesUnavailable, match="extra 'feast'"):
        FeastSource(tmp_path).lookup("machine_health", {"temperature": ("double", True)})


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_columns_are_right_whatever_the_hash_seed(repository: Path, seed: int) -> None:
    """Feast's own order of columns changes with the seed; each column's values do not."""
    code = (
        "import asyncio, pathlib, sys; from features.store import FeastSource; from features.lookup import Need\n"
        "names = ('wear', 'heat', 'load'); source = FeastSource(pathlib.Path(sys.argv[1]), timeout_seconds=20)\n"
        "lookup = source.lookup('machines_only', {name: ('double', True) for name in names})\n"
        "found = asyncio.run(lookup(Need(names, 1, {'machine': [1]}, 20.0))).columns\n"
        "print(*(float(found[name][0]) for name in ('heat', 'load', 'wear')))"
    )
    environ = {**os.environ, "PYTHONHASHSEED": str(seed)}
    out = subprocess.run(
        [sys.executable, "-c", code, str(repository)], env=environ, check=True, capture_output=True, text=True
    )
    assert [float(v) for v in out.stdout.split()] == frames()[2].loc[0, ["heat", "load", "wear"]].tolist()
