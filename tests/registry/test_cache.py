"""The artifact cache: whole or not there, shared, bounded, and good for a start without the registry."""

import logging
import multiprocessing
import os
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from registry.backup import export, restore
from registry.cache import ArtifactCache
from registry.errors import CacheError, InvalidModel
from registry.trees import Lock, digest
from registry.versions import ModelVersion


class Store:
    """Downloads that are folders of our making; between two files it waits `until`, and raises `fail`."""

    def __init__(
        self, until: Callable[[], Any] = lambda: True, fail: Exception | None = None, megabytes: float = 0.0
    ) -> None:
        self.until, self.fail, self.megabytes = until, fail, megabytes
        self.calls = 0

    def __call__(self, version: ModelVersion, into: Path) -> None:
        self.calls += 1
        (into / "MLmodel").write_text(f"{version.name} {version.version}")
        until(self.until)
        if self.fail is not None:
            raise self.fail
        (into / "data").mkdir()
        (into / "data" / "weights").write_bytes(os.urandom(int(self.megabytes * 2**20)) or version.version.encode())
        (into / "registered_model_meta").write_text("written by the client")


def cache(root: Path, store: Store | None = None, most: int = 2**40) -> ArtifactCache:
    return ArtifactCache(root, most, "http://registry", store or Store())


def version(number: int, name: str = "m") -> ModelVersion:
    return ModelVersion(name, str(number), f"models:/m-{number}")


def leftovers(root: Path) -> list[str]:
    """What downloads have left behind."""
    return [p.name for p in (root / "downloads").iterdir()]


def until(condition: Callable[[], Any], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_a_version_is_downloaded_once_and_named_by_its_content(tmp_path: Path) -> None:
    """The second fetch finds it, in another process too; the folder's name is the digest of what it holds."""
    store = Store()
    first = cache(tmp_path, store).fetch(version(1))
    second = cache(tmp_path, store).fetch(version(1))
    assert (first.path, first.digest, first.size) == (second.path, second.digest, second.size)
    assert store.calls == 1
    assert first.path.name == first.digest == digest(first.path)[0]
    assert not (first.path / "registered_model_meta").exists()
    assert leftovers(tmp_path) == []


def test_the_digest_is_the_one_that_the_documented_command_prints(tmp_path: Path) -> None:
    """So that anybody can check it without us."""
    (tmp_path / "sub").mkdir()
    for name in ("a b", "sub/c", "sub-1", "Z", "registered_model_meta"):
        (tmp_path / name).write_text(name)
    command = "find . -type f ! -path ./registered_model_meta | LC_ALL=C sort | sed s,^./,, | xargs -d '\\n' sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert printed.split()[0] == digest(tmp_path)[0]


def test_two_registries_and_two_sources_are_two_things(tmp_path: Path) -> None:
    """The same name and number elsewhere, or registered anew, is fetched; equal content is kept once."""
    store = Store()
    for registry, source in (("a", "x"), ("b", "x"), ("a", "y")):
        ArtifactCache(tmp_path, 2**40, registry, store).fetch(ModelVersion("m", "1", source)).release()
    assert store.calls == 3
    assert len(list((tmp_path / "trees").iterdir())) == 1


def test_files_that_were_altered_are_fetched_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A flipped byte in the cache is noticed before anything is loaded, and said."""
    store = Store()
    artifact = cache(tmp_path, store).fetch(version(1))
    (artifact.path / "data" / "weights").write_text("evil")
    artifact.release()
    assert [r.digest for r in cache(tmp_path).damaged()] == [artifact.digest]
    again = cache(tmp_path, store).fetch(version(1))
    assert (store.calls, digest(again.path)[0]) == (2, again.digest)
    assert "altered" in caplog.text
    assert cache(tmp_path).damaged() == []


@pytest.mark.audit("40")
def test_files_that_were_altered_and_cannot_be_fetched_again_are_set_aside(tmp_path: Path) -> None:
    """They are not loaded, and not deleted; the error says where they are. When the store answers, all is as before."""
    artifact = cache(tmp_path).fetch(version(1))
    (artifact.path / "data" / "weights").write_text("evil")
    artifact.release()
    down = cache(tmp_path, Store(fail=InvalidModel("the files of models:/m/1 could not be downloaded")))
    for _ in range(2):
        with pytest.raises(InvalidModel, match=f"set aside in damaged/{artifact.digest[:12]}"):
            down.fetch(version(1))
    assert (tmp_path / "damaged" / artifact.digest / "data" / "weights").read_text() == "evil"
    assert not artifact.path.exists()
    assert [r.digest for r in down.damaged()] == [artifact.digest]
    again = cache(tmp_path).fetch(version(1))
    assert (again.digest, list((tmp_path / "damaged").iterdir())) == (artifact.digest, [])


@pytest.mark.audit("40")
def test_altered_files_that_another_process_holds_are_not_used(tmp_path: Path) -> None:
    """Whoever has them loaded goes on with what it read; who comes now gets the files that were registered."""
    held = cache(tmp_path).fetch(version(1))
    (held.path / "data" / "weights").write_text("evil")
    found = cache(tmp_path).fetch(version(1))
    assert digest(found.path)[0] == found.digest == held.digest
    held.release()


@pytest.mark.audit("40")
def test_what_was_set_aside_goes_with_its_record(tmp_path: Path) -> None:
    """A prune leaves it while something misses it, and takes it when room is needed."""
    artifact = cache(tmp_path).fetch(version(1))
    (artifact.path / "MLmodel").write_text("evil")
    artifact.release()
    down = cache(tmp_path, Store(fail=InvalidModel("down")))
    with pytest.raises(InvalidModel):
        down.fetch(version(1))
    assert down.prune(2**40) == 0
    assert len(list((tmp_path / "damaged").iterdir())) == 1
    down.prune(0)
    assert list((tmp_path / "damaged").iterdir()) == []


def test_a_link_put_into_a_cached_version_is_an_alteration(tmp_path: Path) -> None:
    """Files that were tampered with are listed as damaged, left out of a backup, and fetched again."""
    store, told = Store(), list[str]()
    artifact = cache(tmp_path, store).fetch(version(1))
    (artifact.path / "link").symlink_to("/etc/passwd")
    artifact.release()
    assert [r.digest for r in cache(tmp_path).damaged()] == [artifact.digest]
    assert export(cache(tmp_path), tmp_path / "backup.tar", told.append) == 0
    assert told == ["models:/m/1 is damaged or gone, and left out"]
    again = cache(tmp_path, store).fetch(version(1))
    assert (store.calls, sorted(p.name for p in again.path.iterdir())) == (2, ["MLmodel", "data"])
    assert cache(tmp_path).damaged() == []


def test_a_backup_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    """A version has none, whatever the link points at."""
    there, here = cache(tmp_path / "there"), cache(tmp_path / "here")
    artifact = there.fetch(version(1))
    (artifact.path / "link").symlink_to("MLmodel")
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        for name in ("trees", "versions"):
            tar.add(there.root / name, name)
    with pytest.raises(CacheError, match="link' is no file and no folder"):
        restore(here, tmp_path / "backup.tar", lambda line: None)
    assert (here.records(), leftovers(here.root)) == ([], [])


def test_a_folder_that_cannot_be_opened_is_an_error_of_the_cache(tmp_path: Path) -> None:
    """One sentence that names the setting, without a path: it is shown in the status."""
    artifact = cache(tmp_path).fetch(version(1))
    artifact.release()
    artifact.path.rename(tmp_path / "away")
    artifact.path.symlink_to(artifact.path)
    with pytest.raises(CacheError, match=r"^registry\.cache_dir cannot be used: [\w ]+$"):
        cache(tmp_path).fetch(version(1))


@pytest.mark.parametrize("target", ["/etc/passwd", "MLmodel", "data"])
def test_links_are_no_content(tmp_path: Path, target: str) -> None:
    """A model's files lie in its own folder: a link to anywhere is refused, and nothing is kept."""

    def with_link(version: ModelVersion, into: Path) -> None:
        Store()(version, into)
        (into / "link").symlink_to(target)

    with pytest.raises(InvalidModel, match="link"):
        ArtifactCache(tmp_path, 2**40, "r", with_link).fetch(version(1))
    assert leftovers(tmp_path) == []
    assert cache(tmp_path).records() == []


def test_a_failed_download_leaves_nothing_and_its_reason(tmp_path: Path) -> None:
    """The error is the download's own."""
    with pytest.raises(InvalidModel, match="gone"):
        cache(tmp_path, Store(fail=InvalidModel("gone"))).fetch(version(1))
    assert leftovers(tmp_path) == []
    assert cache(tmp_path).fetch(version(1)).size > 0


def test_least_recently_used_goes_first_and_what_is_loaded_stays(tmp_path: Path) -> None:
    """The bound counts bytes; a held version survives whatever its age."""
    store = Store(megabytes=1)
    held = cache(tmp_path, store).fetch(version(1))
    for number in (2, 3):
        cache(tmp_path, store).fetch(version(number)).release()
    cache(tmp_path, store).fetch(version(2)).release()  # used again: now 3 is older
    small = cache(tmp_path, store, most=int(3.5 * 2**20))
    small.fetch(version(4)).release()
    assert sorted(r.uri for r in small.records()) == ["models:/m/1", "models:/m/2", "models:/m/4"]
    assert held.path.exists()
    assert small.prune(0) >= 2 * 2**20
    assert [r.uri for r in small.records()] == ["models:/m/1"]
    held.release()
    held.release()
    small.prune(0)
    assert list((tmp_path / "trees").iterdir()) == []
    assert leftovers(tmp_path) == []


def test_many_threads_download_a_version_once(tmp_path: Path) -> None:
    """The others wait for the first and use what it brought."""
    begun, digests = list[int](), list[str]()
    store = Store(until=lambda: len(begun) == 8)

    def fetch() -> None:
        begun.append(1)
        digests.append(shared.fetch(version(1)).digest)

    shared = cache(tmp_path, store)
    together(8, fetch)
    assert (store.calls, len(digests), len(set(digests))) == (1, 8, 1)
    assert leftovers(tmp_path) == []


def together(count: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_downloads_that_fail_are_tried_one_after_the_other(tmp_path: Path) -> None:
    """Each that waited tries for itself, never two at once, and no lock file stays."""
    running, most, failed = list[int](), list[int](), list[int]()

    def fail(version: ModelVersion, into: Path) -> None:
        running.append(1)
        most.append(len(running))
        time.sleep(0.002)  # so that two at once would meet
        running.pop()
        raise InvalidModel("gone")

    def fetch() -> None:
        for _ in range(5):
            with pytest.raises(InvalidModel, match="gone"):
                ArtifactCache(tmp_path, 2**40, "r", fail).fetch(version(1))
            failed.append(1)

    together(8, fetch)
    assert (len(failed), max(most)) == (40, 1)
    assert leftovers(tmp_path) == []


def _fetch(root: Path, store: Store, number: int) -> None:
    cache(root, store).fetch(version(number))


def test_several_processes_share_and_prune_a_cache(tmp_path: Path) -> None:
    """Fetching, holding and pruning at once in four processes: everybody gets whole trees, and nobody loses a held one."""
    context = multiprocessing.get_context("fork")

    def work(seed: int) -> None:
        tight = cache(tmp_path, Store(megabytes=0.2), most=int(0.5 * 2**20))
        for step in range(30):
            artifact = tight.fetch(version((seed * 7 + step) % 5))
            assert digest(artifact.path)[0] == artifact.digest
            artifact.release()
        os._exit(0)

    workers = [context.Process(target=work, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [w.exitcode for w in workers] == [0, 0, 0, 0]
    assert leftovers(tmp_path) == []


def test_a_killed_download_is_cleaned_up_by_the_next(tmp_path: Path) -> None:
    """kill -9 in the middle: no half tree can be seen, and the next fetch starts clean."""
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_fetch, args=(tmp_path, Store(until=lambda: False), 1))
    killed.start()
    assert killed.pid is not None
    until(lambda: any((tmp_path / "downloads").glob("*/MLmodel")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert len(leftovers(tmp_path)) == 2  # half a tree, and the lock that nobody holds
    assert cache(tmp_path).records() == []
    artifact = cache(tmp_path).fetch(version(1))
    assert digest(artifact.path)[0] == artifact.digest
    assert leftovers(tmp_path) == []


def test_a_crash_between_rename_and_record_leaves_an_orphan_that_pruning_removes(tmp_path: Path) -> None:
    """Nothing is lost but the space, and that only until the next prune."""
    artifact = cache(tmp_path).fetch(version(1))
    for record in (tmp_path / "versions").iterdir():
        record.unlink()
    artifact.release()
    cache(tmp_path).prune(2**40)
    assert not artifact.path.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"uri": 1}', "null", '{"uri": "u", "digest": "../..", "size": 1, "registry": "r"}']
)
def test_a_damaged_record_is_no_record(tmp_path: Path, text: str) -> None:
    """The version is fetched again; listing goes on."""
    cache(tmp_path).fetch(version(1)).release()
    record = next((tmp_path / "versions").iterdir())
    record.write_text(text)
    assert cache(tmp_path).records() == []
    assert cache(tmp_path).fetch(version(1)).size > 0


def test_the_last_good_version_is_remembered_per_reference_and_registry(tmp_path: Path) -> None:
    """With all that configures it: that is what an offline start serves."""
    one = ModelVersion(
        "m", "3", "s3://x", (("headway.task", "classification"),), "run", "Production", ("a", "b"), exact=""
    )
    kept = cache(tmp_path)
    assert kept.recall("models:/m@a") is None
    kept.remember("models:/m@a", one)
    kept.remember("models:/m@b", version(4))
    found = cache(tmp_path).recall("models:/m@a")
    assert found == one
    assert found is not None
    assert (found.stage, found.aliases, found.run_id) == ("Production", ("a", "b"), "run")
    assert ArtifactCache(tmp_path, 1, "http://other", Store()).recall("models:/m@a") is None
    next(iter((tmp_path / "good").iterdir())).write_text("{}")
    assert {cache(tmp_path).recall("models:/m@a"), cache(tmp_path).recall("models:/m@b")} & {None}


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Path]:
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], check=False).returncode
    ):
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_makes_room_or_says_so(little: Path) -> None:
    """Unused versions go first; what is held stays whole; the error names the setting."""
    held = cache(little, Store(megabytes=0.4)).fetch(version(1))
    cache(little, Store(megabytes=0.4)).fetch(version(2)).release()
    cache(little, Store(megabytes=0.4)).fetch(version(3)).release()
    assert [r.uri for r in cache(little).records()] == ["models:/m/1", "models:/m/3"]
    with pytest.raises(CacheError, match=r"disk of registry.cache_dir is full: models:/m/4"):
        cache(little, Store(megabytes=0.9)).fetch(version(4))
    assert leftovers(little) == []
    assert digest(held.path)[0] == held.digest


def test_a_read_only_cache_serves_what_it_holds(little: Path) -> None:
    """And names the setting for what it does not."""
    cache(little).fetch(version(1)).release()
    subprocess.run(["mount", "-o", "remount,ro", little], check=True)
    assert cache(little).fetch(version(1)).size > 0
    with pytest.raises(CacheError, match=r"cache_dir cannot be written, and does not hold models:/m/2"):
        cache(little).fetch(version(2))
    cache(little).remember("models:/m/1", version(1))  # logged, not raised


def test_a_slow_download_says_how_far_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Again and again a line with the bytes so far."""
    caplog.set_level(logging.INFO)

    def told() -> list[int]:
        return [r.__dict__["bytes"] for r in caplog.records if r.message == "downloading"]

    slow = Store(until=lambda: len(told()) > 2)
    ArtifactCache(tmp_path, 2**40, "r", slow, progress_seconds=0.01).fetch(version(1))
    assert told()[-1] == len("m 1")


def test_a_lock_sees_that_its_folder_was_replaced(tmp_path: Path) -> None:
    """Who waited for a folder that was removed meanwhile does not believe to hold it."""
    tree = tmp_path / "tree"
    assert Lock.take(tree, shared=True) is None
    tree.mkdir()
    first = Lock.take(tree, shared=True)
    assert first is not None
    assert Lock.take(tree, shared=False, wait=False) is None
    got: list[Lock | None] = []
    waiter = threading.Thread(target=lambda: got.append(Lock.take(tree, shared=False)))
    waiter.start()
    until(lambda: waits_for(tree))
    tree.rename(tmp_path / "elsewhere")
    first.release()
    waiter.join()
    assert got == [None]


def waits_for(path: Path) -> bool:
    """Whether somebody waits for a lock on the path (Linux)."""
    inode = f":{path.stat().st_ino} "
    return any("->" in line and inode in line for line in Path("/proc/locks").read_text().splitlines())
