"""The paths of the inference routes, in one place for both lanes."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote

import httptools

MODEL = "(?P<model>[^/:]+)"
VERSIONED = f"{MODEL}(?:/versions/(?P<version>[^/:]+))?"
LABELLED = f"{MODEL}/labels/(?P<label>[^/:]+)"
PREDICT = f"/v1/models/(?:{VERSIONED}|{LABELLED.replace('model>', 'labelled>')}):predict"
INFER = f"/v2/models/{VERSIONED}/infer"
_LONGEST_REMEMBERED = 512


class Target(NamedTuple):
    """Which protocol a path speaks, V1 or V2, and whom it asks."""

    v1: bool
    model: str
    version: str | None
    label: str | None


def target_of(url: bytes) -> Target | None:
    """Whom a request target asks for an inference, or None if it is no inference route at all."""
    return _remembered(url) if len(url) < _LONGEST_REMEMBERED else _parse(url)


def target_of_path(path: str) -> Target | None:
    """The same, of a path without query, already unquoted."""
    if match := _PREDICT.fullmatch(path):
        parts = match.groupdict()
        return Target(True, parts["model"] or parts["labelled"], parts["version"], parts["label"])
    if match := _INFER.fullmatch(path):
        return Target(False, match["model"], match["version"], None)
    return None


_PREDICT, _INFER = re.compile(PREDICT), re.compile(INFER)


def _parse(url: bytes) -> Target | None:
    try:
        path = httptools.parse_url(url).path.decode("ascii")
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError, AttributeError):
        return None
    return target_of_path(unquote(path) if "%" in path else path)


_remembered: Callable[[bytes], Target | None] = lru_cache(maxsize=1024)(_parse)
