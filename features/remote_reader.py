"""A reader of Feast's feature server, so that the serving image needs no driver of the store behind it.

Feast's own client of that server gives every row the first row's event time, and sends the first join key only; hence a
request of our own, over Feast's session (its pool, its credentials, its certificates).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import orjson

from features.blocks import Block, from_columns
from features.readers import Ask, Read
from features.service import View


def remote_read(store: Any, timeout_seconds: float) -> Read:
    """Reads over HTTP, one request per view. Raises what `requests` raises, an HTTP status that is no success included."""
    from feast.permissions.client.http_auth_requests_wrapper import get_http_auth_requests_session

    online = store.config.online_store
    url, verify = f"{online.path.rstrip('/')}/get-online-features", online.cert or True

    def read_one(ask: Ask) -> Block:
        session = get_http_auth_requests_session(
            store.config.auth_config, online.connection_pool_size, online.connection_idle_timeout, 0
        )
        answer = session.post(
            url,
            data=_question(ask),
            headers={"content-type": "application/json"},
            verify=verify,
            timeout=timeout_seconds,
        )
        answer.raise_for_status()
        return _block(ask.view, orjson.loads(answer.content))

    return lambda asks: [read_one(ask) for ask in asks]


def _question(ask: Ask) -> bytes:
    view = ask.view
    keys = {key.stored: [entity[i] for entity in ask.entities] for i, key in enumerate(view.keys)}
    name = view.table.projection.name
    return orjson.dumps(
        {"features": [f"{name}:{f}" for f in view.features], "entities": keys, "full_feature_names": True}
    )


def _block(view: View, answer: Any) -> Block:
    found = dict(zip(answer["metadata"]["feature_names"], answer["results"], strict=True))
    name = view.table.projection.name
    columns = {f: _values(found[f"{name}__{f}"]["values"], view.types[f]) for f in view.features}
    return from_columns(view, _seconds(found[f"{name}__{view.features[0]}"]["event_timestamps"]), columns)


def _values(values: list[Any], type: str) -> list[Any]:
    if type == "UNIX_TIMESTAMP":
        return [v if v is None or isinstance(v, int) else int(datetime.fromisoformat(v).timestamp()) for v in values]
    if type == "BYTES":
        raise NotImplementedError("Feast's server cannot send BYTES")
    return values


def _seconds(stamps: list[str]) -> list[float | None]:
    """Event times; the epoch stands for an entity that the store does not know."""
    known = {stamp: datetime.fromisoformat(stamp).timestamp() or None for stamp in set(stamps)}
    return [known[stamp] for stamp in stamps]
