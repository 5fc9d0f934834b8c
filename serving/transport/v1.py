"""The V1 protocol: `{"instances": […]}` in, `{"predictions": […]}` out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import orjson

from serving.calls import Answer, Decoded
from serving.decoding import Partial, decode_instances, decode_parts
from serving.errors import BadRequest
from serving.loading import Loaded
from serving.schema import shown
from serving.transport.document import parse_object
from serving.transport.head import PLAIN
from serving.transport.numeric import LEAST_BYTES, MOST_BYTES, parse_numbers, parse_rows
from serving.transport.slicing import LongList, take_out, taken
from serving.waiting import LOW, NORMAL, Priority

KEYS = {"instances", "parameters", "signature_name", "id"}
PRIORITY = b'"priority"'
OUTPUTS = ("auto", "labels", "probabilities", "raw")


def parse_parameters(parameters: Any) -> tuple[str | None, bool | None, Priority]:
    """`output`, `per_instance` and `priority` of a request's parameters; others are ignored. Raises BadRequest."""
    if parameters is None:
        return None, None, NORMAL
    if not isinstance(parameters, dict):
        raise BadRequest("'parameters' must be an object.")
    output, per_instance = parameters.get("output"), parameters.get("per_instance")
    if output is not None and output not in OUTPUTS:
        raise BadRequest(f"The parameter 'output' must be one of {', '.join(OUTPUTS)}.")
    if per_instance is not None and not isinstance(per_instance, bool):
        raise BadRequest("The parameter 'per_instance' must be true or false.")
    return output, per_instance, _priority(parameters.get("priority"))


def _priority(given: Any) -> Priority:
    """Triton's numbers: the smaller goes first, and 0 is none in particular."""
    if given is None:
        return NORMAL
    if type(given) is not int or not 0 <= given <= LOW:
        raise BadRequest("The parameter 'priority' must be 1 (high), 2 (normal), 3 (low), or 0, which is normal.")
    return Priority(given or NORMAL)


class V1Request:
    """One V1 request. Its body is parsed when a version is there to check it, so that what fails is counted."""

    __slots__ = ("_body",)
    content = PLAIN

    def __init__(self, body: bytes) -> None:
        self._body = body

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self._body)

    def decode(self, loaded: Loaded) -> Decoded:
        """Rows and parameters, checked against the version's schema."""
        if len(self._body) >= LEAST_BYTES and (numbers := self._numbers(loaded)) is not None:
            return numbers
        return _decoded(parse_object(self._body), loaded)

    def decode_at_once(self, loaded: Loaded) -> Decoded | None:
        """Numbers, and not too many."""
        return self._numbers(loaded) if len(self._body) <= MOST_BYTES else None

    def decode_slices(self, loaded: Loaded, pace: Callable[[], None]) -> Decoded:
        """The same as `decode`, a slice at a time."""
        document, lists = take_out(self._body, "instances", 2, 1000, pace)
        return _decoded(document, loaded, taken(document.get("instances"), lists))

    def _numbers(self, loaded: Loaded) -> Decoded | None:
        if not loaded.schema.one_array:
            return None
        numbers = parse_rows(self._body, exact=loaded.schema.exact)
        if numbers is not None:
            with suppress(BadRequest):  # the other way says what is wrong
                return _decoded(numbers, loaded)
        return None

    @property
    def may_hurry(self) -> bool:
        """Whether the body has the word."""
        return PRIORITY in self._body

    def encode(self, answer: Answer) -> bytes:
        """The answer as JSON; NaN and infinity become null."""
        return dumps(to_document(answer))


def _decoded(document: dict[str, Any], loaded: Loaded, rows: LongList | None = None) -> Decoded:
    if "instances" not in document:
        raise BadRequest("The body must have 'instances', a list of rows.")
    if not document.keys() <= KEYS:
        key = min(document.keys() - KEYS)
        raise BadRequest(f"The key {shown(key)!r} is not known: a body has 'instances' and 'parameters'.")
    output, per_instance, priority = parse_parameters(document.get("parameters"))
    if rows is None:
        partial = decode_instances(loaded.schema, document["instances"], loaded.keys)
    else:
        partial = _long(rows, loaded)
    return Decoded(partial, output, per_instance, priority)


def _long(rows: LongList, loaded: Loaded) -> Partial:
    schema = loaded.schema
    if schema.one_array:
        numbers = parse_numbers(rows.text, rows.pace, exact=schema.exact)
        if numbers is not None:
            with suppress(BadRequest):  # as above
                return decode_instances(schema, numbers, loaded.keys)
    return decode_parts(schema, rows, loaded.keys)


def to_document(answer: Answer) -> dict[str, Any]:
    """The answer as a document whose leaves may be arrays."""
    whom = {"model_name": answer.model, "model_version": answer.version.version}
    if answer.outputs.named is not None:
        return {"predictions": _by_name(answer.outputs.named, answer.per_instance), **whom}
    if answer.per_instance:
        return {"predictions": _per_instance(answer), **whom}
    probabilities = answer.probabilities
    if probabilities is None:
        return {"predictions": answer.predictions, **whom}
    return {"predictions": answer.predictions, "probabilities": probabilities, **whom}


def _by_name(named: dict[str, np.ndarray], per_instance: bool) -> list[dict[str, Any]]:
    """One object per instance: each output's row of it."""
    rows = [dict(zip(named, values, strict=True)) for values in zip(*map(list, named.values()), strict=True)]
    return [{"prediction": row} for row in rows] if per_instance else rows


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
