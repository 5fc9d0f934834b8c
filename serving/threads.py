"""Blocking work beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Quit(RuntimeError):
    """The call raised what would end the loop that it is handed to (SystemExit, KeyboardInterrupt, …), or what cannot be
    handed over at all; that is its cause."""


async def in_thread(call: Callable[[], T], discard: Callable[[T], None] = lambda value: None) -> T:
    """Runs a call in a daemon thread of its own, so that one that hangs blocks neither a pool nor the exit.
    A result that comes when nobody waits for it any more goes to `discard`, in a thread too. Raises what the call raises,
    and Quit for what a call may raise but a task must not."""
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
            _hand_over(loop, lambda e: None if future.done() else future.set_exception(e), _bearable(error))
        else:
            _hand_over(loop, settle, result)

    threading.Thread(target=run, daemon=True, name="headway-work").start()
    return await future


def _bearable(error: BaseException) -> Exception:
    """The error as a task may raise it: a StopIteration would be lost, and others end the loop or pass for a
    cancellation."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    quit = Quit(f"it raised {type(error).__name__}")
    quit.__cause__ = error
    return quit


def _hand_over(loop: asyncio.AbstractEventLoop, settle: Callable[[Any], None], value: Any) -> None:
    """Settles the future on its loop; nobody may be left to hear it."""
    with contextlib.suppress(RuntimeError):  # the loop has closed
        loop.call_soon_threadsafe(settle, value)
