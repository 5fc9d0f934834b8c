"""One table translates every error class of every package."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from grpc import StatusCode

import features
import monitoring
import registry
import serving
from features.errors import FeaturesUnavailable, InvalidFeatures, UnknownEntity
from registry.errors import InvalidModel, RegistryUnavailable, UntrustedDelivery
from serving.errors import (
    FIXED,
    REASONS,
    TABLE,
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    Forbidden,
    MethodNotAllowed,
    ModelFailed,
    NotFound,
    NotOffered,
    NotReady,
    QueueFull,
    RateLimited,
    UnsupportedMediaType,
    outcome_of,
    public_text,
)

SECRET = "a value of the request"
#: Raised before a server listens, or by a bug: they end a command, never a request.
#: What becomes a ModelFailed or another class on its way, or never leaves a command.
NEVER_SEEN_BY_A_REQUEST = {
    "SettingsError", "PortInUse", "IllegalTransition", "CommandFailed", "Gone", "Malformed", "Raised", "Unsent",
    "ClientGone", "LinkLost", "NotCompiled", "NotProved", "Refused", "Beyond", "NotAccelerated", "_NotSame",
    "Misfit", "Unfit", "AnswerTooLong", "NoSize", "Quit",
}  # fmt: skip


def error_classes() -> Iterator[type[Exception]]:
    """Every exception class that a module of the four packages defines; what moves traffic on a cluster answers no request."""
    for package in (serving, registry, features, monitoring):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            if found.name.startswith("serving.rollout"):
                continue
            module = importlib.import_module(found.name)
            for value in vars(module).values():
                if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == found.name:
                    yield value


@pytest.mark.parametrize("cls", sorted(set(error_classes()), key=lambda cls: cls.__name__), ids=lambda c: c.__name__)
def test_every_error_class_has_a_row_of_its_own_or_of_its_family(cls: type[Exception]) -> None:
    """Only what can never reach a request falls through to the last row."""
    row = next(c for c in cls.__mro__ if c in TABLE)
    assert (row is Exception) == (cls.__name__ in NEVER_SEEN_BY_A_REQUEST or cls.__name__ == "ServingError")


@pytest.mark.parametrize(
    ("error", "http", "grpc"),
    [
        (BadRequest(SECRET), 400, StatusCode.INVALID_ARGUMENT),
        (UnknownEntity(SECRET), 400, StatusCode.INVALID_ARGUMENT),
        (UntrustedDelivery(SECRET), 401, StatusCode.UNAUTHENTICATED),
        (RateLimited(SECRET, 1), 429, StatusCode.RESOURCE_EXHAUSTED),
        (Forbidden(SECRET), 403, StatusCode.PERMISSION_DENIED),
        (NotFound(SECRET), 404, StatusCode.NOT_FOUND),
        (MethodNotAllowed(SECRET, ["GET"]), 405, StatusCode.UNIMPLEMENTED),
        (BodyTooLarge(SECRET), 413, StatusCode.RESOURCE_EXHAUSTED),
        (UnsupportedMediaType(SECRET), 415, StatusCode.INVALID_ARGUMENT),
        (QueueFull(SECRET, 1), 503, StatusCode.RESOURCE_EXHAUSTED),
        (NotReady(SECRET), 503, StatusCode.UNAVAILABLE),
        (FeaturesUnavailable(SECRET), 503, StatusCode.UNAVAILABLE),
        (DeadlineExceeded(SECRET), 504, StatusCode.DEADLINE_EXCEEDED),
        (NotOffered(SECRET), 501, StatusCode.UNIMPLEMENTED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_expected_error_says_its_own_sentence(error: Exception, http: int, grpc: StatusCode) -> None:
    """The statuses of the contract, on both transports."""
    assert outcome_of(error)[:2] == (http, grpc)
    assert public_text(error) == SECRET


@pytest.mark.parametrize(
    "error",
    [ModelFailed(SECRET), InvalidFeatures(SECRET), InvalidModel(SECRET), RegistryUnavailable(SECRET),
     ValueError(SECRET), KeyError(SECRET), RecursionError(SECRET), MemoryError(SECRET)],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_anything_else_is_a_500_with_a_fixed_text(error: Exception) -> None:
    """What went wrong inside is for the log, not for the caller."""
    assert outcome_of(error)[:2] == (500, StatusCode.INTERNAL)
    assert public_text(error) == FIXED


def test_reasons_are_a_closed_set() -> None:
    """They are a label of a metric."""
    assert {outcome.reason for outcome in TABLE.values()} <= set(REASONS)
