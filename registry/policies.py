"""Policies: which versions of a catalogue do we aspire to? Pure functions of a snapshot.

A policy is what a reference such as `models:/name@champion` means. An empty answer says that the catalogue has no
such version; it never means "unload": the last READY version stays (see `serving.lifecycle.plan`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from registry.errors import InvalidReference
from registry.versions import ModelVersion, is_name, is_word

STAGES = {"none": "None", "staging": "Staging", "production": "Production", "archived": "Archived"}

_LOGGED_MODEL = re.compile(r"m-[0-9a-f]{32}")
_RUN = re.compile(r"[^/]+/.+")

#: Stands for all registered models.
EVERY = "*"
Catalogue = tuple[ModelVersion, ...]


@dataclass(frozen=True, slots=True)
class Pinned:
    """Exactly one version number."""

    name: str
    version: str

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/{self.name}/{self.version}"

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The pinned number, if it exists."""
        return tuple(v for v in _usable(catalogue) if v.version == self.version)


@dataclass(frozen=True, slots=True)
class FollowAlias:
    """The version that carries an alias now; moving the alias is the deployment."""

    name: str
    alias: str

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/{self.name}@{self.alias}"

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The carrier of the alias. Aliases are case-sensitive, as in MLflow."""
        return tuple(v for v in _usable(catalogue) if self.alias in v.aliases)


@dataclass(frozen=True, slots=True)
class FollowStage:
    """The highest number in a stage, which is what MLflow means by `models:/name/Production`."""

    name: str
    stage: str

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/{self.name}/{self.stage}"

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The newest version in the stage, whichever was moved there last."""
        return _newest(v for v in _usable(catalogue) if v.stage == self.stage)


@dataclass(frozen=True, slots=True)
class Latest:
    """The highest number of all."""

    name: str

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/{self.name}/latest"

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The newest version, in any stage."""
        return _newest(_usable(catalogue))


@dataclass(frozen=True, slots=True)
class FollowTag:
    """The newest version that carries a tag with a value; tagging a version is the deployment."""

    name: str
    key: str
    value: str

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/{self.name}?tag.{self.key}={quote(self.value, safe='')}"

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The highest number; the catalogue holds carriers of the tag alone."""
        return _newest(_usable(catalogue))


@dataclass(frozen=True, slots=True)
class Fixed:
    """A model that has no number: a logged model, a run's artifact, a folder. It has no registered name either."""

    uri: str
    name: str = ""

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """The one that there is, once it is complete."""
        return _usable(catalogue)


@dataclass(frozen=True, slots=True)
class EveryCarrier:
    """The versions of all registered models that carry an alias: a reference to models, not to one."""

    alias: str
    name: str = EVERY

    @property
    def uri(self) -> str:
        """The reference that this policy came from, in its canonical spelling."""
        return f"models:/*@{self.alias}"

    def of(self, name: str) -> FollowAlias:
        """The policy of one of the models."""
        return FollowAlias(name, self.alias)

    def aspire(self, catalogue: Catalogue) -> Catalogue:
        """Every carrier, whatever its name."""
        return tuple(v for v in catalogue if self.alias in v.aliases)


Policy = Pinned | FollowAlias | FollowStage | Latest | FollowTag | EveryCarrier | Fixed


def parse_reference(uri: str) -> Policy:
    """The policy that a reference means: `models:/name/3`, `/Production` (any case), `/latest`, `models:/name@alias`,
    `models:/*@alias`, `models:/name?tag.key=value`, `models:/m-<id>`, `runs:/<id>/<path>`, or a folder (a path with a slash, `file:`).

    Raises InvalidReference for anything else, saying what was expected.
    """
    scheme, _, rest = uri.partition(":/")
    if scheme == "models" and rest:
        return _registered(uri, rest)
    if scheme == "runs" and _RUN.fullmatch(rest):
        return Fixed(uri)
    if uri.startswith(("/", "./", "../", "file:///")):
        return Fixed(uri)
    raise InvalidReference(_unsupported(uri))


def _registered(uri: str, rest: str) -> Policy:
    if _LOGGED_MODEL.fullmatch(rest):
        return Fixed(uri)
    if "?" in rest:
        name, _, query = rest.partition("?")
        return _tag(_name(name, uri), query, uri)
    if "@" in rest:
        name, _, alias = rest.rpartition("@")
        if name == EVERY:
            return EveryCarrier(_part(alias, uri))
        return FollowAlias(_name(name, uri), _part(alias, uri))
    name, slash, version = rest.partition("/")
    if not slash:
        raise InvalidReference(_unsupported(uri))
    return selector(_name(name, uri), _part(version, uri), aliases=False)


def _tag(name: str, query: str, uri: str) -> FollowTag:
    key, equals, value = query.removeprefix("tag.").partition("=")
    key, value = unquote(key), unquote(value)
    if not query.startswith("tag.") or not key or not equals or '"' in value or "`" in key:
        raise InvalidReference(_unsupported(uri))
    return FollowTag(name, key, value)


def selector(name: str, version: str, *, aliases: bool = True) -> Policy:
    """The policy that a name and a version word mean: digits, `latest`, a stage in any case, or an alias.

    `aliases=False` refuses words that are neither of the first three, as a `models:/name/word` reference does.
    """
    word = version.lower()
    if version.isascii() and version.isdigit():
        return Pinned(name, str(int(version)))
    if word == "latest":
        return Latest(name)
    if word in STAGES:
        return FollowStage(name, STAGES[word])
    if aliases:
        return FollowAlias(name, _part(version.removeprefix("@"), version))
    raise InvalidReference(
        f"{version[:64]!r} is no version number, stage or 'latest'; an alias is written models:/{name}@alias"
    )


def _usable(catalogue: Iterable[ModelVersion]) -> Catalogue:
    """Versions whose registration is complete; MLflow lists the others too."""
    return tuple(v for v in catalogue if v.usable)


def _newest(versions: Iterable[ModelVersion]) -> Catalogue:
    found = sorted(versions, key=lambda v: v.number)
    return tuple(found[-1:])


def _name(name: str, uri: str) -> str:
    if not is_name(name) or name == EVERY:
        raise InvalidReference(_unsupported(uri))
    return name


def _part(text: str, uri: str) -> str:
    if not is_word(text):
        raise InvalidReference(_unsupported(uri))
    return text


def _unsupported(uri: str) -> str:
    return (
        f"{uri[:64]!r} is not a reference that can be served: use models:/NAME/3, models:/NAME/Production, "
        "models:/NAME/latest, models:/NAME@alias, models:/*@alias, models:/NAME?tag.key=value, models:/m-ID, runs:/ID/PATH or /a/folder"
    )
