"""Policies are pure: a catalogue in, the aspired versions out."""

import pytest

from registry.errors import InvalidReference
from registry.policies import (
    Fixed,
    FollowAlias,
    FollowStage,
    FollowTag,
    Latest,
    Pinned,
    Policy,
    parse_reference,
    selector,
)
from registry.versions import ModelVersion


def version(number: int, stage: str = "None", *aliases: str, usable: bool = True) -> ModelVersion:
    return ModelVersion("m", str(number), stage=stage, aliases=aliases, usable=usable)


CATALOGUE = (
    version(1, "Production"),
    version(2, "Archived", "champion"),
    version(9, "Production", "challenger"),
    version(10, "Staging"),
    version(11, usable=False),
)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/m/2", ["2"]),
        ("models:/m/7", []),
        ("models:/m@champion", ["2"]),
        ("models:/m@nobody", []),
        ("models:/m/Production", ["9"]),
        ("models:/m/production", ["9"]),
        ("models:/m/STAGING", ["10"]),
        ("models:/m/None", []),
        ("models:/m/latest", ["10"]),
        ("models:/m/11", []),
        ("models:/m?tag.gate=passed", ["10"]),
    ],
)
def test_a_reference_aspires_to(uri: str, expected: list[str]) -> None:
    """An alias may sit on an old number, a stage means its highest number, and a pending version is no version."""
    assert [v.version for v in parse_reference(uri).aspire(CATALOGUE)] == expected
    assert parse_reference(uri).aspire(()) == ()


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("3", Pinned("m", "3")),
        ("007", Pinned("m", "7")),
        ("latest", Latest("m")),
        ("LATEST", Latest("m")),
        ("production", FollowStage("m", "Production")),
        ("Archived", FollowStage("m", "Archived")),
        ("champion", FollowAlias("m", "champion")),
        ("@Champion", FollowAlias("m", "Champion")),
        ("@3", FollowAlias("m", "3")),
    ],
)
def test_a_version_word_means(word: str, expected: Policy) -> None:
    """Digits are a number, stages go in any case, and anything else is an alias, with or without its @."""
    assert selector("m", word) == expected


@pytest.mark.parametrize(
    "uri",
    ["", "m", "models:/", "models:/m", "models:/m/word", "models:/m/3/4", "models:/@a", "models:/m@", "models:/m@a b",
     "runs:/1", "runs:/", "models:/m-0123", "s3://bucket/x", "folder", "models:/m?gate=passed", "models:/m?tag.gate",
     "models:/m?tag.=1", "models:/?tag.a=b", 'models:/m?tag.a="b"', "models:/m?tag.`=b"],
)  # fmt: skip
def test_anything_else_is_refused(uri: str) -> None:
    """What cannot be followed is an error at start, not a silent nothing."""
    with pytest.raises(InvalidReference):
        parse_reference(uri)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("models:/m-" + "0af3" * 8, Fixed("models:/m-" + "0af3" * 8)),
        ("runs:/abc/model", Fixed("runs:/abc/model")),
        ("/models/x", Fixed("/models/x")),
        ("./x", Fixed("./x")),
        ("file:///x", Fixed("file:///x")),
        ("models:/m?tag.gate=passed", FollowTag("m", "gate", "passed")),
        ("models:/m?tag.a.b=c%20d%3De", FollowTag("m", "a.b", "c d=e")),
    ],
)
def test_references_without_a_number(uri: str, expected: Policy) -> None:
    """A logged model, a run's artifact and a folder have no registered name; a tag's value may be percent-encoded."""
    assert parse_reference(uri) == expected
    assert parse_reference(expected.uri) == expected


def test_moving_an_alias_does_not_change_identity_and_a_configuring_tag_does() -> None:
    """A version is rebuilt when a tag that configures it changes, and only then."""
    assert version(1, "None", "a") == version(1, "Production", "b")
    assert version(1) != ModelVersion("m", "1", configuration=(("headway.max_rows", "8"),))
