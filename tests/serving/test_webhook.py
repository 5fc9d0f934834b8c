"""The webhook's route without a socket: what wakes, what is remembered, what is refused, what is counted."""

import contextlib
import json
from collections import Counter
from typing import Any

import pytest

from registry.deliveries import WINDOW, Delivery, sign
from registry.errors import UntrustedDelivery
from serving.bucket import TokenBucket
from serving.errors import BadRequest, BodyTooLarge, RateLimited, UnsupportedMediaType
from serving.transport.exchange import Exchange
from serving.transport.room import Room
from serving.transport.webhook import BURST, LONGEST_BODY, OUTCOMES, RATE, Webhook

SECRET = "correct horse battery"


class Clock:
    """Both clocks of the handler."""

    def __init__(self) -> None:
        self.at = 1_795_248_312.0

    def __call__(self) -> float:
        return self.at


class Route:
    """A handler that serves the registered model `fraud` twice, and what it did."""

    def __init__(self) -> None:
        self.clock, self.woken, self.counted = Clock(), Counter[str](), Counter[str]()
        self.handler = Webhook(SECRET, self._wake, self._count, self.clock, self.clock)

    def _wake(self, name: str) -> int:
        self.woken[name] += name == "fraud"
        return 2 if name == "fraud" else 0

    def _count(self, outcome: str) -> None:
        self.counted[outcome] += 1

    def headers(self, body: bytes, id: str = "1", secret: str = SECRET, ahead: int = 0) -> dict[bytes, bytes]:
        unsigned = Delivery(id.encode(), str(int(self.clock.at) + ahead).encode(), b"", body)
        return {
            b"x-mlflow-delivery-id": unsigned.id,
            b"x-mlflow-timestamp": unsigned.timestamp,
            b"x-mlflow-signature": sign(secret.encode(), unsigned),
        }

    async def post(self, body: bytes, headers: dict[bytes, bytes] | None = None, **changed: str) -> Any:
        """The answer's body; raises what the transport would translate."""
        given = self.headers(body, **changed) if headers is None else headers

        async def receive() -> dict[str, Any]:
            return {"body": body}

        scope = {"headers": list(given.items()), "method": "POST", "path": "/webhooks/mlflow"}
        response = await self.handler(Exchange(scope, receive, 10_000_000, Room(10**9)), {})
        assert response.status == 200
        return json.loads(response.body)


@pytest.fixture
def route() -> Route:
    return Route()


def event(name: str = "fraud") -> bytes:
    return json.dumps({"entity": "model_version_alias", "action": "created", "data": {"name": name}}).encode()


async def test_a_signed_event_wakes_the_model_that_it_names(route: Route) -> None:
    """And no other."""
    assert await route.post(event()) == {"outcome": "woken"}
    assert route.woken == {"fraud": 1}


@pytest.mark.parametrize("body", [event("churn"), b"{}", b'{"data": null}', b'{"entity": "budget_policy"}'])
async def test_an_event_about_anything_else_is_fine_and_wakes_nobody(route: Route, body: bytes) -> None:
    """MLflow need not know what we serve."""
    assert await route.post(body) == {"outcome": "ignored"}
    assert route.woken.total() == 0


async def test_a_replay_wakes_nobody_for_as_long_as_its_timestamp_is_fresh(route: Route) -> None:
    """Even one whose timestamp lies as far ahead as may be; afterwards the timestamp refuses it."""
    headers = route.headers(event(), ahead=WINDOW)
    assert await route.post(event(), headers) == {"outcome": "woken"}
    for seconds in (0.0, WINDOW, WINDOW):
        route.clock.at += seconds
        assert await route.post(event(), headers) == {"outcome": "replayed"}
    route.clock.at += 1
    with pytest.raises(UntrustedDelivery):
        await route.post(event(), headers)
    assert route.woken == {"fraud": 1}
    assert route.counted == {"woken": 1, "replayed": 3, "refused": 1}


async def test_a_flood_is_refused_and_may_come_again_later(route: Route) -> None:
    """What was refused is not remembered: MLflow sends it again under its old id."""
    for i in range(BURST):
        await route.post(event(), id=str(i))
    late = route.headers(event(), id="late")
    with pytest.raises(RateLimited) as refused:
        await route.post(event(), late)
    route.clock.at += refused.value.retry_after
    assert await route.post(event(), late) == {"outcome": "woken"}
    assert route.counted == {"woken": BURST + 1, "flooded": 1}


async def test_nobody_without_the_secret_can_keep_mlflow_out(route: Route) -> None:
    """What is not signed takes nothing from the bucket, and neither do replays."""
    headers = route.headers(event())
    await route.post(event(), headers)
    for _ in range(2 * BURST):
        with pytest.raises(UntrustedDelivery):
            await route.post(event(), id="other", secret="guess")
        await route.post(event(), headers)
    assert await route.post(event(), id="2") == {"outcome": "woken"}


async def test_no_id_is_forgotten_while_it_could_be_replayed(route: Route) -> None:
    """As many deliveries as the bucket lets in, for as long as a timestamp is fresh: the first is still known."""
    first = route.headers(event(), ahead=WINDOW)
    await route.post(event(), first)
    for second in range(2 * WINDOW):
        for i in range(int(RATE)):
            await route.post(event(), id=f"{second}-{i}")
        route.clock.at += 1
    assert await route.post(event(), first) == {"outcome": "replayed"}


@pytest.mark.parametrize("body", [b"", b"not json", b"[]", b"\xff", b'"fraud"', b"[" * 10_000])
async def test_what_is_signed_and_no_json_object_is_malformed(route: Route, body: bytes) -> None:
    """A 400, and counted."""
    with pytest.raises(BadRequest):
        await route.post(body)
    assert route.counted == {"malformed": 1}


async def test_a_body_is_bounded_before_it_is_read(route: Route) -> None:
    """At 64 KiB, whatever the server's own limit is."""
    longest = event().ljust(LONGEST_BODY)
    assert await route.post(longest) == {"outcome": "woken"}
    with pytest.raises(BodyTooLarge, match="65536"):
        await route.post(longest + b" ", id="2")


async def test_another_media_type_is_malformed(route: Route) -> None:
    """MLflow sends JSON."""
    with pytest.raises(UnsupportedMediaType):
        await route.post(event(), {**route.headers(event()), b"content-type": b"text/plain"})


async def test_outcomes_are_a_closed_set(route: Route) -> None:
    """They are a label of a metric."""
    await route.post(event())
    await route.post(event())
    await route.post(event("churn"), id="2")
    for bad, expected in ((b"x", BadRequest), (event(), UntrustedDelivery)):
        with pytest.raises(expected):
            await route.post(bad, id="3", secret=SECRET if expected is BadRequest else "guess")
    for i in range(BURST + 1):
        with contextlib.suppress(RateLimited):
            await route.post(event(), id=f"more-{i}")
    assert set(route.counted) == set(OUTCOMES)


def test_a_bucket_holds_its_burst_and_refills() -> None:
    """Two at once, then one each half second, and never more than two."""
    clock = Clock()
    bucket = TokenBucket(2.0, 2, clock)
    assert [bucket.take(), bucket.take(), bucket.take()] == [0.0, 0.0, 0.5]
    clock.at += 0.5
    assert [bucket.take(), bucket.take()] == [0.0, 0.5]
    clock.at += 60
    assert [bucket.take(), bucket.take(), bucket.take()] == [0.0, 0.0, 0.5]
