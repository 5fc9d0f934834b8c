"""The same rows as each protocol asks for them, and the answers read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from scripts.bench.experiments import NAME, Wire

#: How many machines are asked for in turn.
KEYS = 100
LENGTH = "inference-header-content-length"
OCTETS, JSON = "application/octet-stream", "application/json"
GRPC = "/inference.GRPCInferenceService/ModelInfer"
_V1, _V2 = f"/v1/models/{NAME}:predict", f"/v2/models/{NAME}/infer"


@dataclass(frozen=True)
class Message:
    """One request: the path of the route or method, headers, body; and bodies that the load sends in turn with it."""

    path: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=lambda: {"Content-Type": JSON})
    others: tuple[bytes, ...] = ()


def ask(wire: Wire, columns: Sequence[str], rows: np.ndarray) -> Message:
    """Rows `[n, k]` as a request."""
    listed = [[float(f"{value:.10g}") for value in row] for row in rows.tolist()]
    documents: dict[str, tuple[str, Any]] = {
        "v1": (_V1, {"instances": listed}),
        "v2": (_V2, {"id": "1", "inputs": [{**_tensor(rows), "data": [v for row in listed for v in row]}]}),
        "frame": ("/invocations", {"dataframe_split": {"columns": list(columns), "data": listed}}),
        "tensor": ("/invocations", {"inputs": listed}),
        "plain": ("/predict", {"x": listed}),
    }
    if wire in documents:
        path, document = documents[wire]
        return Message(path, json.dumps(document).encode())
    return _OTHERS[wire](rows)


def _entities(rows: np.ndarray) -> Message:
    """Every request asks for other machines: lookups of the same one in one turn of the loop would be one lookup."""
    bodies = [
        json.dumps({"instances": [{"machine_id": 1 + (first + i) % KEYS} for i in range(len(rows))]}).encode()
        for first in range(KEYS)
    ]
    return Message(_V1, bodies[0], others=tuple(bodies[1:]))


def _tensor(rows: np.ndarray) -> dict[str, Any]:
    return {"name": "x", "shape": list(rows.shape), "datatype": "FP32" if rows.dtype == np.float32 else "FP64"}


def _binary(rows: np.ndarray) -> Message:
    raw = np.ascontiguousarray(rows).tobytes()
    tensor = {**_tensor(rows), "parameters": {"binary_data_size": len(raw)}}
    head = orjson.dumps({"id": "1", "parameters": {"binary_data_output": True}, "inputs": [tensor]})
    return Message(_V2, head + raw, {"Content-Type": OCTETS, LENGTH: str(len(head))})


def _grpc(rows: np.ndarray) -> Message:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb  # importing it parses sys.argv

    message = pb.ModelInferRequest(model_name=NAME, id="1")
    message.inputs.add(**_tensor(rows))
    message.raw_input_contents.append(np.ascontiguousarray(rows).tobytes())
    return Message(GRPC, message.SerializeToString())


_OTHERS = {"entities": _entities, "v2-binary": _binary, "grpc": _grpc}


def read(wire: Wire, body: bytes, headers: Mapping[str, str]) -> np.ndarray:
    """The predictions in an answer, in the order of the rows. Raises ValueError or KeyError for what is none."""
    if wire == "grpc":
        return _read_grpc(body)
    if wire == "v2-binary" and LENGTH in headers:
        return _read_binary(body, int(headers[LENGTH]))
    document = orjson.loads(body)
    if isinstance(document, list):
        return np.asarray(document)
    if "outputs" in document:
        output = document["outputs"][0]
        return np.asarray(output["data"]).reshape(output["shape"])
    return np.asarray(document["predictions"])


def _read_binary(body: bytes, length: int) -> np.ndarray:
    output = orjson.loads(body[:length])["outputs"][0]
    return _raw(output["datatype"], body[length : length + output["parameters"]["binary_data_size"]], output["shape"])


def _read_grpc(body: bytes) -> np.ndarray:
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb

    message = pb.ModelInferResponse.FromString(body)
    output = message.outputs[0]
    return _raw(output.datatype, message.raw_output_contents[0], list(output.shape))


def _raw(datatype: str, raw: bytes, shape: Sequence[int]) -> np.ndarray:
    kinds = {"FP64": "<f8", "FP32": "<f4", "INT64": "<i8", "INT32": "<i4"}
    return np.frombuffer(raw, kinds[datatype]).reshape(shape)


def same(answers: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays of predictions are the same numbers; a row's last axis of one column may be missing."""
    flat = np.asarray(answers, dtype=np.float64).ravel()
    return len(flat) == expected.size and np.allclose(flat, expected.ravel().astype(np.float64), rtol=1e-4, atol=1e-5)
