"""A network's large weights as views of the file they came from: workers that map one file share its memory."""

from __future__ import annotations

import logging
import struct
import zipfile
from collections import defaultdict
from pathlib import Path
from typing import Any, BinaryIO

import torch

#: What is smaller is not worth a mapping.
LEAST_BYTES = 1 << 20
_LOCAL_HEADER, _NAMES_AT = 30, 26
log = logging.getLogger("headway.pytorch")


def map_weights(network: Any, file: Path) -> int:
    """Replaces each weight whose bytes stand in the file by a view of them; returns how many bytes that were.

    Both of PyTorch's formats are archives of plain, uncompressed tensors. A weight is only replaced by what was compared
    with it, so nothing is taken on trust of a format. The mapping is private, and outlives the file's name.
    """
    try:
        with file.open("rb") as stream, zipfile.ZipFile(stream) as archive:
            places = _places(archive, stream)
    except zipfile.BadZipFile:
        return 0  # the format of before PyTorch 1.6
    whole = torch.UntypedStorage.from_file(str(file), False, file.stat().st_size)
    mapped = 0
    for weight in [*network.parameters(), *network.buffers()]:
        plain = weight.layout == torch.strided and weight.device.type == "cpu" and not weight.is_quantized
        if plain and weight.is_contiguous() and weight.nbytes >= LEAST_BYTES:
            view = _find(weight.data, whole, places[weight.nbytes])
            if view is not None:
                weight.data = view
                mapped += weight.nbytes
    if mapped:
        log.info("weights are shared between workers", extra={"bytes": mapped})
    return mapped


def _places(archive: zipfile.ZipFile, stream: BinaryIO) -> dict[int, list[int]]:
    """Where the uncompressed entries begin, by their size."""
    places: dict[int, list[int]] = defaultdict(list)
    for entry in archive.infolist():
        if entry.compress_type == zipfile.ZIP_STORED and entry.file_size >= LEAST_BYTES:
            stream.seek(entry.header_offset + _NAMES_AT)
            name, extra = struct.unpack("<HH", stream.read(4))
            places[entry.file_size].append(entry.header_offset + _LOCAL_HEADER + name + extra)
    return places


def _find(weight: torch.Tensor, whole: torch.UntypedStorage, offsets: list[int]) -> torch.Tensor | None:
    own = weight.flatten().view(torch.uint8)
    for offset in offsets:
        if offset % weight.element_size() == 0:
            view = torch.empty(0, dtype=weight.dtype)
            view.set_(whole, offset // weight.element_size(), weight.shape, weight.stride())
            if torch.equal(view.flatten().view(torch.uint8), own):
                return view
    return None
