"""`POST /webhooks/mlflow`: a signed delivery makes the pollers of the model that it names look at once, and no more.

What the event says is never believed: the registry is asked. So the worst that a stolen secret buys is a question to
the registry per second and model.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

from cachetools import TTLCache

from registry.deliveries import WINDOW, Delivery, named_model, verify
from registry.errors import UntrustedDelivery
from serving.bucket import TokenBucket
from serving.errors import RateLimited, ServingError
from serving.transport.answers import Response
from serving.transport.document import parse_object
from serving.transport.exchange import Exchange
from serving.transport.v1 import dumps

log = logging.getLogger("headway.webhooks")

LONGEST_BODY = 65_536
RATE, BURST = 10.0, 100
#: The label set of `headway_webhooks_total`.
OUTCOMES = ("woken", "ignored", "replayed", "flooded", "refused", "malformed")


class Webhook:
    """The route's handler. `wake(registered name)` returns how many pollers it woke; `counted(outcome)` is told all.

    `now` is Unix seconds, `clock` monotonic seconds.
    """

    def __init__(
        self,
        secret: str,
        wake: Callable[[str], int],
        counted: Callable[[str], None],
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._secret, self._wake, self._counted, self._now = secret.encode(), wake, counted, now
        self._bucket = TokenBucket(RATE, BURST, clock)
        # A delivery is fresh from WINDOW before to WINDOW after its timestamp. The bucket lets in no more ids than
        # fit here in that time, so none is pushed out while it could still be replayed.
        remembered = 2 * WINDOW + 1
        self._seen: TTLCache[bytes, bool] = TTLCache(int(RATE * remembered) + BURST, remembered, clock)

    async def __call__(self, exchange: Exchange, parts: dict[str, str]) -> Response:
        """Answers 200 with the outcome. Raises UntrustedDelivery, RateLimited, or what a malformed request is."""
        try:
            exchange.check_content()
            outcome = self.receive(exchange.headers, await exchange.body(LONGEST_BODY))
        except (ServingError, UntrustedDelivery) as error:
            known = {UntrustedDelivery: "refused", RateLimited: "flooded"}
            self._counted(known.get(type(error), "malformed"))
            raise
        self._counted(outcome)
        return Response(200, dumps({"outcome": outcome}))

    def receive(self, headers: Mapping[bytes, bytes], body: bytes) -> str:
        """Judges one delivery and returns its outcome.

        Only what is signed takes from the bucket, so that nobody without the secret can keep MLflow out; only what
        the bucket lets in is remembered, because MLflow sends a refused delivery again under the same id.
        """
        delivery = Delivery.of(headers, body)
        verify(self._secret, delivery, self._now())
        if delivery.id in self._seen:
            return "replayed"
        wait = self._bucket.take()
        if wait > 0:
            raise RateLimited("More deliveries than this server takes; send this one again later.", math.ceil(wait))
        self._seen[delivery.id] = True
        name = named_model(parse_object(body))
        if name is None or not self._wake(name):
            return "ignored"
        log.info("woken by a webhook", extra={"registered_model": name})
        return "woken"
