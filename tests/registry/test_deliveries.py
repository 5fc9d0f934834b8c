"""Whether MLflow signed a delivery, and now: a table."""

import pytest

from registry.deliveries import WINDOW, Delivery, named_model, sign, verify
from registry.errors import UntrustedDelivery

SECRET = b"correct horse battery"
NOW = 1_795_248_312.6
BODY = b'{"entity": "model_version_alias", "action": "created", "data": {"name": "fraud", "alias": "champion"}}'
#: Made by MLflow 3.17's own code.
SIGNATURE = b"v1,8VoYfB22nrvgTXxj6nhMa8riDhybLyZ3b8XTiaQJQb4="


def delivery(**changed: bytes) -> Delivery:
    facts = {"id": b"1f0c", "timestamp": b"1795248312", "signature": SIGNATURE, "body": BODY}
    return Delivery(**{**facts, **changed})


def signed(**changed: bytes) -> Delivery:
    """A delivery that was changed before it was signed."""
    given = delivery(**changed)
    return Delivery(given.id, given.timestamp, sign(SECRET, given), given.body)


def test_what_mlflow_signed_is_trusted() -> None:
    """The signature is over id, timestamp and body, with the secret."""
    verify(SECRET, delivery(), NOW)


@pytest.mark.parametrize("seconds", [-WINDOW + 1, 0, WINDOW - 1])
def test_clocks_may_differ_by_five_minutes(seconds: float) -> None:
    """Either way."""
    verify(SECRET, delivery(), NOW + seconds)


@pytest.mark.parametrize(
    "changed",
    [
        {"signature": b""},
        {"signature": SIGNATURE.removeprefix(b"v1,")},
        {"signature": SIGNATURE.replace(b"v1,", b"v2,")},
        {"signature": SIGNATURE.swapcase()},
        {"signature": SIGNATURE + b" "},
        {"signature": "v1,é".encode()},
        {"body": BODY + b" "},
        {"body": BODY.replace(b"fraud", b"churn")},
        {"body": b""},
        {"id": b"1f0d"},
        {"id": b""},
        {"timestamp": b"1795248313"},
        {"timestamp": b""},
    ],
    ids=str,
)
def test_anything_that_was_changed_after_the_signature_is_refused(changed: dict[str, bytes]) -> None:
    """Every part counts, and nothing about the signature's form is optional."""
    with pytest.raises(UntrustedDelivery, match="signature"):
        verify(SECRET, delivery(**changed), NOW)


def test_another_secret_is_refused() -> None:
    """Who does not know the secret cannot sign."""
    with pytest.raises(UntrustedDelivery, match="signature"):
        verify(SECRET + b"!", delivery(), NOW)


@pytest.mark.parametrize(
    "timestamp",
    [b"1795248010", b"1795248614", b"0", b"", b"-1795248312", b"1795248312.0", b"soon", b"9" * 5000, b"\xb2"],
)
def test_a_signature_of_another_time_is_refused(timestamp: bytes) -> None:
    """Old, future, or no time at all, though it is signed."""
    with pytest.raises(UntrustedDelivery, match="timestamp"):
        verify(SECRET, signed(timestamp=timestamp), NOW)


@pytest.mark.parametrize("id", [b"", b"x" * 129])
def test_an_id_that_cannot_be_remembered_is_refused(id: bytes) -> None:
    """None, or one that is too long, though it is signed."""
    with pytest.raises(UntrustedDelivery):
        verify(SECRET, signed(id=id), NOW)


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ({"data": {"name": "fraud", "alias": "champion"}}, "fraud"),
        ({"data": {"alias": "champion"}}, None),
        ({"data": {"name": 3}}, None),
        ({"data": {"name": ""}}, None),
        ({"data": ["name"]}, None),
        ({"entity": "budget_policy"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_event_names_a_model_or_none(event: dict[str, object], name: str | None) -> None:
    """Whatever its form, and whatever it is about."""
    assert named_model(event) == name
