"""gRPC's own health service: what probes, meshes and load balancers ask.

`""` and the inference service are ready when the server is, a model's name when it has a READY version, and `liveness`
is served while the process can answer at all.
"""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthServicer

from serving.dataplane import DataPlane

LIVENESS = "liveness"
_Status = pb.HealthCheckResponse
_LOOK_SECONDS = 1.0


class Health(HealthServicer):  # type: ignore[misc]  # generated code without types
    """Readiness is a fact of the moment: it is looked up, never noted down."""

    def __init__(self, plane: DataPlane, service: str) -> None:
        self._plane, self._service = plane, service

    async def Check(self, request: Any, context: Any) -> Any:
        """The status of a service or model; NOT_FOUND for a name that is neither."""
        status = self._status(request.service)
        if status == _Status.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service or model here.")
        return _Status(status=status)

    async def Watch(self, request: Any, context: Any) -> None:
        """The status now, and whenever it has changed; ends when the server drains, which would wait for it."""
        told = None
        while True:
            draining, status = self._plane.draining, self._status(request.service)
            if status != told:
                await context.write(_Status(status=status))
            if draining:
                return
            told = status
            await asyncio.sleep(_LOOK_SECONDS)

    def _status(self, service: str) -> int:
        if service == LIVENESS:
            ready = True
        elif service in ("", self._service):
            ready = self._plane.ready
        elif self._plane.knows(service):
            ready = not self._plane.draining and self._plane.serves(service)
        else:
            return int(_Status.SERVICE_UNKNOWN)
        return int(_Status.SERVING if ready else _Status.NOT_SERVING)
