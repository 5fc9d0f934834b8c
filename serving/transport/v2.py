"""The Open Inference Protocol in JSON: tensors in, tensors out. What REST and gRPC share of V2 is here as well."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from serving.calls import Answer, Decoded
from serving.decoding import flatten
from serving.errors import BadRequest, NotOffered
from serving.loading import Loaded
from serving.runtimes.base import datatype_of
from serving.schema import shown
from serving.tensors import Given, check_given, decode_tensors
from serving.transport.v1 import dumps, parse_object, parse_parameters


def check_outputs(names: Iterable[str], loaded: Loaded, output: str | None) -> tuple[str, ...]:
    """The outputs that a request selects. Raises BadRequest for one that the answer will not have."""
    mode = output or loaded.configuration.output
    offered = ["predictions"]
    if mode == "auto" and loaded.runtime.classes is not None:
        offered.append("probabilities")
    chosen = tuple(names)
    for name in chosen:
        if name not in offered:
            raise BadRequest(f"There is no output {shown(name)!r}; this answer has {' and '.join(offered)}.")
    return chosen


def output_tensors(answer: Answer, chosen: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    """The answer's tensors by name, in order: all, or those that the request selected."""
    tensors = [("predictions", plain(answer.predictions))]
    if answer.probabilities is not None:
        tensors.append(("probabilities", np.asarray(answer.probabilities, dtype=np.float64)))
    return [(name, array) for name, array in tensors if not chosen or name in chosen]


def plain(array: np.ndarray) -> np.ndarray:
    """Datetimes as ISO 8601 strings; everything else as it is."""
    if array.dtype.kind == "M":
        return np.array(np.datetime_as_string(array), dtype=object)
    return array


class V2Request:
    """One V2 request in JSON."""

    __slots__ = ("_body", "_chosen", "_id")

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._id: str | None = None
        self._chosen: tuple[str, ...] = ()

    def decode(self, loaded: Loaded) -> Decoded:
        """Tensors and parameters, checked against the version's schema."""
        document = parse_object(self._body)
        self._id = document.get("id")
        if not isinstance(self._id, str | None):
            raise BadRequest("'id' must be a string.")
        output, per_instance = parse_parameters(document.get("parameters"))
        inputs = document.get("inputs")
        if not isinstance(inputs, list):
            raise BadRequest("The body must have 'inputs', a list of tensors.")
        self._chosen = check_outputs(_output_names(document.get("outputs")), loaded, output)
        keys = loaded.lookup.keys if loaded.lookup is not None else frozenset()
        return Decoded(decode_tensors(loaded.schema, [_given(t) for t in inputs], keys), output, per_instance)

    def encode(self, answer: Answer) -> bytes:
        """The answer as JSON; NaN and infinity become null."""
        body: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version.version}
        if self._id is not None:
            body["id"] = self._id
        body["outputs"] = [
            {"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "data": array.ravel()}
            for name, array in output_tensors(answer, self._chosen)
        ]
        return dumps(body)


def _output_names(outputs: Any) -> list[str]:
    if outputs is None:
        return []
    if not isinstance(outputs, list) or not all(
        isinstance(o, dict) and isinstance(o.get("name"), str) for o in outputs
    ):
        raise BadRequest("'outputs' must be a list of objects with a 'name'.")
    return [o["name"] for o in outputs]


def _given(tensor: Any) -> Given:
    """One tensor of the JSON body. Raises BadRequest unless it has name, datatype, shape and data of the right types."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise BadRequest("Every input must be an object with 'name', 'datatype', 'shape' and 'data'.")
    name, shape, data = tensor["name"], tensor.get("shape"), tensor.get("data")
    if isinstance(tensor.get("parameters"), dict) and "binary_data_size" in tensor["parameters"]:
        raise NotOffered("Binary tensors are not offered yet; send the tensors as JSON, or over gRPC.")
    if not isinstance(tensor.get("datatype"), str):
        raise BadRequest(f"Tensor {shown(name)!r} must have a 'datatype'.")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise BadRequest(f"Tensor {shown(name)!r} must have a 'shape', a list of integers.")
    if not isinstance(data, list):
        raise BadRequest(f"Tensor {shown(name)!r} must have 'data', a list.")
    flat, nested = flatten(data, name)
    if len(nested) > 1 and nested != tuple(shape):
        raise BadRequest(f"The data of tensor {shown(name)!r} do not have its shape.")
    return check_given(Given(name, tensor["datatype"], tuple(shape), flat))
