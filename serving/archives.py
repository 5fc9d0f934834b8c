"""Zip archives, looked at before anything of them is expanded: how many members, of what size, and that every reader of
zip files would see the same ones.

A model file is a zip for skops and for PyTorch's `pt2`. What is stored as it is cannot be larger than its file; what is
deflated may be a thousand times larger, and says its size itself. Readers differ in what they do about bytes before the
archive, comments, doubled names and names in other capitals: an archive that has any of these is refused.
"""

from __future__ import annotations

import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import BinaryIO

from registry.errors import InvalidModel

MEMBERS = 100_000
#: What may come out of an archive: so many bytes, and so many for each of its own.
FREE, EXPANSION = 64 << 20, 20
#: A member that is text is read whole, while nothing else of the process runs.
LONGEST_TEXT = 32 << 20
_NAME = re.compile(r"[\w@+~#=,()\[\] -][\w.@+~#=,()\[\] -]*(/[\w.@+~#=,()\[\] -]+)*", re.ASCII)
_CHUNK = 1 << 20
_UNREADABLE = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, RuntimeError, ValueError, OSError)
_END, _WIDE_END, _WIDE_PLACE = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")


def check_archive(file: Path, *, stored: bool = False) -> list[zipfile.ZipInfo]:
    """The members of an archive, if they are within bounds. Raises InvalidModel that says which is not.

    `stored` allows no compression. Compressed members are expanded once, in slices, and nothing of them is kept.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            count = _check_directory(stream, size)
            with zipfile.ZipFile(stream) as archive:
                found = archive.infolist()
                if len(found) != count:
                    raise InvalidModel("the archive lies about how many members it has")
                _check_names(found)
                _check_sizes(found, size, stored)
                for member in found:
                    _check_contents(archive, member)
    except _UNREADABLE as error:
        raise InvalidModel(f"the archive cannot be read ({type(error).__name__})") from error
    return found


def read_text(archive: zipfile.ZipFile, name: str) -> bytes:
    """A member that is text. Raises InvalidModel if it is too long, KeyError if there is none."""
    if archive.getinfo(name).file_size > LONGEST_TEXT:
        raise InvalidModel(f"the archive's {name[-64:]!r} is longer than {LONGEST_TEXT} bytes")
    return archive.read(name)


def _check_directory(stream: BinaryIO, size: int) -> int:
    """How many members there are. Their list lies where the end of the file says, and ends there: no comment, nothing before
    the archive."""
    count, length, start, ended = _end(stream, size)
    if start + length != ended:
        raise InvalidModel("the archive is not one plain zip file: bytes lie before or after it")
    if count > MEMBERS or length > MEMBERS * 128:
        raise InvalidModel(f"the archive has more than {MEMBERS} members")
    return count


def _end(stream: BinaryIO, size: int) -> tuple[int, int, int, int]:
    """Of the list of members: how many, how many bytes, where it begins, and where it must end."""
    place = size - _END.size
    sign, _, _, _, count, length, start, comment = _END.unpack(_at(stream, place, _END.size))
    if sign != b"PK\5\6" or comment:
        raise InvalidModel("the archive is not one plain zip file: it has a comment, or is none")
    before = _at(stream, max(0, place - _WIDE_PLACE.size), _WIDE_PLACE.size)
    if before[:4] != b"PK\6\7":
        return count, length, start, place
    _, _, wide, _ = _WIDE_PLACE.unpack(before)
    sign, _, _, _, _, _, _, count, length, start = _WIDE_END.unpack(_at(stream, wide, _WIDE_END.size))
    if sign != b"PK\6\6" or wide + _WIDE_END.size + _WIDE_PLACE.size != place:
        raise InvalidModel("the archive is not one plain zip file: its two ends disagree")
    return count, length, start, wide


def _at(stream: BinaryIO, place: int, length: int) -> bytes:
    stream.seek(place)
    return stream.read(length)


def _check_names(found: Iterable[zipfile.ZipInfo]) -> None:
    seen: set[str] = set()
    for member in found:
        name = member.filename
        if (
            len(name) > 512
            or member.orig_filename != name
            or not _NAME.fullmatch(name.rstrip("/"))
            or "/../" in f"/{name}/"
        ):
            raise InvalidModel("the archive has a member whose name is not plain")
        if name.lower() in seen:
            raise InvalidModel(f"the archive has {name[-64:]!r} twice")
        seen.add(name.lower())


def _check_sizes(found: Iterable[zipfile.ZipInfo], size: int, stored: bool) -> None:
    kept = total = 0
    for member in found:
        plain = member.compress_type == zipfile.ZIP_STORED
        if member.flag_bits & 1 or not (plain or (member.compress_type == zipfile.ZIP_DEFLATED and not stored)):
            raise InvalidModel("the archive has a member that is encrypted, or compressed in a way that is not read")
        if plain and member.file_size != member.compress_size:
            raise InvalidModel("the archive has a member that lies about its size")
        kept, total = kept + member.compress_size, total + member.file_size
    if kept > size:
        raise InvalidModel("the archive's members overlap")
    if total > FREE + EXPANSION * size:
        raise InvalidModel(f"the archive expands to {total} bytes, more than {EXPANSION} times its size")


def _check_contents(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    """That no more comes out of a deflated member than it says; a reader that believes it would take all of it at once."""
    if member.compress_type == zipfile.ZIP_STORED:
        return
    raw = copy(member)
    raw.compress_type, raw.file_size, raw.CRC = zipfile.ZIP_STORED, member.compress_size, None  # type: ignore[assignment]
    inflate, came = zlib.decompressobj(-zlib.MAX_WBITS), 0
    with archive.open(raw) as packed:
        while came <= member.file_size and (piece := inflate.unconsumed_tail or packed.read(_CHUNK)):
            came += len(inflate.decompress(piece, _CHUNK))
    if came != member.file_size:
        raise InvalidModel("the archive has a member that lies about its size")
