"""A `pt2` archive, read as data: its records are PyTorch's own and within bounds, and its program is no code.

Two kinds of objections: `broken` is never loaded; what `code_in` finds is code in effect, and loads where code is allowed.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterator
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import torch

from registry.archives import check_pt2
from registry.errors import InvalidModel
from serving.archives import check_archive, read_text
from serving.pt2.program import texts_refused
from serving.pt2.sizes import KEY

_TOP = re.compile(r"[\w.-]+")
_RECORDS = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)|\.format_version|\.storage_alignment|"
    r"models/model\.json|data/sample_inputs/model\.pt|"
    r"data/weights/(model\.pt|model_weights_config\.json|weight_\d{1,6})|"
    r"data/constants/(model\.pt|model_constants_config\.json|tensor_\d{1,6})"
)
_COMPILED = re.compile(r"data/(aotinductor|executorch)/")
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_SAMPLES, _PROGRAM = "data/sample_inputs/model.pt", "models/model.json"


def broken(file: Path) -> str | None:
    """Why the archive is never loaded, or None."""
    try:
        members = check_archive(file, stored=True)
        with zipfile.ZipFile(file) as archive:
            top = _top(members)
            _check_records(archive, members, top)
            check_pt2(file)
            _check_samples(archive.read(f"{top}/{_SAMPLES}"))
    except (KeyError, zipfile.BadZipFile):
        return "the pt2 archive lacks a record that PyTorch writes: export the network again with PyTorch 2.8 or later"
    except InvalidModel as error:
        return str(error)
    return None


def code_in(file: Path) -> Iterator[str]:
    """The keys of texts that PyTorch would evaluate, and which are not what its exporter writes. Nothing for a broken one."""
    try:
        members = check_archive(file, stored=True)
        with zipfile.ZipFile(file) as archive:
            program = json.loads(read_text(archive, f"{_top(members)}/{_PROGRAM}").decode("utf-8"))
    except (InvalidModel, ValueError, KeyError, RecursionError, zipfile.BadZipFile):
        return
    yield from texts_refused(program)


def _top(members: list[zipfile.ZipInfo]) -> str:
    """The folder that all records lie in."""
    tops = {member.filename.partition("/")[0] for member in members}
    if len(tops) != 1 or not all(map(_TOP.fullmatch, tops)):
        raise InvalidModel(
            "the pt2 archive is not as PyTorch writes it: its records lie in several folders, or in none"
        )
    return tops.pop()


def _check_records(archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], top: str) -> None:
    sizes = {member.filename.removeprefix(f"{top}/"): member.file_size for member in members}
    for name in sizes:
        if not _RECORDS.fullmatch(name):
            kind = "compiled code" if _COMPILED.match(name) else "a record that PyTorch's exporter does not write"
            raise InvalidModel(f"the pt2 archive holds {kind}: {name[:64]!r}")
    for config in _CONFIGS:
        if config in sizes:
            _check_config(read_text(archive, f"{top}/{config}"), config.rpartition("/")[0], sizes)
    read_text(archive, f"{top}/{_PROGRAM}")


def _check_config(text: bytes, folder: str, sizes: dict[str, int]) -> None:
    """Tensors as bytes, each no larger than its record; none pickled."""
    try:
        for name, entry in json.loads(text.decode("utf-8"))["config"].items():
            record, meta = f"{folder}/{entry['path_name']}", entry["tensor_meta"]
            shape = [size["as_int"] for size in meta["sizes"]]
            if entry["use_pickle"] or not _RECORDS.fullmatch(record) or not KEY.fullmatch(name[:200]):
                raise InvalidModel("the pt2 archive holds a tensor that is pickled, or none")
            if not all(isinstance(n, int) and n >= 0 for n in shape) or (sizes[record] == 0 and prod(shape)):
                raise InvalidModel("the pt2 archive holds a tensor that is larger than its record")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InvalidModel(f"the pt2 archive's list of tensors cannot be read ({type(error).__name__})") from error


def _check_samples(record: bytes) -> None:
    """The example inputs: their keys become part of a function that PyTorch writes. An archive in the archive, too."""
    if not record:
        return
    with zipfile.ZipFile(BytesIO(record)) as inner:
        if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > len(record) for m in inner.infolist()):
            raise InvalidModel("the pt2 archive's example inputs are compressed")
    try:
        samples = torch.load(BytesIO(record), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InvalidModel("the pt2 archive's example inputs cannot be read") from error
    left: list[Any] = [samples]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            if not all(isinstance(key, str) and KEY.fullmatch(key) for key in part):
                raise InvalidModel("the pt2 archive's example inputs have a key that is no plain word")
            left += part.values()
        elif isinstance(part, list | tuple):
            left += part
