"""A body as a JSON object."""

from __future__ import annotations

from typing import Any

import orjson

from serving.errors import BadRequest

NO_JSON = "The body is not valid JSON."


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body. Raises BadRequest for anything else, without echoing it."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadRequest("The body is empty." if not body.strip() else NO_JSON) from None
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    return document
