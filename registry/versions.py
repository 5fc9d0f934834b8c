"""Model versions as values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

#: Tags that configure how a version is served; any other tag is the team's own business.
CONFIGURING = (
    "feast.feature_service",
    "headway.task",
    "headway.classes",
    "headway.activation",
    "headway.output",
    "headway.per_instance",
    "headway.max_rows",
    "headway.max_wait_ms",
    "headway.features",
)

#: What stands in a header, a metric, a log line or a path must be able to: numbers, ids and aliases; and a model's name,
#: which may be of any language, but of one line.
_WORD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,254}")
_LONGEST_NAME = 256


def is_word(text: str) -> bool:
    """Whether a text can be a version's number or id, a run's id, or an alias."""
    return _WORD.fullmatch(text) is not None


def is_name(text: str) -> bool:
    """Whether a text can be a model's name."""
    return 0 < len(text) <= _LONGEST_NAME and text.isprintable() and not set(text) & set("/:")


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model, as the registry lists it.

    Two values are equal when they would serve alike: name, number, source and the tags that configure.
    Stage, aliases and run are facts to show, not identity: moving an alias must not rebuild a version.
    `version` is a number; for a model without one it is the logged model's or run's id, and `exact` its reference.
    Raises ValueError for a name, number, id or alias that could not stand in a header.
    """

    name: str
    version: str
    source: str = ""
    configuration: tuple[tuple[str, str], ...] = ()
    run_id: str | None = field(default=None, compare=False)
    stage: str | None = field(default=None, compare=False)
    aliases: tuple[str, ...] = field(default=(), compare=False)
    usable: bool = field(default=True, compare=False)
    exact: str = ""

    def __post_init__(self) -> None:
        words = (self.version, *self.aliases, *((self.run_id,) if self.run_id else ()))
        if not all(map(is_word, words)) or (self.name and not is_name(self.name)):
            raise ValueError("a version's name, number, id or alias is none")

    @property
    def number(self) -> int:
        """The version as an integer, to find the newest."""
        return int(self.version)

    @property
    def uri(self) -> str:
        """The exact reference of this version: what is fetched."""
        return self.exact or f"models:/{self.name}/{self.version}"

    @property
    def tags(self) -> dict[str, str]:
        """The tags that configure this version."""
        return dict(self.configuration)


def usable_aliases(aliases: Iterable[str]) -> tuple[str, ...]:
    """Those that a reference can name, sorted: one that no reference can name must not keep a version from being served."""
    return tuple(sorted(filter(is_word, aliases)))


def configuring(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The tags that configure, in a canonical order: part of a version's identity."""
    return tuple((key, tags[key]) for key in CONFIGURING if key in tags)
