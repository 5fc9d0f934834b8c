"""One repository per kind of store, made once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stores import RedisServer, build, redis_yaml, remote


@pytest.fixture(scope="session")
def sqlite_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("sqlite"), "{type: sqlite, path: online.db}")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis-data"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_repository(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("redis"), redis_yaml(redis_server))


@pytest.fixture(scope="session")
def remote_repository(sqlite_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with remote(tmp_path_factory.mktemp("remote"), sqlite_repository) as home:
        yield home


@pytest.fixture(params=["sqlite", "redis", "remote"])
def repository(request: pytest.FixtureRequest) -> Path:
    """Every kind of store in turn."""
    found: Path = request.getfixturevalue(f"{request.param}_repository")
    return found
