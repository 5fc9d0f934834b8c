"""One request as ASGI brings it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeVar

from serving.transport.head import Head

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
T = TypeVar("T")
LINGER_SECONDS = 5.0


class ClientGone(Exception):
    """The client hung up: there is nobody to answer."""


class Exchange(Head):
    """One HTTP request: its route's parts, its headers, and its body, read once and bounded."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        super().__init__(dict(scope["headers"]), limit)
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._unread = b"content-length" in self.headers or b"transfer-encoding" in self.headers

    async def body(self, limit: int | None = None, of: str = "this route takes") -> bytes:
        """The whole body. Raises BodyTooLarge as soon as it is known to be too long; a route may take less, and say why."""
        if limit is not None and limit < self.limit:
            self.limit, self.limited_by = limit, of
        self.check_length()
        body = await self._next()
        if not self._unread and len(body) <= self.limit:
            return body
        chunks, size = [body], len(body)
        while size <= self.limit and self._unread:
            chunks.append(await self._next())
            size += len(chunks[-1])
        if size > self.limit:
            raise self.too_large()
        return b"".join(chunks)

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
