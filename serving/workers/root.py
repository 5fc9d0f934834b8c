"""The supervisor's composition root: reads the settings, and hands the workers theirs."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import signal
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from typing import TypeVar

from monitoring.logs import configure_logging
from serving.ports import check_port, shared_port
from serving.settings import Served, Settings
from serving.workers.member import Bounds
from serving.workers.supervisor import Supervisor
from serving.workers.worker import drain_bound, work

log = logging.getLogger("headway.workers")
T = TypeVar("T", bound=Served)
BUILT_IN = Bounds()


def supervise(settings: Settings, bounds: Bounds = BUILT_IN) -> int:
    """Runs the workers until a signal; returns the exit code. Raises PortInUse before anything else starts."""
    configure_logging(settings.monitoring.log_level)
    server = settings.server
    for port in (server.port, server.grpc_port):
        check_port(server.host, port)
    with ExitStack() as held:
        # Held here: nobody else gets the ports while no worker is there, and a port 0 is one number. The worker of each
        # place listens on its door, and what waits there outlives it; gRPC takes no socket, and has the port's number.
        first, grpc = (held.enter_context(shared_port(server.host, port)) for port in (server.port, server.grpc_port))
        port = first.getsockname()[1]
        doors = [first, *(held.enter_context(shared_port(server.host, port)) for _ in range(1, server.workers))]
        own = share(settings, server.workers, port, grpc.getsockname()[1])
        log.info("starting workers", extra={"workers": server.workers, "port": own.server.port})
        supervisor = Supervisor(server.workers, Forkserver(own, doors), drain_bound(settings), bounds)
        return asyncio.run(supervisor.run())


class Forkserver:
    """The process that workers are forked from. It lives as long as the supervisor and the workers do."""

    def __init__(self, settings: Settings, doors: Sequence[socket.socket]) -> None:
        """`settings` are those of every worker, `doors` what they listen on, by their numbers."""
        self._settings, self._doors = settings, tuple(doors)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["serving.workers.preload"])

    def warm(self) -> None:
        """Starts it if it does not run. A first fork waits until it has imported what all share.

        Ctrl-C is the supervisor's affair: it and what is forked from it inherit this thread's blocked signals.
        """
        resource_tracker.ensure_running()  # before: starting it would unblock them
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            first = self._context.Process(target=int)
            first.start()
            first.join()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def start(self, number: int, end: socket.socket) -> BaseProcess:
        """Forks a worker, in milliseconds once it is warm."""
        process = self._context.Process(target=work, args=(self._settings, end, number, self._doors))
        process.start()
        return process


def share(settings: Settings, workers: int, port: int, grpc_port: int) -> Settings:
    """What one worker may take of what the settings allow for all: memory, and the response cache's."""
    memory = settings.server.memory_bytes
    said = {"port": port, "grpc_port": grpc_port, "memory_bytes": memory and max(1, memory // workers)}
    return settings.model_copy(
        update={
            "server": settings.server.model_copy(update=said),
            "defaults": _share_cache(settings.defaults, workers),
            "models": tuple(_share_cache(entry, workers) for entry in settings.models),
        }
    )


def _share_cache(served: T, workers: int) -> T:
    cache = served.response_cache
    if not cache.max_bytes:
        return served
    own = cache.model_copy(update={"max_bytes": cache.max_bytes // workers})
    return served.model_copy(update={"response_cache": own})
