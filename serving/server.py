"""KServe's server, with our application in front, our host, our loop and a drain.

KServe's own `start` closes the port at the first signal, binds every interface whatever the host, and leaves uvloop
unused; the parts replaced here are those. Everything else (registration, its app, its clients) stays KServe's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import grpc
import uvicorn
from fastapi import FastAPI
from kserve import ModelServer
from kserve.model_server import app as kserve_app
from kserve.protocol.rest.server import RESTServer

from serving.crew import Crew
from serving.dataplane import DataPlane
from serving.doors import Doors
from serving.ending import MARGIN_SECONDS, SIGNALS, heard
from serving.errors import NotReady
from serving.fleet import Fleet
from serving.model import Repository
from serving.telling import Telling
from serving.transport.arrivals import LULL_SECONDS, Arrivals
from serving.transport.goaway import Goodbye
from serving.transport.grpc import build_server
from serving.transport.kserve_errors import HANDLED, answer_error
from serving.transport.lane import LaneProtocol
from serving.transport.protocol import Protocol
from serving.transport.room import Bounds, Room
from serving.transport.transformer import TransformerHttp

log = logging.getLogger("headway.server")
App = Callable[..., Awaitable[None]]
#: What the transports get beyond the drain's bound, to say that it has passed.
GOODBYE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where and how to listen, and for how long to drain."""

    host: str
    port: int
    grpc_port: int
    drain_delay_seconds: float
    drain_seconds: float
    max_message_bytes: int
    read_seconds: float
    keep_alive_seconds: float
    lane: Literal["protocol", "asgi"]
    max_connections: int
    room: Room
    #: whether other processes listen on the same ports
    shared: bool = False


class HeadwayServer(ModelServer):  # type: ignore[misc]  # kserve ships no types
    """A `kserve.ModelServer` that runs inside our loop and drains before it closes."""

    def __init__(self, address: Address, plane: DataPlane, http: App, fleet: Fleet, crew: Crew) -> None:
        super().__init__(
            http_port=address.port,
            grpc_port=address.grpc_port,
            workers=1,
            registered_models=Repository(plane),
            enable_latency_logging=False,
        )
        self._address, self.plane, self._fleet, self._crew = address, plane, fleet, crew
        self._rest = _Rest(self, address, http, crew.doors)
        self._grpc: grpc.aio.Server | None = None
        self._arrivals = Arrivals()
        self._goodbye = Goodbye(address.grpc_port, self._arrivals)
        self.exit_code = 0

    async def serve(self, started: Callable[[], None]) -> int:
        """Listens as soon as its crew lets it, until a signal; drains, and returns the exit code."""
        stop = _until_signal()
        self.request_stop = stop.set
        with heard(self._address.drain_delay_seconds + self._address.drain_seconds + MARGIN_SECONDS):
            return await self._serve(stop, started)

    async def _serve(self, stop: asyncio.Event, started: Callable[[], None]) -> int:
        stopped = asyncio.create_task(stop.wait())
        self._fleet.start()
        joining = asyncio.create_task(self._crew.join(stop.set))
        await _first(stopped, joining)
        joining.cancel()
        if not stopped.done():
            await self._listen(stopped, started)
        await self._fleet.stop()
        await self._crew.leave()
        return self.exit_code

    async def _listen(self, stopped: asyncio.Task[Any], started: Callable[[], None]) -> None:
        self._grpc = self._listen_grpc()
        await self._grpc.start()
        rest = asyncio.create_task(self._rest.start())
        self._crew.listens = True
        started()
        telling = asyncio.create_task(Telling(lambda: self._fleet.holders).run())
        await _first(stopped, rest)
        telling.cancel()
        await self._drain(rest)

    request_stop: Callable[[], None]

    def fail(self) -> None:
        """Ends the process with a non-zero exit code (`server.fail_fast`)."""
        self.exit_code = 1
        self.request_stop()

    async def _drain(self, rest: asyncio.Task[None]) -> None:
        """Readiness goes first, the port stays open for the delay, then what is in flight has the bound."""
        self.plane.draining, self._crew.listens = True, False
        log.info("draining", extra={"delay_seconds": self._address.drain_delay_seconds})
        await self._delay()
        self._rest.close()
        bound = asyncio.get_running_loop().call_later(self._address.drain_seconds, self._cut)
        assert self._grpc is not None
        # The bound fails what is left with a status of the contract; the transports get a moment more to say so.
        await asyncio.gather(rest, self._leave_grpc(self._grpc), return_exceptions=True)
        bound.cancel()
        self.plane.close()
        log.info("stopped", extra={"exit_code": self.exit_code})

    async def _delay(self) -> None:
        """By the half of it gateways have dropped the endpoint: who is told to go does not come back."""
        half = self._address.drain_delay_seconds / 2
        await asyncio.sleep(half)
        await asyncio.gather(self._goodbye.say(half), asyncio.sleep(half))

    async def _leave_grpc(self, server: grpc.aio.Server) -> None:
        loop, end = asyncio.get_running_loop(), self._address.drain_seconds + GOODBYE_SECONDS
        began = loop.time()
        await self._goodbye.say(GOODBYE_SECONDS)
        await self._arrivals.gap(LULL_SECONDS)
        await server.stop(max(0.0, began + end - loop.time()))

    def _listen_grpc(self) -> grpc.aio.Server:
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        where = f"{host}:{self._address.grpc_port}"
        a = self._address
        return build_server(
            self.plane, where, a.max_message_bytes, a.max_connections, a.room, self._arrivals,
            idle_seconds=a.keep_alive_seconds, shared=a.shared,
        )  # fmt: skip

    def _cut(self) -> None:
        log.warning(
            "drain bound passed; failing what is still in flight", extra={"seconds": self._address.drain_seconds}
        )
        self.plane.close(NotReady("The server is shutting down."))
        self._rest.cut()


class _Rest(RESTServer):  # type: ignore[misc]  # kserve ships no types
    """KServe's REST server with our application and our bounds."""

    def __init__(self, server: HeadwayServer, address: Address, http: App, doors: Doors | None) -> None:
        super().__init__("kserve.model_server:app", server.dataplane, server.model_repository_extension, address.port)
        self.config = _config(http, address, _protocol(server.plane, address))
        self._server = _Uvicorn(self.config, doors)

    def _add_exception_handlers(self, app: FastAPI) -> None:
        """Behind KServe's app every error is one of the contract."""
        super()._add_exception_handlers(app)
        for cls in HANDLED:
            app.add_exception_handler(cls, answer_error)

    def close(self) -> None:
        """Stops listening and lets what is in flight end."""
        self._server.should_exit = True

    def cut(self) -> None:
        """The drain bound has passed."""
        self._server.cut()


async def serve_http(app: TransformerHttp, address: Address, started: Callable[[], None]) -> None:
    """Serves an application of its own, without KServe's server, until a signal; drains as the server does."""
    stop = _until_signal()
    server = _Uvicorn(_config(app, address, partial(Protocol, _bounds(address))))
    serving = asyncio.create_task(server.serve())
    started()
    await _first(asyncio.create_task(stop.wait()), serving)
    app.draining = True
    log.info("draining", extra={"delay_seconds": address.drain_delay_seconds})
    await asyncio.sleep(address.drain_delay_seconds)
    server.should_exit = True
    bound = asyncio.get_running_loop().call_later(address.drain_seconds, server.cut)
    await serving
    bound.cancel()
    log.info("stopped")


def _until_signal() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    return stop


def _config(app: App, address: Address, protocol: Callable[..., Protocol]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=address.host,
        port=address.port,
        http=protocol,  # type: ignore[arg-type]  # it is called like the class it wraps
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        date_header=False,
        timeout_keep_alive=address.keep_alive_seconds,  # type: ignore[arg-type]  # it takes fractions as well
        # Never reached: all connections are closed a moment after the drain bound.
        timeout_graceful_shutdown=math.ceil(address.drain_seconds + GOODBYE_SECONDS) + 1,
    )


def _protocol(plane: DataPlane, address: Address) -> Callable[..., Protocol]:
    if address.lane == "asgi":
        return partial(Protocol, _bounds(address))
    return partial(LaneProtocol, plane, address.max_message_bytes, _bounds(address))


def _bounds(address: Address) -> Bounds:
    return Bounds(address.read_seconds, address.max_connections, address.room)


class _Uvicorn(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the server above decides when the port closes."""

    def __init__(self, config: uvicorn.Config, doors: Doors | None = None) -> None:
        super().__init__(config)
        self._doors = doors

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serves until it should exit; one of several workers from the socket of its own."""
        await super().serve(sockets if self._doors is None else [self._doors.own])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; one of several workers may be asked to accept from another's socket from now on."""
        await super().startup(sockets)
        if self._doors is not None:
            self._doors.opened(self._listen)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stops listening, then waits for what is in flight."""
        for server in self.servers:
            server.close()
        if self._doors is not None:
            self._doors.shut()
        await super().shutdown(sockets)

    def cut(self) -> None:
        """The drain bound has passed: who still asks is told so, and shortly after everybody is hung up on."""
        for connection in list(self.server_state.connections):
            connection.cut()  # type: ignore[union-attr]  # all are ours
        for task in list(self.server_state.tasks):
            task.cancel()  # the application answers for it: the server is shutting down
        asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self._hang_up)

    def _hang_up(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    async def _listen(self, door: socket.socket) -> asyncio.Server:
        protocol: Any = self.config.http_protocol_class
        made = partial(protocol, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        loop = asyncio.get_running_loop()
        return await loop.create_server(made, sock=door, backlog=self.config.backlog)

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


async def _first(*tasks: asyncio.Task[Any]) -> None:
    """Waits for the first of the tasks; a failure of it is raised."""
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


__all__ = ["Address", "HeadwayServer", "kserve_app", "serve_http"]
