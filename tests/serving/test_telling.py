"""Why a server is not ready, for whoever reads its log."""

import logging

import pytest

from serving.manager import ModelManager
from serving.telling import Telling
from tests.lanes import INFER, PREDICT, answers, listening, rows, sized
from tests.serving.test_poller import Idle


def manager(name: str, *, required: bool = True) -> ModelManager:
    return ModelManager(name, f"models:/{name}/1", Idle(), Idle(), required=required)


def own(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "headway.server"]


def test_each_change_of_the_reason_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """However often one looks; models that nobody waits for are not in it."""
    fraud = manager("fraud")
    told = Telling(lambda: [fraud, manager("other", required=False)])
    with caplog.at_level(logging.INFO, "headway.server"):
        told.look()
        told.look()
        fraud.aspire((), "there is no alias champion")
        told.look()
        told.look()
    said = [(record.getMessage(), vars(record)["reasons"]) for record in own(caplog)]
    assert said == [
        ("not ready", {"fraud": "the registry has not been asked yet"}),
        ("not ready", {"fraud": "there is no alias champion"}),
    ]


async def test_it_says_when_the_server_is_ready_again(caplog: pytest.LogCaptureFixture) -> None:
    """Once; and a server that was never late says nothing."""
    async with listening("protocol") as server:
        managers = [manager("fraud")]
        told = Telling(lambda: managers)
        with caplog.at_level(logging.INFO, "headway.server"):
            Telling(lambda: [server.manager]).look()
            assert own(caplog) == []
            told.look()
            managers[:] = [server.manager]
            told.look()
            told.look()
    assert [record.getMessage() for record in own(caplog)] == ["not ready", "ready"]


@pytest.mark.parametrize("path", [PREDICT, INFER])
async def test_without_a_ready_version_it_is_said_when_to_ask_again(path: str) -> None:
    """In seconds, on a 503."""
    async with listening("protocol") as server:
        server.manager.current = None
        heard = await server.say(sized(rows(1.0), path=path, close=True))
    ((status, headers, _),) = answers(heard)
    assert (status, headers["retry-after"]) == (503, "5")


@pytest.mark.parametrize("path", ["/v1/models/echo", "/v2/models/echo/ready"])
async def test_the_models_status_says_so_too(path: str) -> None:
    """Both that can be 503."""
    async with listening("protocol") as server:
        server.manager.current, (server.manager.servables, kept) = None, ([], server.manager.servables)
        ((status, headers, _),) = answers(await server.say(sized(b"", path=path, method="GET", close=True)))
        server.manager.servables = kept
    assert (status, headers["retry-after"]) == (503, "5")
