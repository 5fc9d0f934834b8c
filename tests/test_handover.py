"""Two servers behind one address, as a Service has it: one stops after the other, under load, and no gRPC call is lost."""

import asyncio
import contextlib
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

from tests.servers import MlflowServer, Server

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
MODEL = "predictive_maintenance"
STOPS, CALLS_PER_SECOND = 10, 150


class Relay:
    """A TCP relay on a port of its own: who connects gets to `target` and stays there, whatever that becomes meanwhile."""

    def __init__(self) -> None:
        self.target, self.port = 0, 0
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, daemon=True).start()
        assert self._up.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _run(self) -> None:
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        self._loop.run_forever()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        await asyncio.gather(_pump(reader, back), _pump(there, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(65536):
            writer.write(piece)
        writer.write_eof()


class Callers:
    """One channel, a call at a time whether the one before is answered or not; what was lost is not asked again."""

    def __init__(self, port: int) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.enable_retries", 0)])
        self._stub = GRPCInferenceServiceStub(self._channel)
        self._message = pb.ModelInferRequest(model_name=MODEL, inputs=[_tensor()])
        self.heard: Counter[str] = Counter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Callers":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._channel.close()

    def _ask(self) -> None:
        due, asked = time.monotonic(), []
        while not self._ended.is_set():
            call = self._stub.ModelInfer.future(self._message, timeout=20)
            call.add_done_callback(self._note)
            asked.append(call)
            due += 1 / CALLS_PER_SECOND
            time.sleep(max(0.0, due - time.monotonic()))
        for call in asked:
            call.exception()

    def _note(self, call: Any) -> None:
        self.heard["OK" if call.code() is grpc.StatusCode.OK else f"{call.code().name}: {call.details()}"] += 1


def _tensor() -> Any:
    row = [75.3, 24, 0.15, 0.65, 0.8, 2.5, 1, 0, 0, 0]
    return pb.ModelInferRequest.InferInputTensor(
        name="x", datatype="FP64", shape=[1, len(row)], contents={"fp64_contents": row}
    )


@pytest.fixture
def relay() -> Iterator[Relay]:
    relay = Relay()
    yield relay
    relay.close()


def test_ten_stops_lose_no_call(headway: Callable[..., Server], shared: MlflowServer, relay: Relay) -> None:
    """The endpoint is taken away with the signal; the channel moves when its server leaves."""

    def start() -> Server:
        reference = ("--model-uri", f"models:/{MODEL}/1")
        server = headway(*reference, MLFLOW_TRACKING_URI=shared.uri, HEADWAY_SERVER__DRAIN_DELAY_SECONDS="1")
        server.until_ready()
        return server

    serving, next_one = start(), start()
    relay.target = serving.grpc_port
    with Callers(relay.port) as callers:
        for _ in range(STOPS):
            before = sum(callers.heard.values())
            serving.until(lambda before=before: sum(callers.heard.values()) > before + 100, "under load")
            relay.target = next_one.grpc_port
            serving.process.send_signal(signal.SIGTERM)
            assert serving.process.wait(30) == 0
            serving, next_one = next_one, start()
    assert list(callers.heard) == ["OK"], callers.heard
