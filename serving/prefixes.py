"""Prefixes of references and sources: what `security.allow_pickle_from` and `allow_code_from` hold."""

from __future__ import annotations

from collections.abc import Iterable

from registry.versions import ModelVersion

#: A location with any of these may mean another one than it seems to.
_AMBIGUOUS = ("%", "?", "#", "\\")


def check_prefix(prefix: str) -> str:
    """The prefix as it is. Raises ValueError for one that matches nothing, or more than it seems to."""
    if not (prefix.startswith("/") or ":/" in prefix) or not _plain(prefix):
        raise ValueError(f"{prefix[:64]!r} is no prefix such as models:/fraud, s3://bucket/models or /models")
    return prefix


def comes_from(version: ModelVersion, prefixes: Iterable[str]) -> bool:
    """Whether the version's exact reference (`models:/fraud/3`) or its source lies below one of the prefixes."""
    return any(below(prefix, where) for prefix in prefixes for where in (version.uri, version.source))


def below(prefix: str, location: str) -> bool:
    """Whether the location is the prefix or lies below it, by whole segments: `models:/fraud` is not the beginning of
    `models:/fraud-2/1`."""
    stem = prefix.rstrip("/")
    return _plain(location) and (location == stem or location.startswith(f"{stem}/"))


def _plain(location: str) -> bool:
    steps = location.split("/")
    return not any(mark in location for mark in _AMBIGUOUS) and not any(step in (".", "..") for step in steps)
