"""The end of a gRPC server: whoever has sent a call is answered."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from serving.transport.arrivals import LULL_SECONDS, Arrivals
from serving.transport.goaway import Goodbye
from serving.transport.grpc import build_server
from tests.lanes import Listening, listening
from tests.servers import free_port

CALLS = 40
#: Or the loss hides.
ONCE = [("grpc.enable_retries", 0)]


def message() -> Any:
    tensor = pb.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP64", shape=[1], contents={"fp64_contents": [7.0]}
    )
    return pb.ModelInferRequest(model_name="echo", inputs=[tensor])


async def start(served: Listening, arrivals: Arrivals) -> tuple[grpc.aio.Server, str]:
    address = f"127.0.0.1:{free_port()}"
    server = build_server(served.plane, address, 2**20, 100, served.room, arrivals, idle_seconds=60)
    await server.start()
    return server, address


async def test_calls_that_were_sent_and_not_yet_taken_in_are_answered() -> None:
    """They wait in grpc while the loop is late; then the server stops."""
    async with listening("protocol") as served:
        arrivals = Arrivals()
        server, address = await start(served, arrivals)
        with grpc.insecure_channel(address, options=ONCE) as channel, ThreadPoolExecutor(1) as pool:
            stub = GRPCInferenceServiceStub(channel)
            await asyncio.wrap_future(pool.submit(stub.ServerLive, pb.ServerLiveRequest()))
            sent = [stub.ModelInfer.future(message(), timeout=30) for _ in range(CALLS)]
            time.sleep(0.3)  # the loop is late
            await arrivals.gap(LULL_SECONDS)
            await server.stop(10)
            heard = [call.exception() for call in sent]
        assert heard == [None] * CALLS


async def test_without_calls_nobody_is_waited_for() -> None:
    """There is a gap at once."""
    async with asyncio.timeout(10):
        await Arrivals().gap()


async def test_calls_without_a_pause_do_not_keep_the_server() -> None:
    """It is let go for all that, within a second or two."""
    async with listening("protocol") as served:
        arrivals = Arrivals()
        server, address = await start(served, arrivals)
        ended = threading.Event()

        def ask() -> None:
            with grpc.insecure_channel(address, options=ONCE) as channel:
                stub = GRPCInferenceServiceStub(channel)
                while not ended.is_set():
                    stub.ServerLive(pb.ServerLiveRequest(), timeout=5)

        asking = [asyncio.create_task(asyncio.to_thread(ask)) for _ in range(4)]
        async with asyncio.timeout(20):
            await arrivals.gap()
        ended.set()
        await asyncio.gather(*asking)
        await server.stop(10)


async def test_clients_are_told_to_go_and_what_they_still_send_is_answered() -> None:
    """A call in flight ends on the connection it is on; the next one finds another."""
    async with listening("protocol", inline=False) as served:
        arrivals = Arrivals()
        server, address = await start(served, arrivals)
        goodbye = Goodbye(int(address.rpartition(":")[2]), arrivals)
        async with grpc.aio.insecure_channel(address, options=ONCE) as channel, asyncio.timeout(30):
            stub = GRPCInferenceServiceStub(channel)
            served.runtime.gate.clear()
            call = stub.ModelInfer(message(), timeout=30)
            await served.until(lambda: served.manager.current is not None and served.manager.current.leases == 1)
            saying = asyncio.create_task(goodbye.say(30))
            await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
            served.runtime.gate.set()
            assert list((await call).outputs[0].contents.fp64_contents) == [7.0]
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            await saying
        await server.stop(None)


async def test_a_calls_time_begins_when_it_is_taken_in() -> None:
    """Not when its handler's turn comes, in a loop that has much to do at every turn."""

    async def hog() -> None:
        while True:
            time.sleep(0.1)
            await asyncio.sleep(0)

    async with listening("protocol") as served:
        server, address = await start(served, Arrivals())
        async with grpc.aio.insecure_channel(address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            await stub.ServerLive(pb.ServerLiveRequest())
            busy = asyncio.create_task(hog())
            await stub.ModelInfer(message(), timeout=30)
            busy.cancel()
        await server.stop(None)
        labels = {"model_name": "echo", "model_version": "1"}
        seconds = served.metrics.registry.get_sample_value("inference_request_latency_seconds_sum", labels)
        assert seconds is not None
        assert seconds > 0.25  # three turns; its handler's own is one
