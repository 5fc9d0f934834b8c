"""The V1 protocol: `{"instances": […]}` in, `{"predictions": […]}` out."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from serving.calls import Answer, Decoded
from serving.decoding import decode_instances
from serving.errors import BadRequest
from serving.loading import Loaded
from serving.schema import shown
from serving.transport.head import PLAIN

KEYS = {"instances", "parameters", "signature_name", "id"}
OUTPUTS = ("auto", "labels", "probabilities", "raw")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequest for anything else, without echoing it."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The body is empty." if not body.strip() else "The body is not valid JSON.") from None
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document


def parse_parameters(parameters: Any) -> tuple[str | None, bool | None]:
    """`output` and `per_instance` of a request's parameters; others are ignored. Raises BadRequest."""
    if parameters is None:
        return None, None
    if not isinstance(parameters, dict):
        raise BadRequest("'parameters' must be an object.")
    output, per_instance = parameters.get("output"), parameters.get("per_instance")
    if output is not None and output not in OUTPUTS:
        raise BadRequest(f"The parameter 'output' must be one of {', '.join(OUTPUTS)}.")
    if per_instance is not None and not isinstance(per_instance, bool):
        raise BadRequest("The parameter 'per_instance' must be true or false.")
    return output, per_instance


class V1Request:
    """One V1 request. Its body is parsed when a version is there to check it, so that what fails is counted."""

    __slots__ = ("_body",)
    content = PLAIN

    def __init__(self, body: bytes) -> None:
        self._body = body

    def decode(self, loaded: Loaded) -> Decoded:
        """Rows and parameters, checked against the version's schema."""
        document = parse_object(self._body)
        if "instances" not in document:
            raise BadRequest("The body must have 'instances', a list of rows.")
        if not document.keys() <= KEYS:
            key = min(document.keys() - KEYS)
            raise BadRequest(f"The key {shown(key)!r} is not known: a body has 'instances' and 'parameters'.")
        output, per_instance = parse_parameters(document.get("parameters"))
        keys = loaded.lookup.keys if loaded.lookup is not None else frozenset()
        return Decoded(decode_instances(loaded.schema, document["instances"], keys), output, per_instance)

    def encode(self, answer: Answer) -> bytes:
        """The answer as JSON; NaN and infinity become null."""
        return dumps(to_document(answer))


def to_document(answer: Answer) -> dict[str, Any]:
    """The answer as a document whose leaves may be arrays."""
    body: dict[str, Any] = {"predictions": _per_instance(answer) if answer.per_instance else answer.predictions}
    if answer.probabilities is not None and not answer.per_instance:
        body["probabilities"] = answer.probabilities
    body["model_name"], body["model_version"] = answer.model, answer.version.version
    return body


def _per_instance(answer: Answer) -> list[dict[str, Any]]:
    labels = answer.predictions.tolist()
    if answer.probabilities is None:
        return [{"prediction": label} for label in labels]
    rows = answer.probabilities.tolist()
    return [{"prediction": label, "probabilities": row} for label, row in zip(labels, rows, strict=True)]


def dumps(document: Any) -> bytes:
    """JSON bytes of a document with arrays in it."""
    return orjson.dumps(document, default=_plain, option=orjson.OPT_SERIALIZE_NUMPY)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    raise TypeError(type(value).__name__)
