"""The predictor behind a transformer, over HTTP: its answers as they are, within a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from serving.errors import DeadlineExceeded, NotReady, QueueFull

Headers = Sequence[tuple[bytes, bytes]]
#: Of one connection, or of the body as it was before it was read: never handed on.
OF_A_HOP = frozenset((
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade", b"expect", b"host",
    b"content-length", b"content-encoding", b"accept-encoding", b"server", b"date", b"x-request-id", b"x-request-timeout-ms",
))  # fmt: skip
MOST_IN_FLIGHT = 1000
#: Less than the server's `keep_alive_seconds`, and than the idle time of what may stand between: none is used just then.
IDLE_SECONDS = 30.0


@dataclass(slots=True)
class Answered:
    """What the predictor answered."""

    status: int
    body: bytes
    headers: Headers

    def header(self, name: bytes) -> bytes:
        """A header's value, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")


class Predictor:
    """One pool of connections to a host (`name:port`, or a URL), used on one event loop. `most` questions wait at once."""

    def __init__(self, host: str, most: int = MOST_IN_FLIGHT) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=IDLE_SECONDS)
        base = host if "://" in host else f"http://{host}"
        whole = None  # what bounds a question is its deadline
        self._client = httpx.AsyncClient(base_url=base, timeout=whole, limits=limits, trust_env=False)
        self._in_flight, self._most = 0, most

    async def ask(self, method: str, path: str, headers: Headers, body: bytes, deadline: float | None) -> Answered:
        """One question; `deadline` is monotonic seconds. Its end, or the caller's cancellation, ends the exchange.

        Raises DeadlineExceeded, NotReady if the predictor cannot be reached, QueueFull if too many wait for it.
        """
        left = None if deadline is None else deadline - time.monotonic()
        if self._in_flight >= self._most:
            raise QueueFull("Too many requests wait for the predictor.", retry_after=1)
        self._in_flight += 1
        try:
            async with asyncio.timeout(left):
                answer = await self._client.request(method, path, content=body, headers=_asked(headers, left))
        except TimeoutError as error:
            raise DeadlineExceeded("The predictor did not answer before the request's deadline.") from error
        except httpx.HTTPError as error:
            raise NotReady("The predictor cannot be reached.") from error
        finally:
            self._in_flight -= 1
        raw = [(name.lower(), value) for name, value in answer.headers.raw]
        return Answered(answer.status_code, answer.content, [each for each in raw if each[0] not in OF_A_HOP])

    async def close(self) -> None:
        """Ends the connections."""
        await self._client.aclose()


def _asked(headers: Headers, left: float | None) -> list[tuple[bytes, bytes]]:
    """The headers of a question: a caller's own, and the time that is left. The answer must come as it is, not zipped."""
    due = [] if left is None else [(b"x-request-timeout-ms", b"%d" % max(1, int(1000 * left)))]
    return [*headers, (b"accept-encoding", b"identity"), *due]
