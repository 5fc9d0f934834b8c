"""A line between the supervisor and one worker: length-prefixed JSON over a socket pair; either side asks the other.

What is said or answered may also be bytes: they follow the JSON as they are, which costs neither side's loop any time.

Every question has a deadline, and all is bounded: a message, what may wait to be read, and the questions under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

log = logging.getLogger("headway.workers")
#: Answers one question or hears one remark: `(what, facts)`. What it raises is what the other side's `ask` raises.
Handler = Callable[[str, Any], Awaitable[Any]]
LONGEST_MESSAGE = 256 * 2**20
MOST_UNREAD = 512 * 2**20
MOST_UNDER_WAY = 4096
_LENGTH = struct.Struct(">I")


class LinkLost(Exception):
    """There is nobody at the other end any more, or too much is under way."""


class Refused(Exception):
    """The other side raised: the name of the class, its text, and the seconds after which to ask again, if it said so."""

    def __init__(self, kind: str, text: str, retry_after: int | None = None) -> None:
        super().__init__(text)
        self.kind, self.retry_after = kind, retry_after

    @classmethod
    def of(cls, error: Exception) -> Refused:
        """An exception as it goes over the line."""
        if isinstance(error, Refused):
            return error
        return cls(type(error).__name__, str(error), getattr(error, "retry_after", None))


class Link:
    """One end of the line. Lives on the event loop."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: Handler) -> None:
        self._reader, self._writer, self._answer = reader, writer, answer
        self._ids = count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.lost = False

    @classmethod
    async def over(cls, end: socket.socket, answer: Handler) -> Link:
        """The line over one end of a socket pair, which it owns from now on."""
        return cls(*await asyncio.open_connection(sock=end, limit=2**20), answer)

    async def run(self) -> None:
        """Reads until the other side is gone, or says what is no message; then whoever waits hears LinkLost."""
        try:
            while True:
                (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
                _bounded(length)
                message = json.loads(await self._reader.readexactly(length))
                if "bytes" in message:
                    message["value"] = await self._reader.readexactly(_bounded(message["bytes"]))
                self._hear(message)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side ended, in whatever way
        except ValueError as error:
            log.error("what was said is no message", extra={"reason": str(error)})
        finally:
            self.close()

    async def ask(self, what: str, facts: Any = None, *, seconds: float) -> Any:
        """The other side's answer. Raises TimeoutError, LinkLost, or Refused."""
        if len(self._waiting) >= MOST_UNDER_WAY:
            raise LinkLost("too many questions are under way")
        number = next(self._ids)
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            self._send({"id": number, "what": what}, facts)
            async with asyncio.timeout(seconds):
                return await future
        finally:
            del self._waiting[number]

    def tell(self, what: str, facts: Any = None) -> None:
        """A remark; nobody answers. One that finds nobody is lost."""
        with contextlib.suppress(LinkLost):
            self._send({"what": what}, facts)

    def close(self) -> None:
        """Hangs up."""
        self.lost = True
        self._writer.close()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(LinkLost("the other side is gone"))
        for task in self._answering:
            task.cancel()

    def _send(self, head: dict[str, Any], value: Any) -> None:
        raw = value if isinstance(value, bytes) else None
        message = {**head, "value": value} if raw is None else {**head, "bytes": len(raw)}
        data = json.dumps(message, separators=(",", ":")).encode()
        if self.lost or self._writer.transport.get_write_buffer_size() + len(data) + len(raw or b"") > MOST_UNREAD:
            raise LinkLost("the other side does not listen")
        self._writer.write(_LENGTH.pack(len(data)) + data)
        if raw:
            self._writer.write(raw)

    def _hear(self, message: dict[str, Any]) -> None:
        if "re" not in message:
            task = asyncio.get_running_loop().create_task(self._reply(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
            return
        future = self._waiting.get(message["re"])
        if future is None or future.done():
            return  # it took too long, and nobody waits any more
        if "error" in message:
            future.set_exception(Refused(*message["error"]))
        else:
            future.set_result(message["value"])

    async def _reply(self, message: dict[str, Any]) -> None:
        head: dict[str, Any]
        try:
            head, value = {}, await self._answer(message["what"], message["value"])
        except Exception as error:  # noqa: BLE001  the request boundary between two processes
            refused = Refused.of(error)
            head, value = {"error": [refused.kind, str(refused), refused.retry_after]}, None
        if "id" in message:
            with contextlib.suppress(LinkLost):
                self._send({"re": message["id"], **head}, value)


def _bounded(length: int) -> int:
    if length > LONGEST_MESSAGE:
        raise ValueError(f"{length} bytes are too long")
    return length
