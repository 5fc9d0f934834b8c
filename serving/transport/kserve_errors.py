"""What goes wrong behind KServe's app, in the contract's words. Its own would tell what the client sent."""

from __future__ import annotations

import logging

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from kserve.errors import InferenceError, InvalidInput, ModelNotFound, ModelNotReady, UnsupportedProtocol
from starlette.exceptions import HTTPException

from features.errors import FeatureError
from registry.errors import RegistryError
from serving.errors import BadRequest, NotFound, NotOffered, NotReady, ServingError, outcome_of
from serving.transport.answers import error_response

log = logging.getLogger("headway.requests")

_NO_EVENT = BadRequest("The request is no CloudEvent whose data are a JSON object with 'instances'.")
_MEANT: dict[type[Exception], ServingError] = {
    InvalidInput: _NO_EVENT,
    RequestValidationError: _NO_EVENT,
    ModelNotFound: NotFound("There is no such model here."),
    ModelNotReady: NotReady("No version of this model is READY."),
    NotImplementedError: NotOffered("The server has no such function."),
    UnsupportedProtocol: NotOffered("The server has no such function."),
}
_OWN = (ServingError, FeatureError, RegistryError)
#: All that KServe's app has a handler for, or FastAPI.
HANDLED: tuple[type[Exception], ...] = (*_MEANT, *_OWN, InferenceError, HTTPException, Exception)


async def answer_error(request: Request, error: Exception) -> Response:
    """The contract's answer to what KServe's app, or anything behind it, raised."""
    meant = _meant(error)
    if outcome_of(meant).http == 500 and not isinstance(meant, _OWN):  # the data plane has logged its own
        log.error("request failed", exc_info=error)
    answer = error_response(meant)
    return Response(answer.body, answer.status, {k.decode(): v.decode() for k, v in answer.headers})


def _meant(error: Exception) -> Exception:
    if isinstance(error, HTTPException) and error.status_code < 500:
        return NotFound("There is no such route; see docs/api.md for all of them.")
    return next((_MEANT[cls] for cls in type(error).__mro__ if cls in _MEANT), error)
