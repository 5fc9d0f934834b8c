"""The process ends within a bound, whatever hangs in it: a model on the event loop, a thread that Python would wait for.

A signal that is handled on the loop is not heard while a model computes there. So the byte that Python writes for each
signal, whatever the main thread is at, is read by a thread, which starts the clock and passes the byte on to the loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator

log = logging.getLogger("headway.server")
SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What the end may take beyond the drain: transports and the supervisor are told. A worker's supervisor waits longer.
MARGIN_SECONDS = 10.0


def end_within(seconds: float, code: int = 1) -> None:
    """Ends the process after so many seconds if it still runs then, with this exit code."""
    threading.Thread(target=_end_after, args=(seconds, code), daemon=True, name="headway_ending").start()


def _end_after(seconds: float, code: int) -> None:
    time.sleep(seconds)
    facts = {"seconds": seconds, "threads": sorted(thread.name for thread in threading.enumerate())}
    # What hangs may hold the log's lock.
    telling = threading.Thread(
        target=log.error, args=("the process hangs and is ended",), kwargs={"extra": facts}, daemon=True
    )
    telling.start()
    telling.join(1.0)
    os._exit(code)


@contextlib.contextmanager
def heard(seconds: float) -> Iterator[None]:
    """Within it, a signal to end starts a clock of so many seconds. In the main thread, after the loop's handlers are set;
    the loop hears the signal too, when it can."""
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    loops = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)
    threading.Thread(target=_listen, args=(ours, loops, seconds), daemon=True, name="headway_signals").start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(loops, warn_on_full_buffer=False)
        os.close(theirs)


def _listen(ours: int, loops: int, seconds: float) -> None:
    clock = False
    while numbers := os.read(ours, 64):
        if not clock and any(number in SIGNALS for number in numbers):
            clock = True
            end_within(seconds)
        with contextlib.suppress(OSError):  # it has closed, or has enough to read
            os.write(loops, numbers)
    os.close(ours)
