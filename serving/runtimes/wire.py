"""Messages between the server and a version's process: a JSON header, and arrays as raw bytes.

The process runs the version's own code, so its messages are read like a stranger's: never unpickled, bounded in size,
and every array's dtype and shape must fit its bytes.

| array            | crosses as                                                                   |
|------------------|------------------------------------------------------------------------------|
| b i u f M m      | its bytes, aligned to 16                                                     |
| object           | a JSON list; bytes as `{"$bytes": base64}`, dates as ISO 8601                |
| fixed-width text | the same, and is made fixed-width again                                      |
"""

from __future__ import annotations

import base64
import json
import math
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

MAGIC = b"HWY1"
#: Bytes that one message may hold; an answer that is longer is refused.
MOST_BYTES = 256 * 2**20
_MOST_HEADER = 2**20
_PREFIX = struct.Struct("<4sIQ")
_ALIGN = 16
_RAW = "biufMm"
_LISTED = {"O": object, "U": np.str_, "S": np.bytes_}
_BYTES = "$bytes"
#: What the name of an array begins with that is one of a network's several outputs.
OUTPUT = "output:"


class Malformed(Exception):
    """What arrived is no message of ours. The text never holds what arrived."""


@dataclass(slots=True)
class Message:
    """Facts, and arrays by name."""

    facts: Mapping[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


def pack(facts: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message as bytes. Raises TypeError for elements that JSON cannot say, ValueError for a message too long."""
    specs, body, length = [], [], 0
    for name, array in arrays.items():
        data, spec = _encode(array)
        gap = -len(data) % _ALIGN
        specs.append({"name": name, "at": length, "bytes": len(data), **spec})
        body += [data, bytes(gap)]
        length += len(data) + gap
    header = json.dumps({**facts, "arrays": specs}).encode()
    header += b" " * (-len(header) % _ALIGN)
    if len(header) > _MOST_HEADER or length > MOST_BYTES:
        raise ValueError(f"the message is longer than {MOST_BYTES} bytes")
    return b"".join([_PREFIX.pack(MAGIC, len(header), length), header, *body])


def receive(stream: socket.socket, deadline: float | None = None) -> Message:
    """The next message. `deadline` is monotonic time.

    Raises EOFError or OSError when the other side is gone, TimeoutError when it is late, Malformed for nonsense.
    """
    prefix = _read(stream, _PREFIX.size, deadline)
    magic, header, body = _PREFIX.unpack(prefix.data)
    if magic != MAGIC or header > _MOST_HEADER or body > MOST_BYTES:
        raise Malformed("no message begins like this")
    data = _read(stream, header + body, deadline)
    try:
        return _decode(bytes(data[:header]), data[header:])
    except Malformed:
        raise
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        raise Malformed(f"its parts do not fit together ({type(error).__name__})") from error


def _read(stream: socket.socket, count: int, deadline: float | None) -> np.ndarray:
    """Exactly `count` bytes, in fresh memory."""
    buffer = np.empty(count, np.uint8)
    view = buffer.data
    while view:
        if deadline is not None:
            stream.settimeout(max(0.001, deadline - time.monotonic()))
        got = stream.recv_into(view)
        if got == 0:
            raise EOFError
        view = view[got:]
    return buffer


def _encode(array: np.ndarray) -> tuple[bytes, dict[str, Any]]:
    kind = array.dtype.kind
    if kind in _RAW:
        return array.tobytes(), {"dtype": array.dtype.str, "shape": array.shape}
    if kind not in _LISTED:
        raise TypeError(f"an array of {array.dtype.name} cannot leave the version's process")
    return json.dumps(array.ravel().tolist(), default=_plain).encode(), {"dtype": kind, "shape": array.shape}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a value of the type {type(value).__name__} cannot leave the version's process")


def _decode(header: bytes, body: np.ndarray) -> Message:
    facts = json.loads(header)
    if not isinstance(facts, dict) or not isinstance(facts.get("arrays"), list):
        raise Malformed("its header is no object")
    return Message(facts, {str(spec["name"]): _array(spec, body) for spec in facts["arrays"]})


def _array(spec: Mapping[str, Any], body: np.ndarray) -> np.ndarray:
    at, count, shape, code = spec["at"], spec["bytes"], spec["shape"], spec["dtype"]
    whole = all(type(n) is int and n >= 0 for n in (at, count, *shape))
    if not whole or len(shape) > 32 or at + count > len(body) or type(code) is not str:
        raise Malformed("an array lies outside the message")
    data = body[at : at + count]
    if code in _LISTED:
        return _listed(data.tobytes(), code, shape)
    dtype = np.dtype(code)
    if dtype.kind not in _RAW or dtype.fields or dtype.subdtype or math.prod(shape) * dtype.itemsize != count:
        raise Malformed("an array's bytes do not fit its shape")
    return data.view(dtype).reshape(shape)


def _listed(data: bytes, code: str, shape: list[int]) -> np.ndarray:
    values = json.loads(data, object_hook=_unplain)
    if not isinstance(values, list) or len(values) != math.prod(shape):
        raise Malformed("an array's values do not fill its shape")
    wanted = {"U": str, "S": bytes}.get(code, object)
    if not all(isinstance(value, wanted) for value in values):
        raise Malformed("an array holds values of another type")
    flat = np.fromiter(values, object, len(values))
    return (flat if code == "O" else flat.astype(_LISTED[code])).reshape(shape)


def _unplain(document: dict[str, Any]) -> Any:
    return base64.b64decode(document[_BYTES]) if document.keys() == {_BYTES} else document
