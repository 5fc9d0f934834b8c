"""What a request asks of the data plane, and its answer as HTTP. Shared by both lanes."""

from __future__ import annotations

from collections.abc import Iterable

from serving.calls import STAGES, Call, Reply
from serving.errors import MethodNotAllowed, NotLoadedYet, QueueFull, RateLimited, outcome_of, public_text
from serving.transport.head import JSON, PLAIN, Head, plain, plain_word
from serving.transport.routes import Target
from serving.transport.v1 import V1Request, dumps
from serving.transport.v2 import V2Request

CLOSE = (b"connection", b"close")
TIMING = b", ".join(stage.encode() + b";dur=%.3f" for stage in STAGES)
LINE = b"%b: %b\r\n"
JSON_LINE = LINE % JSON
WRITTEN = (
    b"HTTP/1.1 200 OK\r\n%bx-model-version: %b\r\nserver-timing: %b\r\n"
    b"content-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"
)


class Response:
    """Status, body and extra headers of one answer."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = (JSON,)) -> None:
        self.status, self.body, self.headers = status, body, list(headers)


def question(target: Target, head: Head, body: bytes, received: float) -> tuple[Call, V1Request | V2Request]:
    """What the data plane is asked by a request that was `received` then, and is unpacked. Raises BadRequest."""
    timeout = head.timeout()
    request = V1Request(body) if target.v1 else V2Request(body, head.headers.get(b"inference-header-content-length"))
    return Call(target.model, target.version, target.label, head.request_id, received, timeout), request


def answered(reply: Reply[bytes], request: V1Request | V2Request) -> Response:
    """The answer of a version, and who gave it in what time."""
    timing = timing_of(reply)
    who = ((b"x-model-version", plain_word(reply.version)), (b"server-timing", timing))
    return Response(200, reply.payload, (*request.content, *_notes(reply), *who))


def timing_of(reply: Reply[bytes]) -> bytes:
    """`server-timing`: the milliseconds of each stage."""
    decode, features, predict, encode = reply.stages
    return TIMING % (1000 * decode, 1000 * features, 1000 * predict, 1000 * encode)


def _notes(reply: Reply[bytes]) -> list[tuple[bytes, bytes]]:
    """Says which rows were completed by a policy, if any were, and what the response cache did, if there is one."""
    notes = ((b"x-headway-features", reply.features), (b"x-cache", reply.cache))
    return [(name, plain_word(text)) for name, text in notes if text]


def written(reply: Reply[bytes], request: V1Request | V2Request, head: Head, *, close: bool) -> bytes:
    """The same as bytes, with all headers: what `answered`, `complete_headers` and uvicorn would write."""
    timing = timing_of(reply)
    identity, closing = head.request_id.encode("latin-1"), b"connection: close\r\n" if close else b""
    plain = request.content is PLAIN and not reply.features and not reply.cache
    content = JSON_LINE if plain else b"".join([LINE % header for header in (*request.content, *_notes(reply))])
    return WRITTEN % (content, plain_word(reply.version), timing, len(reply.payload), identity, closing, reply.payload)


def complete_headers(response: Response, head: Head, *, close: bool) -> list[tuple[bytes, bytes]]:
    """All headers of an answer. None of them can end early and begin another, wherever its text came from."""
    headers = [
        *[(plain(name), plain(value)) for name, value in response.headers],
        (b"content-length", b"%d" % len(response.body)),
        (b"x-request-id", head.request_id.encode("latin-1")),
    ]
    return [*headers, CLOSE] if close else headers


def error_response(error: Exception) -> Response:
    """The contract's error body and status for any exception."""
    headers = [JSON]
    if isinstance(error, QueueFull | RateLimited | NotLoadedYet):
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", ", ".join(error.allow).encode()))
    return Response(outcome_of(error).http, dumps({"error": public_text(error)}), headers)
