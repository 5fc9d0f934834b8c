"""Opens a skops file: the objects that it describes are checked before they are made, and again before they are used.

skops says of which types an object is; what an array holds is between the file and scikit-learn's compiled code, which
indexes by it without looking. Raises InvalidModel with the reasons.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from registry.errors import InvalidModel
from serving.archives import FREE
from serving.estimators.layout import Layout, Parts, survey
from serving.estimators.native import native_reasons
from serving.estimators.rules import rule_reasons
from serving.slim import skops_io
from serving.trusted_types import TRUSTED_SKOPS

MOST_REASONS = 3


def skops_reasons(file: Path) -> Iterator[str]:
    """Why a skops file must not be loaded; nothing if it may. Blocks while it reads all of it."""
    try:
        _open(file)
    except InvalidModel as error:
        yield str(error)
    except Exception as error:  # noqa: BLE001  a crafted archive may make the reader fail in any way
        yield f"the skops file cannot be read ({type(error).__name__})"


def load_skops(file: Path) -> Any:
    """The estimator in a skops file. Raises InvalidModel for one that must not be used, or whatever its library raises."""
    return _open(file)


def _open(file: Path) -> Any:
    with warnings.catch_warnings():
        # Of another release of scikit-learn: the version's requirements say so, and its answers are the author's business.
        warnings.filterwarnings("ignore", message="Trying to unpickle estimator", category=UserWarning)
        root = _read(file)
        _refuse("holds types that are not trusted: ", sorted(root.get_unsafe_set() - TRUSTED_SKOPS), ", ")
        layout = Layout()
        _refuse("is not one that scikit-learn would leave: ", survey(root, layout))
        _refuse("would crash who uses it: ", native_reasons(layout))
        estimator = root.construct()
        _refuse("would crash or harm who uses it: ", rule_reasons(layout))
    return estimator


def _read(file: Path) -> Any:
    """What skops understands of the file, of which nothing has been made yet."""
    skops_io()
    from skops.io._audit import get_tree
    from skops.io._utils import read_schema

    with _Members(file) as archive:
        schema, context = read_schema(archive)
        root, parts = get_tree(schema, context, trusted=None), Parts()
        if parts.count(root) > archive.getinfo("schema.json").file_size or parts.inside:
            raise InvalidModel("the skops file describes more than it holds")
        return root


class _Members(ZipFile):
    """Each is read for every part that names it: one of a megabyte, named ten thousand times, would be ten gigabytes."""

    left: int | None = None

    def read(self, name: str | ZipInfo, pwd: bytes | None = None) -> bytes:
        """A member. Raises InvalidModel once more was read than there is, with something to spare."""
        left = sum(member.file_size for member in self.infolist()) + FREE if self.left is None else self.left
        self.left = left - (name if isinstance(name, ZipInfo) else self.getinfo(name)).file_size
        if self.left < 0:
            raise InvalidModel("the skops file names its arrays over and over")
        return super().read(name, pwd)


def _refuse(what: str, reasons: Iterator[str] | list[str], joined: str = "; ") -> None:
    found = list(itertools.islice(reasons, MOST_REASONS if joined == "; " else None))
    if found:
        raise InvalidModel(f"the skops file {what}{joined.join(dict.fromkeys(found))[:300]}")
