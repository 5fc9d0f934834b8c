"""The artifact cache: versions' files on disk, by content, shared by processes, bounded, and whole or not there.

```
<root>/trees/<sha256>/     a version's files; the folder's name is their digest
<root>/versions/<key>      which version has which digest (JSON); its mtime is the last use
<root>/good/<key>          the version that last served a reference (JSON): a start without the registry begins here
<root>/downloads/<key>…    unfinished downloads; what a killed process left is removed by the next one
<root>/damaged/<sha256>/   files that are no longer what their digest says, until they have been fetched again
```

A download is written aside, summed, and renamed into place. Who reads a tree holds a shared lock on its folder, so that
nobody removes what is loaded; the lock ends with the process. A tree is summed again before it is loaded: what was
altered or half written by a crash is set aside and downloaded again, and is never loaded.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import CacheError, InvalidModel
from registry.trees import Lock, digest, whole
from registry.versions import ModelVersion

log = logging.getLogger("headway.registry")
Download = Callable[[ModelVersion, Path], None]
_DIGEST = re.compile(r"[0-9a-f]{64}")
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(slots=True)
class Artifact:
    """A version's files, safe from removal until `release`."""

    path: Path
    digest: str
    size: int
    lock: Lock

    def release(self) -> None:
        """Lets the files go; twice does no harm."""
        self.lock.release()


@dataclass(frozen=True, slots=True)
class Record:
    """One entry of `versions/`."""

    key: str
    uri: str
    digest: str
    size: int
    used: float
    registry: str


class ArtifactCache:
    """The cache below one folder. `registry` tells versions of different registries apart. Methods block."""

    def __init__(
        self, root: Path, max_bytes: int, registry: str, download: Download, progress_seconds: float = 5.0
    ) -> None:
        """`progress_seconds` lie between two log lines of a download that takes long."""
        self.root, self._most, self._registry, self._download = root, max_bytes, registry, download
        self._progress_seconds = progress_seconds
        self._trees, self._versions, self._good = root / "trees", root / "versions", root / "good"
        self.downloads, self._damaged = root / "downloads", root / "damaged"
        with contextlib.suppress(OSError):  # a read-only one may hold all that is needed
            for folder in (self._trees, self._versions, self._good, self.downloads):
                folder.mkdir(parents=True, exist_ok=True)

    # -- one version ----------------------------------------------------------------------------------------------

    def fetch(self, version: ModelVersion) -> Artifact:
        """The version's files, from the cache if they are there and whole, else downloaded.

        Raises CacheError if the folder cannot be used or is full, else what the download raises.
        """
        key = self._key(version.uri, version.source)
        try:
            found = self._open(key)
            if found is not None:
                return found
            with self._alone(key):
                return self._open(key) or self._fill(key, version)
        except OSError as error:
            raise _cache_error(error, version) from error

    def _open(self, key: str) -> Artifact | None:
        """The files that the cache holds for a key, summed anew, or None."""
        record = self._record(key)
        if record is None:
            return None
        path = self._trees / record.digest
        lock = Lock.take(path, shared=True)
        if lock is None:
            return None
        try:
            if whole(path, record.digest):
                with contextlib.suppress(OSError):  # a read-only cache keeps no times
                    _stamp(self._versions / key)
                return Artifact(path, record.digest, record.size, lock)
        except Exception:
            lock.release()
            raise
        lock.release()
        self._set_aside(record.digest, record.uri)
        return None

    def _set_aside(self, sum_: str, uri: str) -> None:
        """Moves altered files out of the way, for people to look at. Their record stays: it says what is missing. Who has
        them loaded goes on with what it read."""
        self._damaged.mkdir(exist_ok=True)
        target = self._damaged / sum_
        shutil.rmtree(target, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):  # another process was quicker
            (self._trees / sum_).rename(target)
        facts = {"uri": uri, "digest": sum_, "moved_to": str(target)}
        log.error("cached files were altered; they are set aside and fetched again", extra=facts)

    def _fill(self, key: str, version: ModelVersion) -> Artifact:
        try:
            return self._download_into_place(key, version)
        except OSError as error:
            if error.errno not in FULL or not self.prune(0):
                raise
        log.warning("the cache's disk was full; unused versions were removed", extra={"uri": version.uri})
        return self._download_into_place(key, version)

    def _download_into_place(self, key: str, version: ModelVersion) -> Artifact:
        self._sweep(key)
        aside = Path(tempfile.mkdtemp(prefix=f"{key}.", dir=self.downloads))
        try:
            began = time.monotonic()
            with _progress(aside, version.uri, self._progress_seconds):
                self._download(version, aside)
            (aside / "registered_model_meta").unlink(missing_ok=True)
            sum_, size = digest(aside)
            aside.chmod(0o755)
            lock = self._place(aside, sum_)
        except InvalidModel as error:
            raise self._still_damaged(key, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        self._write(self._versions / key, {"uri": version.uri, "source": version.source, "digest": sum_, "size": size,
                                           "registry": self._registry})  # fmt: skip
        shutil.rmtree(self._damaged / sum_, ignore_errors=True)  # it is whole again
        log.info("downloaded", extra={"uri": version.uri, "bytes": size, "digest": sum_,
                                      "seconds": round(time.monotonic() - began, 3)})  # fmt: skip
        self.prune(self._most)
        return Artifact(self._trees / sum_, sum_, size, lock)

    def _still_damaged(self, key: str, error: InvalidModel) -> InvalidModel:
        """Why a version cannot be had: also that there are altered files of it, which nobody loads."""
        record = self._record(key)
        if record is None or not (self._damaged / record.digest).is_dir():
            return error
        return InvalidModel(
            f"{error}; its cached files were altered, and are set aside in damaged/{record.digest[:12]}…"
        )

    def _place(self, aside: Path, sum_: str) -> Lock:
        """Renames a whole tree into place, or uses the one that is there already; locked either way. The lock is taken
        before the tree can be seen, and moves with it."""
        target = self._trees / sum_
        while True:
            lock = Lock.take(aside, shared=True)
            assert lock is not None
            try:
                aside.rename(target)
                return lock
            except OSError as error:
                lock.release()
                if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                    raise
            present = Lock.take(target, shared=True)
            if present is not None:
                try:
                    if whole(target, sum_):
                        return present
                except BaseException:
                    present.release()
                    raise
                present.release()  # altered, and perhaps held by another process: not to be used all the same
                self._set_aside(sum_, sum_)

    # -- the last good version ------------------------------------------------------------------------------------

    def remember(self, reference: str, version: ModelVersion) -> None:
        """Notes that a version serves a reference. A disk that refuses is logged: serving does not depend on it."""
        body = {
            "reference": reference, "registry": self._registry, "name": version.name, "version": version.version,
            "source": version.source, "configuration": [list(pair) for pair in version.configuration],
            "run_id": version.run_id, "stage": version.stage, "aliases": list(version.aliases), "exact": version.exact,
        }  # fmt: skip
        try:
            self._write(self._good / self._key(reference), body)
        except OSError as error:
            log.warning("the last good version cannot be noted", extra={"uri": reference, "reason": error.strerror})

    def recall(self, reference: str) -> ModelVersion | None:
        """The version that last served a reference, or None."""
        body = _read(self._good / self._key(reference))
        if body is None:
            return None
        with contextlib.suppress(KeyError, TypeError, ValueError):
            return ModelVersion(
                body["name"], body["version"], body["source"], tuple((k, v) for k, v in body["configuration"]),
                run_id=body["run_id"], stage=body["stage"], aliases=tuple(body["aliases"]), exact=body["exact"],
            )  # fmt: skip
        return None

    # -- all of them ----------------------------------------------------------------------------------------------

    def records(self) -> list[Record]:
        """Every version that the cache holds, least recently used first."""
        found = (self._record(path.name) for path in self._versions.glob("*") if not path.name.startswith("."))
        return sorted((r for r in found if r is not None), key=lambda r: r.used)

    def prune(self, most: int) -> int:
        """Removes least recently used trees until `most` bytes are left; what is loaded stays. Returns bytes removed."""
        sizes: dict[str, int] = {}
        records = self.records()
        for record in records:
            sizes.pop(record.digest, None)  # the last use of a tree is that of its last user
            if (self._trees / record.digest).is_dir():
                sizes[record.digest] = record.size
        orphans = {path.name: 0 for path in self._trees.glob("*") if path.name not in sizes}
        missed = {record.digest for record in records} - sizes.keys()
        for left in self._damaged.glob("*"):
            if left.name not in missed or most == 0:  # no record misses it any more, or the disk is full
                shutil.rmtree(left, ignore_errors=True)
        total, removed = sum(sizes.values()), 0
        for sum_, size in {**orphans, **sizes}.items():
            if (total - removed > most or sum_ in orphans) and self._discard(sum_):
                removed += size
                log.info("removed from the cache", extra={"digest": sum_, "bytes": size})
        return removed

    def damaged(self) -> list[Record]:
        """The versions whose files are not what their digest says, or are gone. Reads everything."""
        return [record for record in self.records() if not whole(self._trees / record.digest, record.digest)]

    @contextlib.contextmanager
    def holding(self, sum_: str) -> Iterator[Path | None]:
        """A tree that nobody removes meanwhile, or None if it is gone."""
        lock = Lock.take(self._trees / sum_, shared=True)
        try:
            yield self._trees / sum_ if lock else None
        finally:
            if lock is not None:
                lock.release()

    def record_path(self, key: str) -> Path:
        """The file of a version's record."""
        return self._versions / key

    def notes(self) -> list[Path]:
        """The files that note which version served a reference last."""
        return sorted(path for path in self._good.glob("*") if not path.name.startswith("."))

    def adopt(self, record: Path, trees: Path) -> Record:
        """Takes over a record and its tree from another cache. Raises CacheError if the files are not what it says."""
        found = _parse(record)
        if found is None:
            raise CacheError(f"the backup's record {record.name} cannot be read")
        if not (self._trees / found.digest).is_dir():
            brought = trees / found.digest
            if not whole(brought, found.digest):
                raise CacheError(f"the backup's files of {found.uri} are not what their digest says")
            self._place(brought, found.digest).release()
        shutil.move(record, self._versions / record.name)
        return found

    def adopt_note(self, note: Path) -> None:
        """Takes over what served last on another machine, unless this one has its own memory."""
        if not (self._good / note.name).exists():
            shutil.move(note, self._good / note.name)

    def _discard(self, sum_: str) -> bool:
        """Removes a tree that nobody holds, and the records that point to it."""
        lock = Lock.take(self._trees / sum_, shared=False, wait=False)
        if lock is None:
            return False
        try:
            for record in self.records():
                if record.digest == sum_:
                    (self._versions / record.key).unlink(missing_ok=True)
            grave = self.downloads / f"{sum_}.removed"
            shutil.rmtree(grave, ignore_errors=True)
            (self._trees / sum_).rename(grave)  # gone in one step, whatever happens to us next
            shutil.rmtree(grave, ignore_errors=True)
        except OSError as error:
            log.warning("cannot remove from the cache", extra={"digest": sum_, "reason": error.strerror})
            return False
        finally:
            lock.release()
        return True

    def _sweep(self, key: str) -> None:
        """Removes what killed downloads of this key left. Its lock is held: nobody else is at it."""
        for left in [*self.downloads.glob(f"{key}.*"), *self.downloads.glob("*.removed")]:
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One process and thread at a time downloads a key; the others wait, and then find it."""
        path, lock = self.downloads / f"{key}.lock", None
        while lock is None:  # who had it has removed it
            path.touch()
            lock = Lock.take(path, shared=False)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who waits for it sees that it is gone, and makes another
            lock.release()

    def _key(self, *parts: str) -> str:
        return hashlib.sha256("\n".join((self._registry, *parts)).encode()).hexdigest()[:32]

    def _record(self, key: str) -> Record | None:
        return _parse(self._versions / key)

    def _write(self, path: Path, body: dict[str, Any]) -> None:
        """Whole or not at all, also for who reads at this moment."""
        descriptor, name = tempfile.mkstemp(prefix=".", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(body, file)
            _stamp(Path(name))
            Path(name).rename(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _stamp(path: Path) -> None:
    """Marks a record as used now. The kernel's own stamps are some milliseconds coarse."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        body = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def _parse(path: Path) -> Record | None:
    body = _read(path)
    with contextlib.suppress(OSError, KeyError, TypeError):
        if body is not None and _DIGEST.fullmatch(body["digest"]):  # it becomes a path
            used = path.stat().st_mtime_ns / 1e9
            return Record(path.name, str(body["uri"]), body["digest"], int(body["size"]), used, str(body["registry"]))
    return None


def _cache_error(error: OSError, version: ModelVersion) -> CacheError:
    if error.errno in FULL:
        return CacheError(f"the disk of registry.cache_dir is full: {version.uri} does not fit")
    if error.errno in READ_ONLY:
        return CacheError(f"registry.cache_dir cannot be written, and does not hold {version.uri}")
    return CacheError(f"registry.cache_dir cannot be used: {error.strerror or type(error).__name__}")


@contextlib.contextmanager
def _progress(folder: Path, uri: str, seconds: float) -> Iterator[None]:
    """A log line every few seconds while a download runs."""
    done = threading.Event()

    def tell() -> None:
        while not done.wait(seconds):
            log.info("downloading", extra={"uri": uri, "bytes": _bytes(folder)})

    thread = threading.Thread(target=tell, daemon=True, name="headway-progress")
    thread.start()
    try:
        yield
    finally:
        done.set()


def _bytes(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):  # files come and go while they are written
            size += path.stat().st_size
    return size
