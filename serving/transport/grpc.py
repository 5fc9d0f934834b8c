"""V2 over gRPC: our own servicer of KServe's proto on `grpc.aio`, over the same data plane.

KServe's servicer drops versions and deadlines, answers UNKNOWN for a model that is not ready, and lets anyone unload.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain
from typing import Any

import grpc
import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection
from grpc_reflection.v1alpha.reflection import enable_server_reflection
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceServicer

from monitoring.logs import request_id
from serving.calls import Answer, Call, Decoded
from serving.dataplane import DataPlane
from serving.decode_pool import LARGE_BYTES
from serving.errors import BadRequest, BodyTooLarge, NotLoadedYet, Overloaded, QueueFull, outcome_of, public_text
from serving.loading import Loaded
from serving.runtimes.base import datatype_of
from serving.schema import shown
from serving.status import is_ready, metadata, server_metadata
from serving.tensors import NUMPY, Given, check_given, decode_tensors
from serving.transport.arrivals import Arrivals, arrived
from serving.transport.grpc_health import Health
from serving.transport.head import LONGEST_ID, new_identity, plain_word
from serving.transport.raw import as_bytes, from_raw, to_raw
from serving.transport.room import FREE, Room
from serving.transport.v1 import parse_parameters
from serving.transport.v2 import check_outputs, output_tensors
from serving.transport.wire import check_message

#: Tensors of raw numbers that are decoded on the event loop, however large; values of typed contents that are at a time.
MOST_AT_ONCE, SLICE_VALUES = 1000, 16_384
#: Calls of one connection at a time; the client's library lets others wait.
MOST_STREAMS = 1000
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class GrpcRequest:
    """One ModelInfer request."""

    __slots__ = ("_chosen", "_message", "size")

    def __init__(self, message: Any, size: int = 0) -> None:
        self._message, self.size = message, size
        self._chosen: tuple[str, ...] = ()

    def decode(self, loaded: Loaded) -> Decoded:
        """Tensors from typed or raw contents, checked against the version's schema."""
        return self.decode_slices(loaded, _at_once)

    def decode_at_once(self, loaded: Loaded) -> Decoded | None:
        """Raw numbers."""
        message = self._message
        plain = bool(message.raw_input_contents) and len(message.inputs) <= MOST_AT_ONCE
        return self.decode(loaded) if plain and all(t.datatype != "BYTES" for t in message.inputs) else None

    def decode_slices(self, loaded: Loaded, pace: Callable[[], None]) -> Decoded:
        """The same as `decode`, a slice at a time."""
        message = self._message
        output, per_instance, priority = parse_parameters({k: _parameter(v) for k, v in message.parameters.items()})
        self._chosen = check_outputs([o.name for o in message.outputs], loaded, output)
        return Decoded(
            decode_tensors(loaded.schema, _inputs(message, pace), loaded.keys), output, per_instance, priority
        )

    @property
    def may_hurry(self) -> bool:
        """Whether the message has the parameter."""
        return "priority" in self._message.parameters

    def encode(self, answer: Answer) -> Any:
        """The answer; raw contents if the request came with raw contents."""
        raw = bool(self._message.raw_input_contents)
        response = pb.ModelInferResponse(
            model_name=answer.model, model_version=answer.version.version, id=self._message.id
        )
        for name, array in output_tensors(answer, self._chosen):
            tensor = response.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
            if raw:
                response.raw_output_contents.append(to_raw(array))
            else:
                getattr(tensor.contents, _CONTENTS[_typed(tensor.datatype)]).extend(_values(array))
        return response


def _typed(datatype: str) -> str:
    """Half floats have no typed contents; single floats carry them."""
    return "FP32" if datatype == "FP16" else datatype


def _values(array: np.ndarray) -> list[Any]:
    values: list[Any] = array.ravel().tolist() if array.dtype.kind in "fiub" else as_bytes(array)
    return values


def _parameter(parameter: Any) -> Any:
    which = parameter.WhichOneof("parameter_choice")
    return None if which is None else getattr(parameter, which)


def _at_once() -> None:
    """The pace of a small message."""


def _inputs(message: Any, pace: Callable[[], None]) -> list[Given]:
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise BadRequest("raw_input_contents must have one entry per input.")
    return [_given(tensor, raw[i] if raw else None, pace) for i, tensor in enumerate(message.inputs)]


def _given(tensor: Any, raw: bytes | None, pace: Callable[[], None]) -> Given:
    name, datatype = tensor.name, tensor.datatype
    if raw is not None and tensor.HasField("contents"):
        raise BadRequest(f"Tensor {shown(name)!r} has both contents and raw contents.")
    if datatype not in _CONTENTS and not (datatype == "FP16" and raw is not None):
        raise BadRequest(f"Tensor {shown(name)!r} has an unknown datatype.")
    pace()
    flat = from_raw(name, datatype, raw) if raw is not None else _from_contents(name, datatype, tensor.contents, pace)
    return check_given(Given(name, datatype, tuple(tensor.shape), flat))


def _from_contents(name: str, datatype: str, contents: Any, pace: Callable[[], None]) -> list[Any] | np.ndarray:
    """The values of one tensor. A list of some is an array five times as fast as the field itself would be."""
    values = getattr(contents, _CONTENTS[datatype])
    lists = _lists(values, pace)
    if datatype == "BYTES":
        return list(chain.from_iterable(lists))
    try:
        arrays = [np.array(some, dtype=NUMPY[datatype]) for some in lists]
    except OverflowError:
        raise BadRequest(f"Tensor {shown(name)!r} has values that are no {datatype}.") from None
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _lists(values: Any, pace: Callable[[], None]) -> Iterator[list[Any]]:
    yield values[:SLICE_VALUES]
    for start in range(SLICE_VALUES, len(values), SLICE_VALUES):
        pace()
        yield values[start : start + SLICE_VALUES]


class Servicer(GRPCInferenceServiceServicer):  # type: ignore[misc]  # generated code without types
    """KServe's service over the data plane. Every error leaves as the status of `serving.errors.TABLE`."""

    def __init__(self, plane: DataPlane) -> None:
        self._plane = plane

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Whether the process can answer."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Whether every required model has a READY version."""
        return pb.ServerReadyResponse(ready=self._plane.ready)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Whether a model, or one version of it, is READY."""

        async def answer() -> Any:
            manager = self._plane.manager(request.name)
            return pb.ModelReadyResponse(ready=is_ready(manager, request.version or None))

        return await _guard(context, answer)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions of the server."""
        return pb.ServerMetadataResponse(**server_metadata())

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """Inputs and outputs of a model, or of one version of it."""

        async def answer() -> Any:
            return pb.ModelMetadataResponse(**metadata(self._plane.manager(request.name), request.version or None))

        return await _guard(context, answer)

    async def ModelInfer(self, request: Any, context: Any, size: int = 0) -> Any:
        """One inference; `size` is of the message, in bytes."""
        # Of a large message the last byte came later than the call.
        received = time.monotonic() if size > LARGE_BYTES else arrived.get()
        identity = _identity(context, request)
        request_id.set(identity)

        async def answer() -> Any:
            call = Call(
                request.model_name, request.model_version or None, None, identity, received, context.time_remaining()
            )
            reply = await self._plane.infer(call, GrpcRequest(request, size))
            notes = (("x-headway-features", reply.features), ("x-cache", reply.cache))
            told = [note for note in notes if note[1]]
            who = ("x-model-version", plain_word(reply.version).decode("ascii", "ignore"))
            context.set_trailing_metadata((("x-request-id", identity), who, *told))
            return reply.payload

        return await _guard(context, answer)

    async def RepositoryModelLoad(self, request: Any, context: Any) -> Any:
        """Loads a model that is served on demand, where `security.repository_api` allows it."""

        async def answer() -> Any:
            await self._plane.repository(request.model_name, load=True)
            return pb.RepositoryModelLoadResponse(model_name=request.model_name, isLoaded=True)

        return await _guard(context, answer)

    async def RepositoryModelUnload(self, request: Any, context: Any) -> Any:
        """Unloads a model that is served on demand, where `security.repository_api` allows it."""

        async def answer() -> Any:
            await self._plane.repository(request.model_name, load=False)
            return pb.RepositoryModelUnloadResponse(model_name=request.model_name, isUnloaded=True)

        return await _guard(context, answer)


def _identity(context: Any, request: Any) -> str:
    """The caller's id for the request, from its metadata or its message; one of ours, where metadata cannot carry that back."""
    given = dict(context.invocation_metadata() or ())
    wishes = (given.get("x-request-id"), request.id)
    usable = (w for w in wishes if w and isinstance(w, str) and w.isascii() and w.isprintable())
    return (next(usable, None) or new_identity())[:LONGEST_ID]


async def _guard(context: Any, answer: Callable[[], Awaitable[Any]]) -> Any:
    """The answer, or the contract's status for whatever was raised."""
    try:
        return await answer()
    except Exception as error:  # noqa: BLE001  the request boundary: every error becomes a status
        if isinstance(error, QueueFull | NotLoadedYet):
            context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
        await context.abort(outcome_of(error).grpc, public_text(error))


def _handlers(servicer: Servicer, room: Room) -> grpc.GenericRpcHandler:
    """The service's methods. KServe's generated registration would answer UNKNOWN to bytes that are no message."""
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods = {m.name: _handler(getattr(servicer, m.name), GetMessageClass(m.input_type)) for m in service.methods}
    methods["ModelInfer"] = _handler(_held(servicer.ModelInfer, room), pb.ModelInferRequest, sized=True)
    return grpc.method_handlers_generic_handler(service.full_name, methods)


def _held(method: Callable[..., Awaitable[Any]], room: Room) -> Callable[..., Awaitable[Any]]:
    """A large message counts among what clients make the server hold, from when it is whole until it is answered."""

    async def answer(message: Any, context: Any, size: int) -> Any:
        if size <= FREE:
            return await method(message, context, size)
        try:
            with room.holding(size):
                return await method(message, context, size)
        except Overloaded as error:
            context.set_trailing_metadata((("retry-after", str(error.retry_after)),))
            await context.abort(outcome_of(error).grpc, public_text(error))

    return answer


def _handler(method: Callable[..., Awaitable[Any]], kind: Any, *, sized: bool = False) -> grpc.RpcMethodHandler:
    def parse(data: bytes) -> Any:
        try:
            if sized and len(data) > LARGE_BYTES:
                check_message(data)
            return kind.FromString(data), len(data)
        except (DecodeError, BodyTooLarge) as error:
            return error, 0

    async def answer(request: Any, context: Any) -> Any:
        message, size = request
        if isinstance(message, BodyTooLarge):
            await context.abort(outcome_of(message).grpc, public_text(message))
        if isinstance(message, DecodeError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "The request is not a message of this method.")
        return await (method(message, context, size) if sized else method(message, context))

    return grpc.unary_unary_rpc_method_handler(answer, parse, lambda message: message.SerializeToString())


def build_server(
    plane: DataPlane,
    address: str,
    max_message_bytes: int,
    max_calls: int,
    room: Room,
    arrivals: Arrivals,
    *,
    idle_seconds: float,
    shared: bool = False,
) -> grpc.aio.Server:
    """A gRPC server that is bound and not started; `arrivals` sees its calls. Raises RuntimeError if the port is taken: nobody shares it, unless it
    is `shared` with others of this server."""
    server = grpc.aio.server(
        maximum_concurrent_rpcs=max_calls,
        options=[
            ("grpc.so_reuseport", int(shared)),
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_concurrent_streams", MOST_STREAMS),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_connection_idle_ms", int(1000 * idle_seconds)),
        ],
    )
    server.add_generic_rpc_handlers((arrivals,))
    server.add_generic_rpc_handlers((_handlers(Servicer(plane), room),))
    service = pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
    add_HealthServicer_to_server(Health(plane, service), server)
    enable_server_reflection((service, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    server.add_insecure_port(address)  # serving.transport.goaway writes into these connections: not so under TLS
    return server
