"""Fixtures of the tests that craft versions."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crafted import Spot


@pytest.fixture
def spot(tmp_path: Path) -> Iterator[Spot]:
    before, modules = list(sys.path), set(sys.modules)
    yield Spot(tmp_path)
    sys.path[:] = before
    for name in set(sys.modules) - modules:
        if name.startswith("planted"):
            del sys.modules[name]
