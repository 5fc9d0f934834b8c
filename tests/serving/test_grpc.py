"""gRPC's own side of a request, over a real channel to a server of one model."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.transport.arrivals import Arrivals
from serving.transport.grpc import build_server
from tests.lanes import Listening, listening
from tests.servers import free_port


@contextlib.asynccontextmanager
async def channel() -> AsyncIterator[tuple[grpc.aio.Channel, Listening]]:
    """A channel to a server of `echo`, whose one column is a double."""
    async with listening("protocol") as served:
        address = f"127.0.0.1:{free_port()}"
        server = build_server(served.plane, address, 2**20, 100, served.room, Arrivals(), idle_seconds=60)
        await server.start()
        async with grpc.aio.insecure_channel(address) as opened:
            yield opened, served
        await server.stop(None)


def message(**more: Any) -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP64", shape=[1], contents={"fp64_contents": [7.0]}
    )
    return pb.ModelInferRequest(model_name="echo", inputs=[tensor], **more)


@pytest.mark.audit("7")
@pytest.mark.parametrize("identity", ["café", "a\tb", "\n", "\u202e", "é" * 200, "plain-1", "", "x" * 5000])
async def test_an_id_comes_back_as_it_came_whatever_it_is_made_of(identity: str) -> None:
    """In the message whole; in the metadata where metadata can carry it, else an id of ours."""
    async with channel() as (opened, _):
        call = GRPCInferenceServiceStub(opened).ModelInfer(message(id=identity), timeout=30)
        assert (await call).id == identity
        told = str(dict(await call.trailing_metadata() or ())["x-request-id"])
    assert told == identity[:128] if identity and identity.isascii() and identity.isprintable() else len(told) == 32


@pytest.mark.audit("7")
async def test_metadata_names_the_request_before_its_message_does() -> None:
    """A printable one, that is."""
    async with channel() as (opened, _):
        call = GRPCInferenceServiceStub(opened).ModelInfer(
            message(id="café"), timeout=30, metadata=(("x-request-id", "trace 1"),)
        )
        assert (await call).id == "café"
        assert dict(await call.trailing_metadata() or ())["x-request-id"] == "trace 1"
