"""Policies against every kind of store: what happens to what is missing, null, stale or out of reach."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from features.errors import (
    Cause,
    FeatureFailed,
    FeaturesUnavailable,
    InvalidEntity,
    InvalidFeatures,
    NullFeature,
    StaleFeature,
    UnknownEntity,
)
from features.lookup import Completed, Need
from features.policies import Target, policy_for
from features.store import FeastSource
from tests.stores import ABSENT, NULL, STALE, frames

OPTIONAL = dict.fromkeys(("heat", "load", "wear"), ("double", False))
STORED = frames()[2].set_index("machine")
AGED = {"max_age_seconds": 86_400}
#: Cause, the machine that has it, and the error of the policy `error`.
TROUBLES = [
    ("missing", ABSENT, UnknownEntity, "'machine'"),
    ("null", NULL, NullFeature, "'heat'"),
    ("stale", STALE, StaleFeature, "'heat'"),
]


@pytest_asyncio.fixture
async def source(repository: Path) -> AsyncIterator[FeastSource]:
    source = FeastSource(repository, timeout_seconds=20)
    yield source
    await source.close()


def need(machines: list[int], *names: str, **more: Any) -> Need:
    return Need(names or ("heat", "load"), len(machines), {"machine": machines}, 20.0, **more)


def events(done: Completed) -> list[tuple[str, str, str, list[int]]]:
    return [(e.action, str(e.cause), e.column, e.rows.tolist()) for e in done.events]


@pytest.mark.parametrize("rows", [1, 32, 500])
@pytest.mark.parametrize(("cause", "machine", "error", "text"), TROUBLES)
async def test_each_action_for_each_trouble(
    source: FeastSource, cause: str, machine: int, error: type[Exception], text: str, rows: int
) -> None:
    """Only the troubled row is touched: refused, left missing, or given the default."""
    machines = [machine, *(i for i in range(10, 10 + rows - 1))]
    columns = ("heat", "load") if cause != "null" else ("heat",)

    async def complete(action: str) -> Completed:
        layer = {**AGED, f"on_{cause}": action, "default": 7.0}
        return await source.lookup("machines_only", OPTIONAL, [layer])(need(machines, *columns))

    with pytest.raises(error, match=text):
        await complete("error")
    for action, expected in (("null", np.nan), ("default", 7.0)):
        done = await complete(action)
        assert events(done) == [(action, cause, column, [0]) for column in columns]
        for column in columns:
            np.testing.assert_array_equal(done.columns[column], [expected, *STORED.loc[machines[1:], column]])


async def test_without_a_policy_a_null_is_missing_where_the_column_is_optional(source: FeastSource) -> None:
    """Age counts only where somebody set a limit."""
    done = await source.lookup("machines_only", OPTIONAL)(need([NULL, STALE], "heat", "load"))
    np.testing.assert_array_equal(done.columns["heat"], [np.nan, STORED.heat[STALE]])
    with pytest.raises(NullFeature):
        await source.lookup("machines_only", {"heat": ("double", True)})(need([NULL], "heat"))


async def test_the_age_limit_can_be_the_views_own(source: FeastSource) -> None:
    """`ttl` is a day in this repository, and Feast does not enforce it."""
    lookup = source.lookup("machines_only", OPTIONAL, [{"max_age_seconds": "ttl", "on_stale": "null"}])
    assert events(await lookup(need([STALE, 10], "wear"))) == [("null", "stale", "wear", [0])]


async def test_what_a_row_brought_itself_needs_no_policy(source: FeastSource) -> None:
    """An unknown machine that wants nothing of the store is no error; one that wants a column is."""
    lookup = source.lookup("machines_only", OPTIONAL)
    wanted = {"heat": np.array([False, True]), "load": np.array([False, True])}
    done = await lookup(Need(("heat", "load"), 2, {"machine": [None, 10]}, 20.0, wanted))
    assert done.columns["heat"][1] == STORED.heat[10]
    with pytest.raises(UnknownEntity):
        await lookup(Need(("heat",), 2, {"machine": [ABSENT, 10]}, 20.0, {"heat": np.array([True, False])}))


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_the_last_good_value_outlives_the_store(source: FeastSource) -> None:
    """What was read once for a key is answered again; without it the default, and without that an error."""
    layer = {"on_missing": "last_good", "on_outage": "last_good"}
    lookup = source.lookup("machines_only", OPTIONAL, [layer])
    first = await lookup(need([10, 11]))
    late = Need(("heat", "load"), 2, {"machine": [11, 10]}, seconds=0.0)
    again = await lookup(late)
    assert events(again) == [("last_good", "outage", name, [0, 1]) for name in ("heat", "load")]
    assert again.columns["heat"].tolist() == first.columns["heat"].tolist()[::-1]
    with pytest.raises(FeaturesUnavailable):
        await lookup(Need(("heat",), 1, {"machine": [12]}, seconds=0.0))
    soon = source.lookup("machines_only", OPTIONAL, [{**layer, "last_good_seconds": 1e-9, "default": 0}])
    await soon(need([10]))
    time.sleep(0.001)  # the clock must tick
    assert events(await soon(Need(("heat",), 1, {"machine": [10]}, 0.0))) == [("default", "outage", "heat", [0])]


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("layer", "text"), [
    ({"on_null": "null"}, "on_null of 'heat' is null, but the signature requires"),
    ({"on_outage": "default"}, "there is no features.default"),
    ({"on_outage": "default", "default": "much"}, "features.default of 'heat' does not fit a double"),
    ({"columns": {"heat": {"on_stale": "default"}}}, "on_stale of 'heat' is default"),
])  # fmt: skip
async def test_a_policy_that_cannot_be_kept_is_refused_at_load(
    source: FeastSource, layer: dict[str, Any], text: str
) -> None:
    """Not at the first outage."""
    with pytest.raises(InvalidFeatures, match=text):
        source.lookup("machines_only", {"heat": ("double", True)}, [layer])


def test_the_nearer_word_wins() -> None:
    """Layers in their order; within one the column before its view, and the view before the rest."""
    target = Target("machines", "heat", "double", required=True, ttl=None)
    above = {"views": {"machines": {"on_stale": "last_good"}}, "on_missing": "last_good"}
    below = {"columns": {"heat": {"on_stale": "error", "on_outage": "default", "default": 1}}, "on_null": "last_good"}
    policy = policy_for([above, below], target)
    assert policy.actions == {
        Cause.MISSING: "last_good", Cause.STALE: "last_good", Cause.OUTAGE: "default", Cause.NULL: "last_good",
    }  # fmt: skip


RATIOS = {"heat_per_load": ("double", False), "pace": ("double", False), "wear": ("double", True)}


async def test_an_on_demand_view_computes_from_the_store_and_the_request(source: FeastSource) -> None:
    """Its request-time input stands in the request; what the request brings of its sources wins."""
    lookup = source.lookup("ratios", RATIOS)
    assert lookup.keys == {"machine", "speed"}
    keys = {"machine": [10, 11], "speed": [2.0, 3]}
    done = await lookup(Need(("heat_per_load", "pace", "wear"), 2, keys, 20.0, given={"load": np.array([np.nan, 0.5])}))
    load = np.array([STORED.load[10], 0.5])
    np.testing.assert_allclose(done.columns["heat_per_load"], STORED.heat[[10, 11]] / load)
    np.testing.assert_allclose(done.columns["pace"], load * [2, 3])
    with pytest.raises(InvalidEntity, match="The input 'speed'"):
        await lookup(Need(("pace",), 1, {"machine": [10]}, 20.0))
    with pytest.raises(InvalidEntity, match="The input 'speed' takes numbers"):
        await lookup(Need(("pace",), 1, {"machine": [10], "speed": ["fast"]}, 20.0))


async def test_rows_that_want_no_on_demand_feature_need_not_bring_its_inputs(source: FeastSource) -> None:
    """Only the others are computed; a null that goes in comes out as the view decides."""
    lookup = source.lookup("ratios", RATIOS)
    wanted = {"pace": np.array([False, True])}
    done = await lookup(Need(("pace",), 2, {"machine": [None, 12], "speed": [None, 2.0]}, 20.0, wanted))
    assert done.columns["pace"][1] == STORED.load[12] * 2
    null = await lookup(Need(("heat_per_load",), 1, {"machine": [NULL], "speed": [1.0]}, 20.0))
    assert np.isnan(null.columns["heat_per_load"][0])
    assert ("null", "null", "heat_per_load", [0]) in events(null)


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_an_on_demand_view_computes_from_the_last_good_values_of_its_sources(source: FeastSource) -> None:
    """The store is out of reach; what was read before goes into the view, and a null that comes out has no last good."""
    layer = {"on_missing": "last_good", "on_outage": "last_good", "on_null": "last_good", "default": -1.0}
    lookup = source.lookup("ratios", RATIOS, [layer])
    keys = {"machine": [20, NULL], "speed": [2.0, 2.0]}
    first = await lookup(Need(("heat_per_load", "pace"), 2, keys, 20.0))
    assert first.columns["pace"].tolist() == [STORED.load[20] * 2, STORED.load[NULL] * 2]
    assert first.columns["heat_per_load"].tolist() == [STORED.heat[20] / STORED.load[20], -1 / STORED.load[NULL]]
    for _ in range(9):
        lookup.store.breaker.record(ok=False)
    again = await lookup(Need(("heat_per_load", "pace"), 2, keys, 20.0))
    assert again.columns["pace"].tolist() == first.columns["pace"].tolist()
    assert again.columns["heat_per_load"].tolist() == first.columns["heat_per_load"].tolist()
    assert {(action, cause) for action, cause, *_ in events(again)} == {("last_good", "outage"), ("default", "outage")}


@pytest.mark.parametrize("repository", ["sqlite"], indirect=True)
async def test_an_on_demand_view_that_raises_fails_its_request_alone(source: FeastSource) -> None:
    """A load of zero is brought by one of two requests that wait together."""

    lookup = source.lookup("ratios", RATIOS)

    def asks(load: float) -> Need:
        return Need(("heat_per_load",), 1, {"machine": [10], "speed": [1.0]}, 20.0, given={"load": np.array([load])})

    good, bad = await asyncio.gather(lookup(asks(0.5)), lookup(asks(0.0)), return_exceptions=True)
    assert isinstance(good, Completed)
    assert isinstance(bad, FeatureFailed)
    assert "ZeroDivisionError" in str(bad)
