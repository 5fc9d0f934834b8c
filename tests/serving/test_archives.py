"""An archive is bounded before it is expanded, and no two readers see other members in it."""

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import skops.io
from sklearn.ensemble import RandomForestClassifier

from registry.errors import InvalidModel
from serving.archives import FREE, MEMBERS, check_archive
from tests.crafted import SUMS, Spot, answer, estimator, load


def packed(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def bomb() -> bytes:
    """A hundred times what is let through, in a file of a few hundred kilobytes."""
    return packed(("schema.json", b" " * (4 * FREE)))


def liar() -> bytes:
    """A member that says ten bytes and gives 256 million, with the checksum of the ten."""
    plain = packed(("schema.json", b" " * (4 * FREE)))
    honest = struct.pack("<L", 4 * FREE)
    sum_, said = struct.pack("<L", zlib.crc32(b" " * (4 * FREE))), struct.pack("<L", zlib.crc32(b" " * 10))
    return plain.replace(honest, struct.pack("<L", 10)).replace(sum_, said)


def overlapping() -> bytes:
    """One member's bytes, listed a thousand times."""
    first = packed(("a", b"x" * 10_000), how=zipfile.ZIP_STORED)
    place = first.index(b"PK\1\2")
    entry, end = first[place : first.index(b"PK\5\6")], first[first.index(b"PK\5\6") :]
    names = [f"{i:x}" for i in range(10, 16)]
    entries = b"".join(entry[:-1] + name.encode() for name in names)
    size = struct.pack("<HHLL", len(names), len(names), len(entries), place)
    return first[:place] + entries + end[:8] + size + end[20:]


def many() -> bytes:
    return packed(*((str(i), b"") for i in range(MEMBERS + 1)), how=zipfile.ZIP_STORED)


CRAFTED: dict[str, tuple[Callable[[], bytes], str]] = {
    "a bomb": (bomb, "expands to"),
    "a liar": (liar, "lies about its size"),
    "overlapping members": (overlapping, "overlap|cannot be read"),
    "too many members": (many, "members"),
    "doubled names": (lambda: packed(("a/b", b"1"), ("a/B", b"2")), "twice"),
    "a name that leads out": (lambda: packed(("a/../b", b"1")), "not plain"),
    "an absolute name": (lambda: packed(("/etc/passwd", b"1")), "not plain"),
    "bytes before it": (lambda: b"#!/bin/sh\n" + packed(("a", b"1")), "bytes lie before"),
    "bytes after it": (lambda: packed(("a", b"1")) + b"more", "comment, or is none"),
    "another compression": (lambda: packed(("a", b"1"), how=zipfile.ZIP_LZMA), "compressed in a way"),
    "no archive": (lambda: b"nothing of the kind, but of some length", "comment, or is none"),
    "nothing": (lambda: b"", "cannot be read"),
}


@pytest.mark.audit("26")
@pytest.mark.parametrize("case", CRAFTED.values(), ids=CRAFTED)
def test_a_crafted_archive_is_refused_before_it_is_expanded(
    tmp_path: Path, case: tuple[Callable[[], bytes], str]
) -> None:
    """Each by its reason."""
    make, why = case
    file = tmp_path / "crafted"
    file.write_bytes(make())
    with pytest.raises(InvalidModel, match=why):
        check_archive(file)


@pytest.mark.audit("26")
@pytest.mark.parametrize("make", [bomb, liar])
def test_a_bomb_in_a_skops_file_is_a_reason(tmp_path: Path, make: Callable[[], bytes]) -> None:
    """It is never given to the library."""
    spot = Spot(tmp_path)
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    (spot.model / "model.skops").write_bytes(make())
    with pytest.raises(InvalidModel, match="skops file cannot be read: the archive"):
        load(spot.model)


@pytest.mark.audit("26")
def test_a_description_that_would_stop_the_process_is_a_reason(tmp_path: Path) -> None:
    """It is parsed in one go, whatever else waits."""
    spot = Spot(tmp_path)
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    (spot.model / "model.skops").write_bytes(packed(("schema.json", b"[" + b"1," * (20 << 19) + b"1]")))
    with pytest.raises(InvalidModel, match="its description has"):
        load(spot.model)


def test_honest_archives_are_read(tmp_path: Path) -> None:
    """Stored ones of any size, compressed ones as far as arrays compress, and a hundred megabytes of zeros in them."""
    forest = RandomForestClassifier(20).fit(np.random.default_rng(1).random((500, 8)), np.arange(500) % 2)
    file = tmp_path / "model.skops"
    for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        skops.io.dump(forest, file, compression=how)
        assert len(check_archive(file)) > 20
    file.write_bytes(packed(("array.npy", bytes(100 << 20)), how=zipfile.ZIP_STORED))
    assert check_archive(file)[0].file_size == 100 << 20
    file.write_bytes(packed(("array.npy", bytes(FREE // 2))))
    assert check_archive(file)[0].file_size == FREE // 2


def test_an_honest_compressed_model_answers(tmp_path: Path) -> None:
    """What passes is what the library reads."""
    spot = Spot(tmp_path)
    spot.save(mlflow.sklearn, estimator(), serialization_format="skops")
    skops.io.dump(estimator(), spot.model / "model.skops", compression=zipfile.ZIP_DEFLATED)
    assert answer(load(spot.model)) == SUMS


@pytest.mark.audit("26")
def test_an_exported_program_is_stored_and_not_compressed(tmp_path: Path) -> None:
    """PyTorch's writer compresses nothing, and its reader would expand anything."""
    file = tmp_path / "model.pt2"
    file.write_bytes(packed(("model/archive_version", b"0")))
    with pytest.raises(InvalidModel, match="compressed"):
        check_archive(file, stored=True)
