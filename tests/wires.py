"""One table of numbers on every wire that can carry it, decoded as the server decodes it: no socket, no model."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

from registry.mlmodel import Column, Signature, Tensor
from serving.admission import BatchingLimits
from serving.configuration import Configuration
from serving.decoding import Arrays
from serving.loading import Loaded
from serving.runtimes.base import Runtime
from serving.schema import compile_schema
from serving.transport.grpc import GrpcRequest
from serving.transport.numeric import LEAST_BYTES
from serving.transport.v1 import V1Request
from serving.transport.v2 import V2Request
from tests.lanes import Echo

_CONTENTS = {"FP64": "fp64_contents", "FP32": "fp32_contents", "INT64": "int64_contents", "INT32": "int_contents"}
_CODES = {"FP64": "<f8", "FP32": "<f4", "FP16": "<f2", "INT64": "<i8", "INT32": "<i4"}

#: A tensor of a request: its name, its shape, its values.
Given = tuple[str, list[int], list[Any]]


def loaded_of(*inputs: Column | Tensor) -> Loaded:
    """A version with these inputs, as far as decoding knows it."""
    signature = Signature(cast("tuple[Column, ...]", inputs))
    configuration = Configuration(BatchingLimits(), None)
    return Loaded(cast("Runtime", Echo()), compile_schema(signature), signature, configuration)


def v2_json(loaded: Loaded, tensors: list[Given], datatype: str, pad: int = 0) -> Arrays | None:
    """The tensors as JSON, whose numbers are written as a client in Python writes them; NaN as null."""
    inputs = [
        {"name": n, "datatype": datatype, "shape": s, "data": [None if v != v else v for v in flat]}
        for n, s, flat in tensors
    ]
    return V2Request(json.dumps({"inputs": inputs}).encode() + b" " * pad).decode(loaded).partial.arrays


def v2_long_json(loaded: Loaded, tensors: list[Given], datatype: str) -> Arrays | None:
    """The same at a length at which numbers are read another way."""
    return v2_json(loaded, tensors, datatype, LEAST_BYTES)


def v2_binary(loaded: Loaded, tensors: list[Given], datatype: str) -> Arrays | None:
    """The tensors behind the JSON."""
    raw = [_raw(flat, datatype) for _, _, flat in tensors]
    inputs = [
        {"name": n, "datatype": datatype, "shape": s, "parameters": {"binary_data_size": len(r)}}
        for (n, s, _), r in zip(tensors, raw, strict=True)
    ]
    document = json.dumps({"inputs": inputs}).encode()
    request = V2Request(b"".join([document, *raw]), b"%d" % len(document))
    return request.decode(loaded).partial.arrays


def grpc_typed(loaded: Loaded, tensors: list[Given], datatype: str) -> Arrays | None:
    """Typed contents."""
    message = pb.ModelInferRequest()
    for name, shape, flat in tensors:
        added = message.inputs.add(name=name, datatype=datatype, shape=shape)
        getattr(added.contents, _CONTENTS[datatype]).extend(flat)
    return GrpcRequest(message).decode(loaded).partial.arrays


def grpc_raw(loaded: Loaded, tensors: list[Given], datatype: str) -> Arrays | None:
    """Raw contents."""
    message = pb.ModelInferRequest()
    for name, shape, flat in tensors:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(_raw(flat, datatype))
    return GrpcRequest(message).decode(loaded).partial.arrays


def v1_lists(loaded: Loaded, rows: list[list[Any]]) -> Arrays | None:
    """Instances as lists; NaN as null."""
    instances = [[None if v != v else v for v in row] for row in rows]
    return V1Request(json.dumps({"instances": instances}).encode()).decode(loaded).partial.arrays


def v1_objects(loaded: Loaded, rows: list[list[Any]]) -> Arrays | None:
    """Instances as objects."""
    names = loaded.schema.names
    instances = [{n: None if v != v else v for n, v in zip(names, row, strict=True)} for row in rows]
    return V1Request(json.dumps({"instances": instances}).encode()).decode(loaded).partial.arrays


V2_WIRES: dict[str, Callable[[Loaded, list[Given], str], Arrays | None]] = {
    f.__name__: f for f in (v2_json, v2_long_json, v2_binary, grpc_typed, grpc_raw)
}
V1_WIRES: dict[str, Callable[[Loaded, list[list[Any]]], Arrays | None]] = {
    f.__name__: f for f in (v1_lists, v1_objects)
}
#: JSON has no word for infinity.
JSON_WIRES = frozenset({"v2_json", "v2_long_json", "v1_lists", "v1_objects"})


def on_every_wire(loaded: Loaded, rows: list[list[Any]], datatype: str) -> dict[str, Callable[[], Arrays | None]]:
    """What decodes the rows on each wire, as one matrix and as a tensor per column."""
    names = loaded.schema.names
    flat = [value for row in rows for value in row]
    whole = [("any", [len(rows), len(names)], flat)]
    each = [(name, [len(rows)], [row[i] for row in rows]) for i, name in enumerate(names)]
    found: dict[str, Callable[[], Arrays | None]] = {}
    for name, wire in V2_WIRES.items():
        found[f"{name}: matrix"] = lambda wire=wire: wire(loaded, whole, datatype)  # type: ignore[misc]
        found[f"{name}: columns"] = lambda wire=wire: wire(loaded, each, datatype)  # type: ignore[misc]
    for name, rowwise in V1_WIRES.items():
        found[f"{name}: rows"] = lambda rowwise=rowwise: rowwise(loaded, rows)  # type: ignore[misc]
    return found


def _raw(flat: list[Any], datatype: str) -> bytes:
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(word)) + word for word in flat)
    return np.array(flat, dtype=_CODES[datatype]).tobytes()
