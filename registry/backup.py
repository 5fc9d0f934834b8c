"""A cache as one file, from which another machine can start without a registry: a tar of whole, summed trees."""

from __future__ import annotations

import re
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from registry.cache import ArtifactCache, Record
from registry.errors import CacheError
from registry.trees import whole

_KEY = re.compile(r"[0-9a-f]{32}")
Tell = Callable[[str], None]


def export(cache: ArtifactCache, file: Path, tell: Tell) -> int:
    """Writes every whole version and the notes of what served last; returns the number of versions.

    Damaged versions are left out, and told. The file appears when it is complete. Raises OSError.
    """
    part = file.with_name(file.name + ".part")
    try:
        with tarfile.open(part, "w") as tar:
            trees: set[str] = set()
            exported = [record for record in cache.records() if _add(cache, tar, trees, record, tell)]
            for note in cache.notes():
                tar.add(note, f"good/{note.name}")
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
    return len(exported)


def _add(cache: ArtifactCache, tar: tarfile.TarFile, trees: set[str], record: Record, tell: Tell) -> bool:
    with cache.holding(record.digest) as tree:
        if tree is None or not whole(tree, record.digest):
            tell(f"{record.uri} is damaged or gone, and left out")
            return False
        if record.digest not in trees:  # equal content is stored once
            tar.add(tree, f"trees/{record.digest}")
            trees.add(record.digest)
        tar.add(cache.record_path(record.key), f"versions/{record.key}")
        tell(f"{record.uri}  {record.size} bytes")
        return True


def restore(cache: ArtifactCache, file: Path, tell: Tell) -> int:
    """Adds what a file of `export` holds; returns the number of versions. What is there already stays.

    Every tree is summed before it is believed; members that would leave the folder are refused. Raises CacheError or
    OSError, and then nothing half is kept.
    """
    aside = Path(tempfile.mkdtemp(prefix="import.", dir=cache.downloads))
    try:
        with tarfile.open(file, "r:") as tar:
            _unpack(tar, aside)
        found = [cache.adopt(path, aside / "trees") for path in _named(aside / "versions")]
        for record in found:
            tell(f"{record.uri}  {record.size} bytes")
        for note in _named(aside / "good"):
            cache.adopt_note(note)
        return len(found)
    except tarfile.TarError as error:
        raise CacheError(f"{file} is no file of `headway cache export`, or a damaged one: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _unpack(tar: tarfile.TarFile, into: Path) -> None:
    """Files and folders, as ours and nobody else's. Not `extractall`: it is safe from Python 3.11.4 on, and Debian has 3.11.2.

    Raises CacheError for anything else, and for what would lie elsewhere.
    """
    for member in tar:
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise CacheError(f"{member.name!r} would be written outside of the cache")
        path = into / name
        if member.isdir():
            path.mkdir(parents=True, exist_ok=True)
            continue
        source = tar.extractfile(member) if member.isreg() else None
        if source is None:
            raise CacheError(f"{member.name!r} is no file and no folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        with source, path.open("xb") as out:
            shutil.copyfileobj(source, out)


def _named(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.glob("*")) if _KEY.fullmatch(path.name))
