"""Model versions as values."""

from __future__ import annotations

from collections.abc import Mapping
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


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version of a registered model, as the registry lists it.

    Two values are equal when they would serve alike: name, number, source and the tags that configure.
    Stage, aliases and run are facts to show, not identity: moving an alias must not rebuild a version.
    `version` is a number; for a model without one it is the logged model's or run's id, and `exact` its reference.
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


def configuring(tags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """The tags that configure, in a canonical order: part of a version's identity."""
    return tuple((key, tags[key]) for key in CONFIGURING if key in tags)
