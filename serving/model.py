"""The `kserve.Model` of a served name: KServe's side door into the same data plane.

KServe's own app reaches it for CloudEvents; the routes and the gRPC servicer of Headway go to the data plane directly.
It is a whole `kserve.Model`: a subclass may have its own `preprocess` and `postprocess`, in any `kserve.ModelServer`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import orjson
from kserve import InferRequest, InferResponse, Model
from kserve.errors import InvalidInput
from kserve.model_repository import ModelRepository

from serving.calls import Call
from serving.dataplane import DataPlane
from serving.errors import ServingError
from serving.transport.grpc import GrpcRequest
from serving.transport.head import new_identity
from serving.transport.v1 import V1Request


class Repository(ModelRepository):
    """KServe's list of models, with those that were not registered because they come and go."""

    def __init__(self, plane: DataPlane) -> None:
        super().__init__()
        self._plane = plane

    def get_model(self, name: str) -> Model | None:
        """The model of a served name, or None."""
        model: Model | None = super().get_model(name)
        return RegistryModel(name, lambda: self._plane) if model is None and self._plane.knows(name) else model


class RegistryModel(Model):
    """A served name as KServe sees it. `ready` is the truth of the moment, and `load` changes nothing."""

    def __init__(self, name: str, plane: Callable[[], DataPlane]) -> None:
        self._plane = plane
        super().__init__(name)

    @property
    def ready(self) -> bool:
        """Whether the name has a READY version now, or gets one when it is asked for."""
        try:
            manager = self._plane().manager(self.name)
            return manager.sleeps or manager.current is not None
        except ServingError:
            return False

    @ready.setter
    def ready(self, value: bool) -> None:
        """KServe sets this at construction and at stop; the registry decides, not KServe."""

    def load(self) -> bool:
        """Called by KServe inside a request when not ready: must be instant and tell the truth."""
        return self.ready

    def stop(self) -> None:
        """Nothing is released here: requests may be in flight, and their leases release."""

    async def predict(self, payload: Any, headers: dict[str, str] | None = None, response_headers: Any = None) -> Any:
        """One V1 document or one Open Inference request through the data plane, and the answer in the same kind."""
        request_id = (headers or {}).get("x-request-id") or new_identity()
        call = Call(self.name, request_id=request_id, received=time.monotonic())
        if isinstance(payload, InferRequest):
            reply = await self._plane().infer(call, GrpcRequest(_message(payload)))
            return InferResponse.from_grpc(reply.payload)
        if not isinstance(payload, dict):
            raise InvalidInput("The data of the event must be a JSON object with 'instances'.")
        document = await self._plane().infer(call, V1Request(_body(payload)))
        return orjson.loads(document.payload)


def _body(payload: dict[str, Any]) -> bytes:
    """KServe's document as JSON again; what is read may be nested deeper than what can be written."""
    try:
        return orjson.dumps(payload)
    except TypeError as error:
        raise InvalidInput("The data of the event are nested too deep.") from error


def _message(request: InferRequest) -> Any:
    """KServe's request as the message of its gRPC protocol, which holds tensors of both transports."""
    try:
        return request.to_grpc()
    except (TypeError, ValueError) as error:
        raise InvalidInput("The data of a tensor do not have its datatype.") from error
