"""One request as ASGI brings it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from serving.transport.head import Head
from serving.transport.inflating import POOL
from serving.transport.room import Room

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
LINGER_SECONDS = 5.0
#: Among a connection's state where there are more of them than `server.max_connections`.
SURPLUS = "surplus"


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


class Exchange(Head):
    """One HTTP request: its route's parts, its headers, and its body, read once and bounded.

    What it holds of the `room` it gives back by `release`. `surplus` says that there are too many clients, `asked` that a model has the request;
    `received` is monotonic seconds at the last byte of the body, where that is read.
    """

    def __init__(self, scope: Scope, receive: Receive, limit: int, room: Room) -> None:
        super().__init__(dict(scope["headers"]), limit)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.asked, self.received = False, time.monotonic()
        self.surplus = SURPLUS in scope.get("state", ())
        self._receive, self._room, self._held = receive, room, 0
        self._unread = b"content-length" in self.headers or b"transfer-encoding" in self.headers

    async def body(self, limit: int | None = None, of: str = "this route takes") -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be too long; a route may take less, and say why."""
        if limit is not None and limit < self.limit:
            self.limit, self.limited_by = limit, of
        self.check_length()
        body = await self._next()
        self._held = self._room.grow(self._held, len(body))
        if self._unread or len(body) > self.limit:
            body = await self._rest(body)
        self.received = time.monotonic()
        return body

    async def _rest(self, body: bytes) -> bytes:
        """All of it, of which one piece has been read."""
        chunks, size = [body], len(body)
        while size <= self.limit and self._unread:
            chunks.append(await self._next())
            size += len(chunks[-1])
            self._held = self._room.grow(self._held, size)
        if size > self.limit:
            raise self.too_large()
        return b"".join(chunks)

    async def unpacked(self) -> bytes:
        """The whole body, without its gzip. Raises BodyTooLarge, or BadRequest if it is no gzip."""
        body = await self.body()
        inflating = self.inflating()
        if inflating is None:
            return body
        unpacked = inflating.begin(body)
        if unpacked is None:
            unpacked = await asyncio.get_running_loop().run_in_executor(POOL, inflating.finish)
            self._held = self._room.grow(self._held, len(body) + len(unpacked))
        return unpacked

    def release(self) -> None:
        """The request is answered, or nobody waits for it."""
        self._room.used -= self._held
        self._held = 0

    async def _next(self) -> bytes:
        message = await self._receive()
        if message.get("type") == "http.disconnect":
            raise ClientGone
        self._unread = message.get("more_body", False)
        return bytes(message.get("body", b""))

    async def unless_gone(self, work: Awaitable[T]) -> T:
        """What the work returns. A client that hangs up after its whole body was read cancels it: raises ClientGone."""
        asked = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self._gone())
        try:
            await asyncio.wait((asked, gone), return_when=asyncio.FIRST_COMPLETED)
            if not asked.done():
                raise ClientGone
            return asked.result()
        finally:
            asked.cancel()
            gone.cancel()

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    @property
    def lingers(self) -> bool:
        """Whether the client may still be sending a body that the answer did not need."""
        return self._unread and not self.waits

    @property
    def waits(self) -> bool:
        """Whether the client holds a body back until it is asked for it, which the answer never did."""
        return self._unread and b"expect" in self.headers

    async def discard(self) -> None:
        """Reads and drops the rest of the body: closing on bytes that nobody read would cut the answer off."""
        with contextlib.suppress(TimeoutError, ClientGone):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._unread:
                    await self._next()
