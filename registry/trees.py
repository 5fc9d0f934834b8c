"""Folders of files as content: their digest, their size, and locks that live as long as somebody reads them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from registry.errors import InvalidModel

#: Written by MLflow's client beside what it downloads; it is no part of the model.
NOT_CONTENT = "registered_model_meta"


def files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every regular file below `root` as (relative path, path), sorted. Raises InvalidModel for a link or a device:
    a model's files lie in its own folder."""
    found = []
    for folder, folders, names in os.walk(root):
        for path in (Path(folder) / name for name in [*names, *folders]):
            if path.is_dir() and not path.is_symlink():
                continue
            if not stat.S_ISREG(path.lstat().st_mode):
                raise InvalidModel(
                    f"the version's files hold a link or a device: {path.relative_to(root).as_posix()[:64]!r}"
                )
            found.append((path.relative_to(root).as_posix(), path))
    return iter(sorted(item for item in found if item[0] != NOT_CONTENT))


def digest(root: Path) -> tuple[str, int]:
    """SHA-256 over the tree, in hexadecimal, and its size in bytes.

    It is the sum of a list of sums, and can be checked by hand:
    `find . -type f ! -path ./registered_model_meta | LC_ALL=C sort | sed s,^./,, | xargs sha256sum | sha256sum`
    """
    whole, size = hashlib.sha256(), 0
    for name, path in files(root):
        with path.open("rb") as file:
            whole.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
        size += path.stat().st_size
    return whole.hexdigest(), size


def whole(root: Path, sum_: str) -> bool:
    """Whether a tree is there and is what its digest says. One that holds a link, or a file that may not be read, is not.

    Raises OSError for what says nothing of the tree, such as too many open files.
    """
    try:
        return root.is_dir() and digest(root)[0] == sum_
    except (InvalidModel, FileNotFoundError, PermissionError):
        return False


class Lock:
    """An advisory lock on a file or folder, held until `release` or until the process ends, however it ends.

    A folder may be locked on a read-only disk. Shared by readers; exclusive to who removes.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor: int | None = descriptor

    @classmethod
    def take(cls, path: Path, *, shared: bool, wait: bool = True) -> Lock | None:
        """The lock, or None if the path is gone or, without `wait`, if somebody holds it."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            if _same(descriptor, path):
                return cls(descriptor)
        except BlockingIOError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def release(self) -> None:
        """Gives the lock back; twice does no harm."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _same(descriptor: int, path: Path) -> bool:
    """Whether what was locked still lies at the path: it may have been moved away while we waited."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
