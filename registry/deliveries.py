"""What MLflow's webhooks deliver: who signed it, when, and which model it names. Pure functions of bytes.

Headers and signature are those of MLflow 3.17: HMAC-SHA256 with the shared secret over `{id}.{timestamp}.{body}`, as
`v1,<base64>`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from registry.errors import UntrustedDelivery

#: Seconds that a delivery's timestamp may lie away from our clock, either way.
WINDOW = 300
LONGEST_ID = 128


@dataclass(frozen=True, slots=True)
class Delivery:
    """One delivery as it came in: id, Unix seconds and signature as the headers have them, and the body."""

    id: bytes
    timestamp: bytes
    signature: bytes
    body: bytes

    @classmethod
    def of(cls, headers: Mapping[bytes, bytes], body: bytes) -> Delivery:
        """Takes MLflow's headers, by their lower-case names; one that is not there is empty."""
        given = [headers.get(b"x-mlflow-" + name, b"") for name in (b"delivery-id", b"timestamp", b"signature")]
        return cls(given[0], given[1], given[2], body)


def sign(secret: bytes, delivery: Delivery) -> bytes:
    """The signature that MLflow gives to this id, timestamp and body."""
    content = b".".join((delivery.id, delivery.timestamp, delivery.body))
    return b"v1," + base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest())


def verify(secret: bytes, delivery: Delivery, now: float) -> None:
    """Raises UntrustedDelivery unless the holder of the secret signed this within WINDOW of `now` (Unix seconds)."""
    signed = hmac.compare_digest(sign(secret, delivery), delivery.signature)
    if not signed or not 0 < len(delivery.id) <= LONGEST_ID:
        raise UntrustedDelivery("The delivery's signature is missing or does not fit the webhook's secret.")
    if not delivery.timestamp.isdigit() or abs(now - int(delivery.timestamp[:19])) > WINDOW:
        raise UntrustedDelivery(f"The delivery's timestamp is more than {WINDOW} seconds from this server's clock.")


def named_model(event: Mapping[str, Any]) -> str | None:
    """The registered model that an event is about, or None if it is about something else."""
    data = event.get("data")
    name = data.get("name") if isinstance(data, dict) else None
    return name if isinstance(name, str) and name else None
