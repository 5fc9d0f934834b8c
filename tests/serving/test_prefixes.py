"""Permission by prefix: whole path segments of a version's exact reference or of its source."""

import pytest

from registry.versions import ModelVersion
from serving.prefixes import below, check_prefix, comes_from


@pytest.mark.parametrize(
    ("prefix", "location", "matches"),
    [
        ("models:/fraud", "models:/fraud/3", True),
        ("models:/fraud/", "models:/fraud/3", True),
        ("models:/fraud/3", "models:/fraud/3", True),
        ("models:/fraud/3", "models:/fraud/31", False),
        ("models:/fraud", "models:/fraud-evil/3", False),
        ("models:/fraud", "models:/Fraud/3", False),
        ("models:/", "models:/fraud/3", True),
        ("models:/m-1", "models:/m-1", True),
        ("models:/m-1", "models:/m-12", False),
        ("s3://trusted/", "s3://trusted/models/1", True),
        ("s3://trusted", "s3://trusted-not/models/1", False),
        ("s3://trusted", "s3://evil/s3://trusted/1", False),
        ("s3://trusted/a", "s3://trusted/b", False),
        ("s3://trusted/a", "s3://trusted/a/../b", False),
        ("s3://trusted/a", "s3://trusted/a/%2e%2e/b", False),
        ("s3://trusted/a", "s3://trusted/a/..\\b", False),
        ("s3://trusted/a", "s3://trusted/a/b#/../c", False),
        ("/models", "/models/fraud", True),
        ("/models", "/models2/fraud", False),
        ("/models", "./models/fraud", False),
        ("/", "/models/fraud", True),
    ],
)
def test_a_prefix_matches_whole_segments(prefix: str, location: str, matches: bool) -> None:
    """A location that may mean another one than it seems to is below nothing."""
    assert below(check_prefix(prefix), location) is matches


@pytest.mark.parametrize("prefix", ["", "fraud", "models:fraud", "./models", "/a/../b", "s3://a/%2e%2e/b"])
def test_a_prefix_that_cannot_be_meant_is_refused(prefix: str) -> None:
    """Better an error at the start than a permission that never, or always, holds."""
    with pytest.raises(ValueError, match="no prefix"):
        check_prefix(prefix)


def test_the_reference_or_the_source_may_lie_below_it() -> None:
    """The exact reference, not the alias that led to it."""
    version = ModelVersion("fraud", "3", "s3://trusted/models/1", aliases=("champion",))
    assert comes_from(version, ["models:/fraud"])
    assert comes_from(version, ["s3://trusted/"])
    assert not comes_from(version, ["models:/fraud@champion", "s3://trust", "/"])
    assert not comes_from(version, [])
