"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T], discard: Callable[[T], None] = lambda value: None) -> T:
    """Runs a call in a daemon thread of its own, so that one that hangs blocks neither a pool nor the exit.
    A result that comes when nobody waits for it any more goes to `discard`, in a thread too."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T) -> None:
        if future.done():
            threading.Thread(target=discard, args=(result,), daemon=True, name="headway-work").start()
        else:
            future.set_result(result)

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  handed to the awaiting task
            _hand_over(loop, lambda e: None if future.done() else future.set_exception(e), error)
        else:
            _hand_over(loop, settle, result)

    threading.Thread(target=run, daemon=True, name="headway-work").start()
    return await future


def _hand_over(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], value: Any) -> None:
    """Settles the future on its loop; nobody may be left to hear it."""
    with contextlib.suppress(RuntimeError):  # the loop has closed
        loop.call_soon_threadsafe(settle, value)
