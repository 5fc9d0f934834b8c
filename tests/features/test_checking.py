"""`features check` against a real repository: what it finds right, and what it finds wrong."""

import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest
from feast import FeatureStore

from features.checking import ViewHealth, check
from features.errors import InvalidFeatures
from serving.cli import main
from tests.stores import STAMP


@pytest.fixture
def copy(sqlite_repository: Path, tmp_path: Path) -> Path:
    """A repository that a test may spoil."""
    return Path(shutil.copytree(sqlite_repository, tmp_path / "copy"))


def health(repository: Path) -> ViewHealth:
    return {view.view: view for view in check(repository, None, 1000, 30, lambda text: None)}["machines"]


def test_what_was_just_materialised_is_healthy(copy: Path) -> None:
    """All of the sample is online, an hour old, and the same as offline; one heat in 1800 values is null."""
    found = health(copy)
    assert (found.sampled, found.missing, found.behind, found.differing) == (600, 0, 0, 0)
    assert found.nulls == pytest.approx(1 / 1800)
    assert found.ttl == 86_400
    assert found.newest_age == pytest.approx((datetime.now(UTC) - STAMP).total_seconds(), abs=60)
    assert found.healthy


def test_every_kind_of_skew_is_counted(copy: Path) -> None:
    """A newer event offline, an entity that was never materialised, and a value that differs at the same time."""
    frame = pd.read_parquet(copy / "machines.parquet")
    newer = frame[frame.machine == 20].assign(event_timestamp=STAMP + timedelta(minutes=5))
    never = frame[frame.machine == 21].assign(machine=7777)
    frame.loc[frame.machine == 22, "load"] = 9.0
    pd.concat([frame, newer, never]).to_parquet(copy / "machines.parquet")
    found = health(copy)
    assert (found.missing, found.behind, found.differing, found.healthy) == (1, 1, 1, False)


def test_the_verb_prints_a_line_per_view_and_says_by_its_code_if_all_is_well(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A service that is not there exits 1, with a sentence; a repository without views is refused."""
    monkeypatch.setenv("HEADWAY_FEATURES__REPO_PATH", str(copy))
    assert main(["features", "check", "--service", "machines_only"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["VIEW", "SAMPLED", "MISSING", "NEWEST", "TTL", "NULLS", "BEHIND", "DIFFERING"]
    assert lines[1].split()[:3] == ["machines", "100", "0"]
    assert main(["features", "check", "--service", "nobody"]) == 1
    assert "no feature service 'nobody'" in capsys.readouterr().err
    FeatureStore(repo_path=str(copy)).teardown()
    with pytest.raises(InvalidFeatures):
        check(copy, None, 10, 30, lambda text: None)


def test_json_has_the_same(copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Machine-readable, a healthy flag per view."""
    monkeypatch.setenv("HEADWAY_FEATURES__REPO_PATH", str(copy))
    assert main(["features", "check", "--json", "--sample", "5"]) == 0
    found = {view["view"]: view for view in json.loads(capsys.readouterr().out)}
    assert set(found) == {"pumps", "sites", "machines"}
    assert all(view["healthy"] for view in found.values())
