"""A worker's process, from its fork to its end."""

from __future__ import annotations

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Sequence

from serving.commands.serve import leave
from serving.settings import Settings

log = logging.getLogger("headway.workers")
#: The exit code of a worker that ends because `server.fail_fast` says so; Python's own errors are 1.
FAILED_FAST = 70
#: What a worker may take beyond its drain, to unload and say goodbye.
MARGIN_SECONDS = 15.0


def drain_bound(settings: Settings) -> float:
    """Seconds from the signal to the end, at most."""
    return settings.server.drain_delay_seconds + settings.server.drain_seconds + MARGIN_SECONDS


def work(settings: Settings, end: socket.socket, number: int, doors: Sequence[socket.socket]) -> None:
    """Serves as one of several workers until a signal, or until the supervisor is gone. Exits with a code."""
    threading.Thread(target=_outlive_briefly, args=(drain_bound(settings),), daemon=True).start()
    from serving.app import work as serve

    code = FAILED_FAST if serve(settings, end, number, doors) else 0
    leave(code)
    sys.exit(code)


def _outlive_briefly(seconds: float) -> None:
    """A worker whose loop hangs does not hear that the supervisor is gone; this thread does."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None
    supervisor.join()
    time.sleep(seconds)
    os._exit(1)
