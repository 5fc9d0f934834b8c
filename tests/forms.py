"""The same rows in every form that a client may give them: V1 lists and objects, V2 JSON and binary, gRPC typed and raw."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
import requests
from kserve import InferResponse
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.servers import Server

#: MLflow's type → V2's datatype, the bytes of a value, the field of gRPC's typed contents.
TYPES = {
    "double": ("FP64", "<f8", "fp64_contents"), "float": ("FP32", "<f4", "fp32_contents"),
    "long": ("INT64", "<i8", "int64_contents"), "integer": ("INT32", "<i4", "int_contents"),
    "string": ("BYTES", "O", "bytes_contents"),
}  # fmt: skip


@dataclass(frozen=True)
class Rows:
    """Rows of named columns, or of one tensor `[n, k]` if `tensor` is its type; None is a missing value."""

    columns: dict[str, str]
    values: list[tuple[Any, ...]]
    tensor: str | None = None

    def tensors(self) -> list[tuple[str, str, list[int], list[Any]]]:
        """Name, MLflow's type, shape and flat values of each V2 tensor."""
        if self.tensor is not None:
            shape = [len(self.values), len(self.columns)]
            return [("input-0", self.tensor, shape, [value for row in self.values for value in row])]
        by_column = zip(self.columns.items(), zip(*self.values, strict=True), strict=True)
        return [(name, kind, [len(self.values)], list(column)) for (name, kind), column in by_column]

    @property
    def missing_words(self) -> bool:
        """Whether a string is missing, which only JSON can say."""
        return any(kind == "string" and None in flat for _, kind, _, flat in self.tensors())


@dataclass(frozen=True)
class Heard:
    """An answer: the bytes of its body without the model's name, its arrays by name, and what the cache did."""

    body: bytes
    arrays: dict[str, np.ndarray]
    cache: str | None = None


class Client:
    """Asks one server in any form, over connections that stay open."""

    def __init__(self, server: Server) -> None:
        self._base, self._session = server.base, requests.Session()
        self._channel = grpc.insecure_channel(server.grpc)
        self._infer = GRPCInferenceServiceStub(self._channel).ModelInfer

    def post(self, path: str, body: bytes, **headers: str) -> requests.Response:
        """An HTTP request."""
        return self._session.post(self._base + path, data=body, headers=headers, timeout=30)

    def grpc(self, message: pb.ModelInferRequest) -> pb.ModelInferResponse:
        """A gRPC request."""
        return self._infer(message, timeout=30)

    def close(self) -> None:
        """Hangs up."""
        self._session.close()
        self._channel.close()


def _v1(client: Client, model: str, instances: list[Any]) -> Heard:
    answer = client.post(f"/v1/models/{model}:predict", json.dumps({"instances": instances}).encode())
    assert answer.status_code == 200, answer.text
    document = answer.json()
    arrays = {name: np.array(document[name]) for name in ("predictions", "probabilities") if name in document}
    return Heard(_nameless(answer.content, model), arrays, answer.headers.get("x-cache"))


def v1_lists(client: Client, model: str, rows: Rows) -> Heard:
    """Instances as lists."""
    return _v1(client, model, [list(row) for row in rows.values])


def v1_objects(client: Client, model: str, rows: Rows) -> Heard:
    """Instances as objects, their keys in another order than the signature's."""
    return _v1(client, model, [dict(reversed(list(zip(rows.columns, row, strict=True)))) for row in rows.values])


def v2_json(client: Client, model: str, rows: Rows) -> Heard:
    """Tensors as JSON."""
    tensors = [
        {"name": name, "datatype": TYPES[kind][0], "shape": shape, "data": flat}
        for name, kind, shape, flat in rows.tensors()
    ]
    return _v2(client.post(f"/v2/models/{model}/infer", json.dumps({"inputs": tensors}).encode()), model)


def v2_binary(client: Client, model: str, rows: Rows) -> Heard:
    """Tensors as bytes behind the JSON, in and out."""
    tails = [_raw(kind, flat) for _, kind, _, flat in rows.tensors()]
    tensors = [
        {"name": name, "datatype": TYPES[kind][0], "shape": shape, "parameters": {"binary_data_size": len(tail)}}
        for (name, kind, shape, _), tail in zip(rows.tensors(), tails, strict=True)
    ]
    document = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    length = {"inference-header-content-length": str(len(document))}
    return _v2(client.post(f"/v2/models/{model}/infer", b"".join([document, *tails]), **length), model)


def grpc_typed(client: Client, model: str, rows: Rows) -> Heard:
    """gRPC with typed contents."""
    message = pb.ModelInferRequest(model_name=model, id="1")
    for name, kind, shape, flat in rows.tensors():
        tensor = message.inputs.add(name=name, datatype=TYPES[kind][0], shape=shape)
        values = [v.encode() for v in flat] if kind == "string" else [np.nan if v is None else v for v in flat]
        getattr(tensor.contents, TYPES[kind][2]).extend(values)
    return _grpc(client, message)


def grpc_raw(client: Client, model: str, rows: Rows) -> Heard:
    """gRPC with raw contents."""
    message = pb.ModelInferRequest(model_name=model, id="1")
    for name, kind, shape, flat in rows.tensors():
        message.inputs.add(name=name, datatype=TYPES[kind][0], shape=shape)
        message.raw_input_contents.append(_raw(kind, flat))
    return _grpc(client, message)


FORMS: dict[str, Callable[[Client, str, Rows], Heard]] = {
    form.__name__: form for form in (v1_lists, v1_objects, v2_json, v2_binary, grpc_typed, grpc_raw)
}


def forms_of(rows: Rows) -> list[str]:
    """Those that can say these rows: a tensor has no objects, and only JSON has null for a string."""
    json_only = {"v1_lists", "v1_objects", "v2_json"}
    named = [name for name in FORMS if not (rows.tensor and name == "v1_objects")]
    return [name for name in named if name in json_only or not rows.missing_words]


def _raw(kind: str, flat: list[Any]) -> bytes:
    if kind == "string":
        return b"".join(struct.pack("<I", len(word.encode())) + word.encode() for word in flat)
    return np.array([np.nan if v is None else v for v in flat], dtype=TYPES[kind][1]).tobytes()


def _v2(answer: requests.Response, model: str) -> Heard:
    assert answer.status_code == 200, answer.text
    length = answer.headers.get("inference-header-content-length")
    response = (
        InferResponse.from_bytes(answer.content, int(length)) if length else InferResponse.from_rest(answer.json())
    )
    return Heard(_nameless(answer.content, model), _arrays(response), answer.headers.get("x-cache"))


def _grpc(client: Client, message: pb.ModelInferRequest) -> Heard:
    answer = client.grpc(message)
    arrays = _arrays(InferResponse.from_grpc(answer))
    answer.model_name = ""
    return Heard(answer.SerializeToString(deterministic=True), arrays)


def _arrays(response: InferResponse) -> dict[str, np.ndarray]:
    return {output.name: output.as_numpy() for output in response.outputs}


def _nameless(body: bytes, model: str) -> bytes:
    """The names of the models of one kind are as long as each other."""
    return body.replace(json.dumps(model).encode(), b'""')
