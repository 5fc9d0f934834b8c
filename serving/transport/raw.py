"""Raw contents of Open Inference tensors: row-major, little-endian; BYTES elements each behind a 4-byte length.

Shared by gRPC and by binary tensors over HTTP. Numbers are views of the request's bytes, not copies.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from serving.errors import BadRequest
from serving.schema import shown
from serving.tensors import NUMPY

_LENGTH = struct.Struct("<I")


def from_raw(name: str, datatype: str, raw: bytes | memoryview) -> list[Any] | np.ndarray:
    """The elements of one tensor. Raises BadRequest if the bytes are no elements of the datatype."""
    if datatype == "BYTES":
        return _split(name, raw)
    dtype = NUMPY.get(datatype)
    if dtype is None:
        raise BadRequest(f"Tensor {shown(name)!r} has an unknown datatype.")
    if len(raw) % dtype.itemsize:
        raise BadRequest(f"Tensor {shown(name)!r} has raw contents that are no whole number of {datatype}.")
    array = np.frombuffer(raw, dtype=dtype.newbyteorder("<")).astype(dtype, copy=False)
    if datatype == "BOOL" and array.size and array.view(np.uint8).max() > 1:
        raise BadRequest(f"Tensor {shown(name)!r} has raw contents that are no BOOL.")
    return np.require(array, requirements="A")  # a tensor may begin anywhere in a body; libraries expect it aligned


def to_raw(array: np.ndarray) -> bytes:
    """The elements of an array; what is no number as the UTF-8 of its text."""
    if array.dtype.kind in "fiub":
        return np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return b"".join([_LENGTH.pack(len(v)) + v for v in as_bytes(array)])


def as_bytes(array: np.ndarray) -> list[bytes]:
    """The elements of an array that holds no numbers, each as bytes."""
    return [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]


def _split(name: str, raw: bytes | memoryview) -> list[bytes]:
    values, at, end = [], 0, len(raw)
    while at < end:
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(raw, at)[0] if start <= end else end + 1
        if at > end:
            raise BadRequest(f"Tensor {shown(name)!r} has raw contents that end within an element.")
        values.append(bytes(raw[start:at]))
    return values
