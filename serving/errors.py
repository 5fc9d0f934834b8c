"""One table from error classes to (HTTP status, gRPC status, reason), looked up along the class's MRO.

ServingError
├── BadRequest            the request cannot be understood or does not fit the signature
│   └── RowsRefused       the model's library refuses the values
├── NotFound              no such model, version or label
│   └── NoRoute           no such route
├── MethodNotAllowed      right route, wrong verb
├── UnsupportedMediaType  a content type that is neither JSON nor octet-stream
├── BodyTooLarge          more bytes than server.max_body_bytes
├── Forbidden             the operator did not allow it
├── RateLimited           more calls than the route takes; carries the seconds to wait
├── QueueFull             over the watermark; carries the seconds until it drains
│   └── Overloaded        clients make the server hold more than it may
├── NotReady              no READY version, or the server is past its drain bound
├── DeadlineExceeded      the request's time is over
├── NotOffered            explain, and parts that are not built
└── ModelFailed           the model raised, or answered with the wrong number of rows
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from grpc import StatusCode

from features.errors import FeatureError, FeaturesUnavailable, InvalidEntity, NullFeature, UnknownEntity
from registry.errors import RegistryError, UntrustedDelivery

FIXED = "The server could not answer this request; the log has the reason under this request's id."


class ServingError(Exception):
    """Base of what the data plane raises; the text is one sentence for the caller."""


class BadRequest(ServingError):
    """The request is malformed, or does not fit the model's signature."""


class RowsRefused(BadRequest):
    """The model refuses the values of the rows, again and again, and answers others."""


class NotFound(ServingError):
    """There is no such model, version or label."""


class NoRoute(NotFound):
    """There is no such route."""


class MethodNotAllowed(ServingError):
    """The route exists, but not for this method. `allow` are those that it takes."""

    def __init__(self, message: str, allow: Sequence[str]) -> None:
        super().__init__(message)
        self.allow = allow


class UnsupportedMediaType(ServingError):
    """The content type is neither JSON nor octet-stream."""


class BodyTooLarge(ServingError):
    """The body is longer than the limit."""


class RateLimited(ServingError):
    """More calls than the route takes. `retry_after` is the time until it takes one more, in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Forbidden(ServingError):
    """The operator has not allowed this call."""


class QueueFull(ServingError):
    """The version's queue is over its watermark.

    `retry_after` is the estimated time until it has drained, in whole seconds, at least 1.
    """

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Overloaded(QueueFull):
    """The server holds as much for its clients as it may, or has as many of them."""


class NotReady(ServingError):
    """No version can answer now."""


class NotLoadedYet(NotReady):
    """A model has no READY version yet, or one on demand is on its way. `retry_after` is when to ask again, in whole seconds."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NoRoom(NotLoadedYet):
    """A model does not fit in the memory budget beside those that are busy."""


class DeadlineExceeded(ServingError):
    """The request's deadline passed before its rows were computed."""


class NotOffered(ServingError):
    """The server has no such function."""


class ModelFailed(ServingError):
    """The model raised, or broke its contract. The reason is logged, never sent."""


class Outcome(NamedTuple):
    """What a caller sees of an error class."""

    http: int
    grpc: StatusCode
    reason: str


TABLE: dict[type[BaseException], Outcome] = {
    BadRequest: Outcome(400, StatusCode.INVALID_ARGUMENT, "bad_request"),
    InvalidEntity: Outcome(400, StatusCode.INVALID_ARGUMENT, "bad_request"),
    UnknownEntity: Outcome(400, StatusCode.INVALID_ARGUMENT, "unknown_entity"),
    NullFeature: Outcome(400, StatusCode.INVALID_ARGUMENT, "bad_request"),
    UntrustedDelivery: Outcome(401, StatusCode.UNAUTHENTICATED, "unauthenticated"),
    Forbidden: Outcome(403, StatusCode.PERMISSION_DENIED, "forbidden"),
    NotFound: Outcome(404, StatusCode.NOT_FOUND, "not_found"),
    MethodNotAllowed: Outcome(405, StatusCode.UNIMPLEMENTED, "method_not_allowed"),
    BodyTooLarge: Outcome(413, StatusCode.RESOURCE_EXHAUSTED, "body_too_large"),
    UnsupportedMediaType: Outcome(415, StatusCode.INVALID_ARGUMENT, "unsupported_media_type"),
    RateLimited: Outcome(429, StatusCode.RESOURCE_EXHAUSTED, "rate_limited"),
    QueueFull: Outcome(503, StatusCode.RESOURCE_EXHAUSTED, "queue_full"),
    NotReady: Outcome(503, StatusCode.UNAVAILABLE, "not_ready"),
    FeaturesUnavailable: Outcome(503, StatusCode.UNAVAILABLE, "features_unavailable"),
    DeadlineExceeded: Outcome(504, StatusCode.DEADLINE_EXCEEDED, "deadline"),
    NotOffered: Outcome(501, StatusCode.UNIMPLEMENTED, "not_offered"),
    ModelFailed: Outcome(500, StatusCode.INTERNAL, "model_failed"),
    FeatureError: Outcome(500, StatusCode.INTERNAL, "features_failed"),
    RegistryError: Outcome(500, StatusCode.INTERNAL, "registry_failed"),
    Exception: Outcome(500, StatusCode.INTERNAL, "internal"),
}

REASONS = tuple(sorted({outcome.reason for outcome in TABLE.values()} | {"cancelled"}))


#: Why HTTP turns a request away before a model is asked; those without a class here are not built yet.
REFUSALS = ("route", "method", "media", "size", "auth", "scope", "limit")
_REFUSED = {NoRoute: "route", MethodNotAllowed: "method", UnsupportedMediaType: "media", BodyTooLarge: "size"}


def refusal_of(error: BaseException) -> str | None:
    """Why HTTP turned a request away, as one of REFUSALS, if that is what the error is."""
    return _REFUSED.get(type(error))


def outcome_of(error: BaseException) -> Outcome:
    """The outcome of the nearest class in the error's MRO that the table names."""
    return next(TABLE[cls] for cls in type(error).__mro__ if cls in TABLE)


def public_text(error: BaseException) -> str:
    """The sentence that a caller may see: the error's own below 500 and for what is expected, else a fixed one."""
    return FIXED if outcome_of(error).http == 500 else str(error)
