"""No header of an answer can end early and begin another, wherever its text came from."""

import pytest

from serving.calls import Reply
from serving.transport.answers import Response, answered, complete_headers, written
from serving.transport.head import Head
from serving.transport.v1 import V1Request

SPLIT = "1\r\nset-cookie: evil=1\0"


@pytest.mark.audit("2")
def test_the_fast_lane_writes_one_line_per_header() -> None:
    """The version, and the notes on features and cache."""
    reply = Reply(b"{}", SPLIT, (0.0, 0.0, 0.0, 0.0), SPLIT, SPLIT)
    head = written(reply, V1Request(b"{}"), Head({}, 100), close=False).partition(b"\r\n\r\n")[0]
    names = [line.partition(b":")[0] for line in head.split(b"\r\n")[1:]]
    assert b"set-cookie" not in names
    assert names.count(b"x-model-version") == 1
    assert b"\0" not in head


@pytest.mark.audit("2")
def test_so_does_the_application() -> None:
    """Whatever a response was given as headers."""
    reply = Reply(b"{}", SPLIT, (0.0, 0.0, 0.0, 0.0))
    one = answered(reply, V1Request(b"{}"))
    other = Response(200, b"", [(b"x-a\r\n", b"b\r\nc: d\0")])
    for response in (one, other):
        for name, value in complete_headers(response, Head({}, 100), close=True):
            assert not set(name + value) & set(b"\r\n\0")
