"""`headway cache`: what operators see of the artifact cache, and a backup that another machine starts from."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from registry.cache import ArtifactCache
from registry.versions import ModelVersion
from tests.proxy import proxied
from tests.servers import ROOT, MlflowServer, Server


def headway_cache(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "HEADWAY_REGISTRY__CACHE_DIR": str(folder)}
    command = [sys.executable, "-m", "serving.cli", "cache", *words]
    return subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)


def download(version: ModelVersion, into: Path) -> None:
    (into / "MLmodel").write_text(f"{version.name} {version.version}")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Two versions and a note of what served."""
    cache = ArtifactCache(tmp_path / "filled", 2**40, "http://mlflow:5000 http://mlflow:5000", download)
    for number in ("1", "2"):
        cache.fetch(ModelVersion("fraud", number, f"models:/m-{number}")).release()
    cache.remember("models:/fraud@champion", ModelVersion("fraud", "2", "models:/m-2"))
    return cache.root


def damage(folder: Path) -> None:
    """Alters one file of one version."""
    next(folder.glob("trees/*/MLmodel")).write_text("altered")


def test_list_shows_versions_and_where_they_came_from(filled: Path) -> None:
    """One line each, under a head; the least recently used first."""
    done = headway_cache(filled, "list")
    head, *lines = done.stdout.splitlines()
    assert done.returncode == 0
    assert head.split() == ["VERSION", "DIGEST", "BYTES", "LAST", "USED", "REGISTRY"]
    assert [line.split()[0] for line in lines] == ["models:/fraud/1", "models:/fraud/2"]
    assert all(line.split()[2] == "7" and line.endswith("http://mlflow:5000") for line in lines)


def test_verify_exits_1_when_a_file_was_altered(filled: Path) -> None:
    """And names the version."""
    assert headway_cache(filled, "verify").returncode == 0
    damage(filled)
    done = headway_cache(filled, "verify")
    assert (done.returncode, done.stdout.startswith("damaged: models:/fraud/")) == (1, True)
    assert "1 whole, 1 damaged" in done.stderr


def test_prune_leaves_what_fits_and_what_is_loaded(filled: Path) -> None:
    """By bytes, the oldest first; a version that some process holds stays."""
    assert headway_cache(filled, "prune", "--bytes", "7").stdout.startswith("removed 7 bytes")
    held = ArtifactCache(filled, 1, "http://mlflow:5000 http://mlflow:5000", download)
    artifact = held.fetch(ModelVersion("fraud", "2", "models:/m-2"))
    assert headway_cache(filled, "prune").stdout.startswith("removed 0 bytes")
    artifact.release()
    assert headway_cache(filled, "prune").stdout.startswith("removed 7 bytes")


def test_export_and_import_bring_whole_versions_alone(filled: Path, tmp_path: Path) -> None:
    """A damaged version is left out and told; importing twice changes nothing."""
    damage(filled)
    done = headway_cache(filled, "export", str(tmp_path / "backup.tar"))
    assert (done.returncode, done.stdout.startswith("1 versions exported")) == (0, True)
    assert "damaged or gone" in done.stderr
    other = tmp_path / "other"
    for _ in range(2):
        done = headway_cache(other, "import", str(tmp_path / "backup.tar"))
        assert (done.returncode, done.stdout) == (0, "1 versions imported\n")
    assert headway_cache(other, "verify").returncode == 0
    cache = ArtifactCache(other, 1, "http://mlflow:5000 http://mlflow:5000", download)
    assert cache.recall("models:/fraud@champion") == ModelVersion("fraud", "2", "models:/m-2")
    assert not any((other / "downloads").iterdir())


def tampered(filled: Path, file: Path, what: str) -> None:
    """A backup in which one thing is not as it was."""
    good = file.with_suffix(".good")
    assert headway_cache(filled, "export", str(good)).returncode == 0
    with tarfile.open(good) as source, tarfile.open(file, "w") as target:
        for member in source:
            data = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if what == "content" and member.name.endswith("MLmodel"):
                data = data.replace(b"fraud", b"freud")
            if what == "record" and member.name.startswith("versions/"):
                data = b"{}"
            if what == "escape" and member.name.startswith("versions/"):
                member.name = "../../outside"
            member.size = len(data)
            target.addfile(member, io.BytesIO(data) if member.isfile() else None)


@pytest.mark.parametrize(("what", "says"), [
    ("content", "not what their digest says"), ("record", "cannot be read"), ("escape", "outside"), (None, "is no file of"),
])  # fmt: skip
def test_a_backup_is_not_believed(filled: Path, tmp_path: Path, what: str | None, says: str) -> None:
    """Altered files, a foreign record, a member that would leave the folder, no tar at all: exit 1, and nothing is kept."""
    file = tmp_path / "backup.tar"
    tampered(filled, file, what) if what else file.write_text("no tar, but long enough to be looked at" * 50)
    done = headway_cache(tmp_path / "other", "import", str(file))
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert list((tmp_path / "other").glob("trees/*")) == []
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("action", ["list", "verify", "prune", "export"])
def test_without_a_cache_there_is_one_sentence(tmp_path: Path, action: str) -> None:
    """It names the setting; exit 1."""
    words = [action, str(tmp_path / "x")] if action == "export" else [action]
    done = headway_cache(tmp_path / "nowhere", *words)
    assert (done.returncode, "HEADWAY_REGISTRY__CACHE_DIR" in done.stderr) == (1, True)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.e2e
def test_another_machine_starts_from_a_backup_without_the_registry(
    shared: MlflowServer, headway: Callable[..., Server], tmp_path: Path
) -> None:
    """The cache of a server that has served, exported, imported elsewhere: it answers, and says that it may be stale."""
    name = "predictive_maintenance"
    with proxied(shared.uri) as proxy:
        flags = ("--model-uri", f"models:/{name}@champion")
        first = headway(*flags, MLFLOW_TRACKING_URI=proxy.uri, HEADWAY_REGISTRY__CACHE_DIR=str(tmp_path / "one"))
        first.until_ready()
        assert first.terminate() == 0
        assert headway_cache(tmp_path / "one", "export", str(tmp_path / "backup.tar")).returncode == 0
        assert headway_cache(tmp_path / "two", "import", str(tmp_path / "backup.tar")).returncode == 0
        proxy.mode = "cut"
        second = headway(*flags, MLFLOW_TRACKING_URI=proxy.uri, HEADWAY_REGISTRY__CACHE_DIR=str(tmp_path / "two"))
        second.until_ready()
        status = second.status()
        assert (status["version"], status["stale"], status["alias"]) == ("1", True, "champion")
