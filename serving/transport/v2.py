"""The Open Inference Protocol over HTTP: tensors in, tensors out. What REST and gRPC share of V2 is here as well."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np

from serving.calls import Answer, Decoded
from serving.decoding import flatten
from serving.errors import BadRequest, BodyTooLarge
from serving.loading import Loaded
from serving.runtimes.base import datatype_of
from serving.runtimes.several import listed
from serving.schema import shown
from serving.tensors import NUMPY, Given, check_given, decode_tensors
from serving.transport.document import parse_object
from serving.transport.head import OCTETS, PLAIN
from serving.transport.numeric import LEAST_BYTES, MOST_BYTES, declared, parse_numbers, parse_tensors
from serving.transport.raw import from_raw, to_raw
from serving.transport.slicing import BLOCK_BYTES, LongList, take_out, taken
from serving.transport.v1 import PRIORITY, dumps, parse_parameters

#: Tensors that a request may have beside the model's own, which are refused by name.
MORE_TENSORS = 1000
#: Values of one tensor that become Python objects, all at once.
MOST_LISTED = 500_000


def check_outputs(names: Iterable[str], loaded: Loaded, output: str | None) -> tuple[str, ...]:
    """The outputs that a request selects. Raises BadRequest for one that the answer will not have."""
    chosen = tuple(names)
    if not chosen:
        return chosen
    probable = (output or loaded.configuration.output) == "auto" and loaded.runtime.classes is not None
    offered = loaded.names or (("predictions", "probabilities") if probable else ("predictions",))
    for name in chosen:
        if name not in offered:
            raise BadRequest(f"There is no output {shown(name)!r}; this answer has {listed(offered)}.")
    return chosen


def output_tensors(answer: Answer, chosen: tuple[str, ...]) -> list[tuple[str, np.ndarray]]:
    """The answer's tensors by name, in order: all, or those that the request selected."""
    tensors = [(name, plain(array)) for name, array in answer.named.items()]
    if answer.probabilities is not None:
        tensors.append(("probabilities", np.asarray(answer.probabilities, dtype=np.float64)))
    return [(name, array) for name, array in tensors if not chosen or name in chosen]


def plain(array: np.ndarray) -> np.ndarray:
    """Datetimes as ISO 8601 strings; everything else as it is."""
    if array.dtype.kind == "M":
        return np.array(np.datetime_as_string(array), dtype=object)
    return array


class V2Request:
    """One V2 request: JSON, or JSON of `json_length` bytes and binary tensors behind it."""

    __slots__ = ("_binary", "_body", "_chosen", "_id", "_json_length", "content")

    def __init__(self, body: bytes, json_length: bytes | None = None) -> None:
        self._body, self._json_length = body, json_length
        self._id: str | None = None
        self._chosen: tuple[str, ...] = ()
        self._binary: Callable[[str], bool] = _never
        #: the headers that say what the answer is, once it is encoded
        self.content: tuple[tuple[bytes, bytes], ...] = PLAIN

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return len(self._body)

    def decode(self, loaded: Loaded) -> Decoded:
        """Tensors and parameters, checked against the version's schema."""
        if len(self._body) >= LEAST_BYTES and (numbers := self._numbers(loaded)) is not None:
            return numbers
        document, tail = self._parts()
        return self._decoded(parse_object(document), tail, loaded)

    def decode_at_once(self, loaded: Loaded) -> Decoded | None:
        """Numbers: not too many in JSON, or any number in binary."""
        if self._json_length is None:
            return self._numbers(loaded) if len(self._body) <= MOST_BYTES else None
        document, tail = self._parts()
        if len(document) > BLOCK_BYTES or b'"BYTES"' in document or b"\\" in document:
            return None
        return self._decoded(parse_object(document), tail, loaded)

    def decode_slices(self, loaded: Loaded, pace: Callable[[], None]) -> Decoded:
        """The same as `decode`, a slice at a time."""
        text, tail = self._parts()
        most = len(loaded.schema.names) + len(loaded.keys) + MORE_TENSORS
        document, lists = take_out(text, "data", 4, most, pace)
        inputs = document.get("inputs")
        for tensor in inputs if lists and isinstance(inputs, list) else ():
            if isinstance(tensor, dict) and (values := taken(tensor.get("data"), lists)) is not None:
                tensor["data"] = _long(tensor, values, loaded)
        return self._decoded(document, tail, loaded)

    def _numbers(self, loaded: Loaded) -> Decoded | None:
        if self._json_length is not None or not loaded.schema.of_numbers:
            return None
        numbers = parse_tensors(self._body, loaded.keys, exact=loaded.schema.exact)
        if numbers is not None:
            with suppress(BadRequest):  # the other way says what is wrong
                return self._decoded(numbers, _NOTHING, loaded)
        return None

    def _decoded(self, document: dict[str, Any], tail: Tail, loaded: Loaded) -> Decoded:
        self._id = document.get("id")
        if not isinstance(self._id, str | None):
            raise BadRequest("'id' must be a string.")
        parameters = document.get("parameters")
        output, per_instance, priority = parse_parameters(parameters)
        inputs = document.get("inputs")
        if not isinstance(inputs, list):
            raise BadRequest("The body must have 'inputs', a list of tensors.")
        outputs = _outputs(document.get("outputs"))
        self._chosen = check_outputs([o["name"] for o in outputs], loaded, output)
        self._binary = _binary_outputs(parameters or {}, outputs)
        given = [given_of(t, tail) for t in inputs]
        if tail.left:
            raise BadRequest("There are more bytes behind the JSON than the binary tensors take.")
        return Decoded(decode_tensors(loaded.schema, given, loaded.keys), output, per_instance, priority)

    @property
    def may_hurry(self) -> bool:
        """Whether the body has the word."""
        return PRIORITY in self._body

    def _parts(self) -> tuple[bytes, Tail]:
        if self._json_length is None:
            return self._body, _NOTHING
        if not self._json_length.isdigit() or int(self._json_length[:19]) > len(self._body):
            raise BadRequest("The header inference-header-content-length must be the length of the JSON in the body.")
        length = int(self._json_length[:19])
        return self._body[:length], Tail(memoryview(self._body)[length:])

    def encode(self, answer: Answer) -> bytes:
        """The answer as JSON, in which NaN and infinity become null, and the tensors that were asked for in binary."""
        body: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version.version}
        if self._id is not None:
            body["id"] = self._id
        raw: list[bytes] = []
        body["outputs"] = [self._output(name, array, raw) for name, array in output_tensors(answer, self._chosen)]
        document = dumps(body)
        if not raw:
            return document
        self.content = (OCTETS, (b"inference-header-content-length", b"%d" % len(document)))
        return b"".join([document, *raw])

    def _output(self, name: str, array: np.ndarray, raw: list[bytes]) -> dict[str, Any]:
        tensor: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        if not self._binary(name):
            return {**tensor, "data": array.ravel()}
        raw.append(to_raw(array))
        return {**tensor, "parameters": {"binary_data_size": len(raw[-1])}}


class Tail:
    """The bytes behind the JSON, taken from the front."""

    def __init__(self, left: memoryview) -> None:
        self.left = left

    def take(self, name: str, size: Any) -> memoryview:
        """The next `size` bytes. Raises BadRequest if that is no size, or more than there are."""
        if type(size) is not int or not 0 <= size <= len(self.left):
            raise BadRequest(f"Tensor {shown(name)!r} has a 'binary_data_size' that the body does not have.")
        taken, self.left = self.left[:size], self.left[size:]
        return taken


_NOTHING = Tail(memoryview(b""))


def _never(name: str) -> bool:
    return False


def _binary_outputs(parameters: dict[str, Any], outputs: list[dict[str, Any]]) -> Callable[[str], bool]:
    """Which outputs are wanted in binary: all, or what the request says of each."""
    default = parameters.get("binary_data_output") is True
    own = {o["name"]: o.get("parameters", {}).get("binary_data", default) is True for o in outputs}
    return lambda name: own.get(name, default)


def _outputs(outputs: Any) -> list[dict[str, Any]]:
    if outputs is None:
        return []
    if not isinstance(outputs, list) or not all(map(_is_output, outputs)):
        raise BadRequest("'outputs' must be a list of objects with a 'name'.")
    return outputs


def _is_output(output: Any) -> bool:
    named = isinstance(output, dict) and isinstance(output.get("name"), str)
    return named and isinstance(output.get("parameters", {}), dict)


def _long(tensor: dict[str, Any], values: LongList, loaded: Loaded) -> np.ndarray | list[Any]:
    """A tensor's data that are long: as an array if they are numbers of its datatype, and else with its lists as they are."""
    name, dtype = tensor.get("name"), NUMPY.get(str(tensor.get("datatype")))
    if dtype is not None and dtype.kind in "fiu" and isinstance(name, str) and name not in loaded.keys:
        exact = loaded.schema.exact
        array = parse_numbers(values.text, values.pace, exact=dtype.kind != "f")
        if array is not None:
            with suppress(ValueError):
                return declared(array, dtype, exact=exact)
    if values.size > MOST_LISTED:
        raise BodyTooLarge(
            f"A tensor of JSON has at most {MOST_LISTED} values, unless they are numbers of its datatype."
        )
    return list(chain.from_iterable(values))


def given_of(tensor: Any, tail: Tail) -> Given:
    """One tensor of the JSON body. Raises BadRequest unless it has name, datatype, shape and data of the right types."""
    if not isinstance(tensor, dict) or not isinstance(tensor.get("name"), str):
        raise BadRequest("Every input must be an object with 'name', 'datatype', 'shape' and 'data'.")
    name, shape, data = tensor["name"], tensor.get("shape"), tensor.get("data")
    if not isinstance(tensor.get("datatype"), str):
        raise BadRequest(f"Tensor {shown(name)!r} must have a 'datatype'.")
    if not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise BadRequest(f"Tensor {shown(name)!r} must have a 'shape', a list of integers.")
    parameters = tensor.get("parameters")
    if isinstance(parameters, dict) and "binary_data_size" in parameters:
        if data is not None:
            raise BadRequest(f"Tensor {shown(name)!r} has both 'data' and binary data.")
        raw = from_raw(name, tensor["datatype"], tail.take(name, parameters["binary_data_size"]))
        return check_given(Given(name, tensor["datatype"], tuple(shape), raw))
    flat: list[Any] | np.ndarray
    kinds: set[type] | None = None
    if isinstance(data, np.ndarray):
        flat, nested = data.ravel(), data.shape
    elif isinstance(data, list):
        flat, nested, kinds = flatten(data, name)
    else:
        raise BadRequest(f"Tensor {shown(name)!r} must have 'data', a list.")
    if len(nested) > 1 and nested != tuple(shape):
        raise BadRequest(f"The data of tensor {shown(name)!r} do not have its shape.")
    return check_given(Given(name, tensor["datatype"], tuple(shape), flat, kinds))
