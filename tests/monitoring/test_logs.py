"""One JSON line per event, with the id of the request that it belongs to."""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from monitoring.logs import configure_logging, request_id

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(tmp_path: Path) -> Iterator[Lines]:
    """Reads what was logged to standard error as JSON; the root logger is as before afterwards."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    root.handlers[:] = []  # or they would be closed
    with (tmp_path / "stderr").open("w") as file, contextlib.redirect_stderr(file):
        configure_logging("INFO")
        yield lambda: [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines()]
    root.handlers[:] = before
    root.setLevel(level)
    logging.captureWarnings(False)


def test_a_line_has_time_level_logger_message_and_the_facts_beside_it(lines: Lines) -> None:
    """Facts are keys, not prose; a line break in one is no new line."""
    logging.getLogger("headway.test").info("version serves", extra={"model": "m", "reason": "a\nb"})
    (line,) = lines()
    assert line.pop("time")
    assert line == {
        "level": "INFO",
        "logger": "headway.test",
        "message": "version serves",
        "model": "m",
        "reason": "a\nb",
    }


def test_a_line_of_a_request_carries_its_id(lines: Lines) -> None:
    """And a line of none carries none."""
    token = request_id.set("abc-1")
    logging.getLogger("headway.test").error("request failed")
    request_id.reset(token)
    logging.getLogger("headway.test").error("something else")
    assert [line.get("request_id") for line in lines()] == ["abc-1", None]


def test_libraries_speak_from_warning_up_and_traces_stay_in_one_line(lines: Lines) -> None:
    """Four info lines per request would be the SDK's."""
    logging.getLogger("kserve").info("predict")
    logging.getLogger("uvicorn.access").info("200")
    try:
        raise ValueError("what happened")
    except ValueError:
        logging.getLogger("mlflow").exception("failed")
    (line,) = lines()
    assert line["logger"] == "mlflow"
    assert "ValueError: what happened" in line["exc_info"]


@pytest.mark.audit("39")
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("http://ops:s3cret@mlflow:5000/api failed", "http://***@mlflow:5000/api failed"),
        ("postgresql+psycopg://ops:s3@cret@db/mlflow", "postgresql+psycopg://***@db/mlflow"),
        ({"uri": ["https://s3cret@host"]}, {"uri": ["https://***@host"]}),
        (ValueError("no answer of http://ops:s3cret@mlflow"), "no answer of http://***@mlflow"),
        ("models:/fraud@champion, mail to ops@example", "models:/fraud@champion, mail to ops@example"),
        (7, 7),
    ],
)
def test_no_line_shows_the_login_of_an_address(lines: Lines, said: object, shown: object) -> None:
    """In a fact, in the message, and in a trace."""
    try:
        raise ConnectionError(str(said))
    except ConnectionError:
        logging.getLogger("headway.test").exception("asked %s", said, extra={"fact": said})
    (line,) = lines()
    assert line["fact"] == shown
    assert "cret" not in json.dumps(line)
