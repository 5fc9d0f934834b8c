"""Requests that were good, until something was changed: in what they say, in their bytes, in the sizes they claim.

Everything comes from one `random.Random`, so that a seed is a request.
"""

from __future__ import annotations

import copy
import json
import random
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

#: MLflow's type, or a tensor's dtype → V2's datatype, NumPy's code, the field of gRPC's typed contents, good values.
KINDS: dict[str, tuple[str, str, str, list[Any]]] = {
    "double": ("FP64", "<f8", "fp64_contents", [0.5, -2.25, 3.0]),
    "float": ("FP32", "<f4", "fp32_contents", [0.5, -2.25, 3.0]),
    "float32": ("FP32", "<f4", "fp32_contents", [0.5, -2.25, 3.0]),
    "float64": ("FP64", "<f8", "fp64_contents", [0.5, -2.25, 3.0]),
    "long": ("INT64", "<i8", "int64_contents", [1, -7, 2**40]),
    "int64": ("INT64", "<i8", "int64_contents", [1, -7, 2**40]),
    "integer": ("INT32", "<i4", "int_contents", [1, -7, 2**30]),
    "uint8": ("UINT8", "<u1", "uint_contents", [0, 1, 255]),
    "boolean": ("BOOL", "?", "bool_contents", [True, False]),
    "string": ("BYTES", "O", "bytes_contents", ["Berlin", "", "é"]),
    "binary": ("BYTES", "O", "bytes_contents", ["AAE=", "", "aGk="]),
    "datetime": ("BYTES", "O", "bytes_contents", ["2026-01-02T03:04:05Z", "2026-01-02"]),
}
#: What may stand where something else stood; `bytes` are put into the JSON as they are.
ODD: list[Any] = [
    None, True, False, "", "x", "NaN", "Infinity", "\u0000", "\U0001f642", "1", "2026-13-45", "x" * 300, [], {}, [[]], [None],
    {"a": 1}, [[1, 2], [3]], 0, -1, 1, 2, 30, 3.5, -0.0, 1e308, -1e308, 1.7976931348623157e308, 3.5e38, 65504, 65536, 1e-320,
    2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**40, b"1e999", b"-1e400", b"NaN", b"Infinity", b"1" * 400,
    b'"\\ud800"', b'"\\u0000\xff"', b"-", b"01", b"1.", b"[" * 600 + b"]" * 600, b'{"a":1,"a":2}',
]  # fmt: skip
SHAPES: list[list[Any]] = [[], [0], [1], [0, 1], [1, 0], [30, 0], [30, 1], [-1], [-1, -1], [1, 1, 1], [2**62, 2**62], [2**64],
          [1] * 70, [1.0], [True], ["1"], [2, 2], [3], [1, 30]]  # fmt: skip
DATATYPES = ["BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES",
             "BF16", "", "fp64"]  # fmt: skip
NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")
DECIMALS = [b"1e308", b"-1e308", b"1e309", b"9" * 40, b"0.1e5", b"1e-400", b"-0", b"1e39", b"2147483648", b"9223372036854775808",
            b"1E+5", b"00", b".5", b"1_0", b"0x1", b"1e", b"--1"]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A model, and what it takes: columns, or tensors whose rows have a shape."""

    name: str
    inputs: dict[str, str]
    shapes: dict[str, tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Tensor:
    """One input of a V2 request."""

    name: str
    datatype: str
    shape: list[int]
    flat: list[Any]
    kind: str


Body = tuple[bytes, dict[str, str]]


def tensors(r: random.Random, target: Target) -> list[Tensor]:
    """Good tensors of one to four rows; for columns of numbers now and then one for all of them."""
    rows = r.randint(1, 4)
    if (
        target.shapes is None
        and {*target.inputs.values()} <= {"double", "float", "long", "integer"}
        and r.random() < 0.5
    ):
        flat = [float(r.randint(-9, 9)) for _ in range(rows * len(target.inputs))]
        return [Tensor("all", "FP64", [rows, len(target.inputs)], flat, "double")]
    made = []
    for name, kind in target.inputs.items():
        shape = [rows, *(target.shapes[name] if target.shapes else ())]
        flat = [r.choice(KINDS[kind][3]) for _ in range(int(np.prod(shape)))]
        made.append(Tensor(name, KINDS[kind][0], shape, flat, kind))
    return made


def v1(r: random.Random, target: Target) -> Body:
    """Rows as lists or as objects, then changed."""
    good = tensors(r, Target(target.name, target.inputs, target.shapes))
    if len(good) == 1 and good[0].name == "all":
        nested: Any = np.reshape(good[0].flat, good[0].shape).tolist()
        columns = list(zip(*nested, strict=True))
    else:
        columns = [_nest(t.flat, t.shape) for t in good]
    rows: list[Any] = [list(row) for row in zip(*columns, strict=True)]
    if r.random() < 0.5 or target.shapes is not None:
        rows = [dict(zip(target.inputs, row, strict=True)) for row in rows]
    document: dict[str, Any] = {"instances": rows}
    if r.random() < 0.2:
        document["parameters"] = {"output": r.choice(["auto", "labels", "probabilities", "raw"]), "per_instance": True}
    return _bytes(r, _changed(r, document)), {}


def v2_json(r: random.Random, target: Target) -> Body:
    """Tensors as JSON, then changed."""
    inputs = [_described(t, data=t.flat if r.random() < 0.7 else _nest(t.flat, t.shape)) for t in tensors(r, target)]
    return _bytes(r, _changed(r, _v2(r, inputs))), {}


def v2_binary(r: random.Random, target: Target) -> Body:
    """Tensors behind the JSON, then changed: what is said, what is there, or how long either is."""
    good = tensors(r, target)
    tails = [_raw(r, t) for t in good]
    inputs = [_described(t, parameters={"binary_data_size": len(tail)}) for t, tail in zip(good, tails, strict=True)]
    document = _v2(r, inputs)
    if r.random() < 0.3:
        document["parameters"] = {"binary_data_output": True}
    said = _dumps(_changed(r, document) if r.random() < 0.6 else document)
    length = len(said) + (r.choice([-1, 1, 7, -len(said), 10**9, -7]) if r.random() < 0.15 else 0)
    body = b"".join([said, *[_damaged(r, tail) if r.random() < 0.3 else tail for tail in tails]])
    header = str(length) if r.random() < 0.95 else r.choice(["", "x", "-1", "1e3", "9" * 30, "0"])
    return body, {"inference-header-content-length": header, "content-type": "application/octet-stream"}


def grpc(r: random.Random, target: Target) -> bytes:
    """A message with typed or raw contents, then changed as a message or as bytes."""
    message = pb.ModelInferRequest(model_name=target.name, id=r.choice(["", "1", "é", "\t"]))
    raw = r.random() < 0.5
    for tensor in tensors(r, target):
        added = message.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if raw:
            message.raw_input_contents.append(_raw(r, tensor))
        else:
            _fill(r, added, tensor)
    for _ in range(r.randint(0, 3)):
        r.choice(MESSAGE_CHANGES)(r, message)
    data = message.SerializeToString()
    return _damaged(r, data) if r.random() < 0.2 else data


def _v2(r: random.Random, inputs: list[Any]) -> dict[str, Any]:
    document: dict[str, Any] = {"inputs": inputs}
    if r.random() < 0.2:
        document["outputs"] = [{"name": "predictions", "parameters": {"binary_data": r.random() < 0.5}}]
    if r.random() < 0.2:
        document["id"] = r.choice(["1", "é", ""])
    return document


def _described(tensor: Tensor, **more: Any) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, **more}


def _nest(flat: list[Any], shape: list[int]) -> list[Any]:
    array = np.empty(len(flat), object)
    array[:] = flat
    nested: list[Any] = array.reshape(shape).tolist()
    return nested


def _words(flat: list[Any]) -> list[bytes]:
    return [str(value).encode() for value in flat]


def _raw(r: random.Random, tensor: Tensor) -> bytes:
    """The tensor's bytes; of floats now and then one that no JSON can say."""
    if tensor.datatype == "BYTES":
        return b"".join(struct.pack("<I", len(word)) + word for word in _words(tensor.flat))
    array = np.array(tensor.flat, KINDS[tensor.kind][1])
    if array.dtype.kind == "f" and r.random() < 0.3:
        array[r.randrange(len(array))] = r.choice([np.inf, -np.inf, np.nan, np.finfo(array.dtype).max, 5e-324])
    return array.tobytes()


def _fill(r: random.Random, added: Any, tensor: Tensor) -> None:
    flat = _words(tensor.flat) if tensor.datatype == "BYTES" else list(tensor.flat)
    if tensor.kind in ("double", "float", "float32", "float64") and r.random() < 0.3:
        flat[r.randrange(len(flat))] = r.choice([float("inf"), float("-inf"), float("nan"), 1e308, 3e38])
    getattr(added.contents, KINDS[tensor.kind][2]).extend(flat)


# -- changes of what is said ---------------------------------------------------------------------------------------


def _changed(r: random.Random, document: Any) -> Any:
    document = copy.deepcopy(document)
    for _ in range(r.choice([0, 1, 1, 1, 2, 4])):
        places = _places(document)
        if not places:
            break
        parent, key = r.choice(places)
        if key == "shape" and r.random() < 0.7:
            parent[key] = list(r.choice(SHAPES))
        elif key == "datatype" and r.random() < 0.7:
            parent[key] = r.choice(DATATYPES)
        elif key == "binary_data_size" and isinstance(parent[key], int):
            parent[key] = r.choice([parent[key] + 1, parent[key] - 1, 0, -1, 2**31, 2**63, True, 1.0, str(parent[key])])
        else:
            r.choice(CHANGES)(r, parent, key)
    return document


def _places(node: Any) -> list[tuple[Any, Any]]:
    """Every place in a document where something stands: its parent, and its key or index there."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    found = [(node, key) for key in keys]
    for key in keys:
        found += _places(node[key])
    return found


def _replace(r: random.Random, parent: Any, key: Any) -> None:
    parent[key] = copy.deepcopy(r.choice(ODD))


def _wrap(r: random.Random, parent: Any, key: Any) -> None:
    parent[key] = r.choice([[parent[key]], {"a": parent[key]}, str(parent[key])[:50]])


def _repeat(r: random.Random, parent: Any, key: Any) -> None:
    if isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[f"{key}{r.choice(['', '2', 'é'])}"] = parent[key]


def _drop(r: random.Random, parent: Any, key: Any) -> None:
    del parent[key]


def _swap(r: random.Random, parent: Any, key: Any) -> None:
    other = r.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
    parent[key], parent[other] = parent[other], parent[key]


def _guarded(change: Callable[[random.Random, Any, Any], None]) -> Callable[[random.Random, Any, Any], None]:
    def changed(r: random.Random, parent: Any, key: Any) -> None:
        if key in parent if isinstance(parent, dict) else key < len(parent):
            change(r, parent, key)

    return changed


CHANGES = [_guarded(change) for change in (_replace, _replace, _replace, _wrap, _repeat, _drop, _swap)]


def _dumps(document: Any) -> bytes:
    """JSON in which `bytes` stand as they are."""
    if isinstance(document, bytes):
        return document
    if isinstance(document, dict):
        inner = b",".join(json.dumps(str(k)).encode() + b":" + _dumps(v) for k, v in document.items())
        return b"{" + inner + b"}"
    if isinstance(document, list):
        return b"[" + b",".join(map(_dumps, document)) + b"]"
    return json.dumps(document).encode()


# -- changes of bytes ----------------------------------------------------------------------------------------------


def _bytes(r: random.Random, document: Any) -> bytes:
    body = _dumps(document)
    chance = r.random()
    if chance < 0.25 and (numbers := list(NUMBER.finditer(body))):
        found = r.choice(numbers)
        at = r.randint(found.start(), found.end())
        new = r.choice(
            [r.choice(DECIMALS), body[found.start() : at] + r.choice([b"e", b"9", b".", b"-"]) + body[at : found.end()]]
        )
        body = body[: found.start()] + new + body[found.end() :]
    elif chance < 0.4:
        body = _damaged(r, body)
    return body + b" " * 2100 if r.random() < 0.3 else body  # at that length numbers are read another way


def _damaged(r: random.Random, data: bytes) -> bytes:
    if not data:
        return bytes([r.randrange(256)])
    at = r.randrange(len(data))
    many = r.randint(1, 8)
    return r.choice([
        data[:at], data[:at] + data[at + many :], data[:at] + r.randbytes(many) + data[at:], data + data[at:],
        data[:at] + bytes([data[at] ^ (1 << r.randrange(8))]) + data[at + 1 :], b"",
    ])  # fmt: skip


# -- changes of a message ------------------------------------------------------------------------------------------


def _some(r: random.Random, message: Any) -> Any:
    return r.choice(message.inputs) if message.inputs else message.inputs.add(name="x", datatype="FP64", shape=[1])


def _reshape(r: random.Random, message: Any) -> None:
    tensor = _some(r, message)
    shape = [n for n in r.choice(SHAPES) if type(n) is int and n < 2**63]
    del tensor.shape[:]
    tensor.shape.extend(shape)


def _retype(r: random.Random, message: Any) -> None:
    _some(r, message).datatype = r.choice(DATATYPES)


def _rename(r: random.Random, message: Any) -> None:
    _some(r, message).name = r.choice(["", "x", "é" * 100, "\0", _some(r, message).name])


def _refill(r: random.Random, message: Any) -> None:
    contents = _some(r, message).contents
    getattr(contents, r.choice(["fp64_contents", "fp32_contents"])).extend(
        [r.choice([1e308, float("inf"), 0.5])] * r.randint(0, 3)
    )
    if r.random() < 0.3:
        contents.bytes_contents.extend([r.randbytes(4)])


def _reraw(r: random.Random, message: Any) -> None:
    if message.raw_input_contents and r.random() < 0.7:
        at = r.randrange(len(message.raw_input_contents))
        message.raw_input_contents[at] = _damaged(r, message.raw_input_contents[at])
    else:
        message.raw_input_contents.append(r.randbytes(r.choice([0, 1, 8, 80])))


def _parameter(r: random.Random, message: Any) -> None:
    chosen = message.parameters[r.choice(["output", "per_instance", "priority", "binary_data_output", "other"])]
    r.choice([
        lambda: setattr(chosen, "bool_param", True), lambda: setattr(chosen, "int64_param", r.choice([-1, 0, 2, 2**62])),
        lambda: setattr(chosen, "string_param", r.choice(["raw", "probabilities", "é"])), lambda: None,
    ])()  # fmt: skip


def _output(r: random.Random, message: Any) -> None:
    message.outputs.add(name=r.choice(["predictions", "probabilities", "", "é"]))


def _more(r: random.Random, message: Any) -> None:
    message.inputs.add().CopyFrom(_some(r, message))


def _fewer(r: random.Random, message: Any) -> None:
    if message.inputs:
        del message.inputs[r.randrange(len(message.inputs))]


MESSAGE_CHANGES: list[Callable[[random.Random, Any], None]] = [
    _reshape, _retype, _rename, _refill, _reraw, _reraw, _parameter, _output, _more, _fewer,
]  # fmt: skip
