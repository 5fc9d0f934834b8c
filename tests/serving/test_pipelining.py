"""Requests that come in before the ones ahead of them are answered: in order, each once, however many there are."""

import asyncio

import numpy as np
import pytest

from serving.runtimes.base import Outputs, Want
from tests.lanes import Echo, Listening, answers, listening, predictions, request, rows, sized

READ_BYTES = 262_144  # what a loop hands over at once
NOBODY = sized(b"{}", path="/v1/models/nobody:predict")


@pytest.mark.parametrize("refused", [sized(b"{}"), NOBODY, sized(b"", "content-type: text/plain")])
async def test_what_is_refused_at_once_waits_for_its_turn_and_has_one_answer(lane: str, refused: bytes) -> None:
    """Hundreds of them behind one that takes its time."""
    async with listening(lane, inline=False) as server:
        stream = sized(rows(1.0)) + 500 * refused + sized(rows(2.0), close=True)
        statuses = [status for status, _, _ in answers(await server.say(stream))]
        assert len(statuses) == 502
        assert (statuses[0], statuses[-1]) == (200, 200)
        assert {status // 100 for status in statuses[1:-1]} == {4}


class _Line(Echo):
    """An echo that looks how many requests of a connection wait for their turn."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Listening | None = None
        self.most = 0

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """As an echo."""
        lines = [len(connection.pipeline) for connection in self.server.state.connections] if self.server else []
        self.most = max(self.most, *lines, 0)
        return super().predict(arrays, rows, want)


async def test_more_are_read_when_those_that_were_read_are_answered() -> None:
    """Of a megabyte that is sent at once no more wait than one read brings, and all are answered."""
    runtime, one = _Line(), sized(rows(1.0), "x-padding: " + 400 * "a")
    async with listening("protocol", runtime=runtime) as server:
        runtime.server = server
        count = 4 * READ_BYTES // len(one)
        assert predictions(await server.say(one * count + sized(rows(2.0), close=True))) == [[1.0]] * count + [[2.0]]
        assert 0 < runtime.most <= READ_BYTES // len(one) + 1


async def test_the_last_in_line_may_be_incomplete_when_its_turn_comes(lane: str) -> None:
    """The rest of it is read then."""
    async with listening(lane) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        last = request(rows(3.0), f"content-length: {len(rows(3.0))}", close=True)
        writer.write(sized(rows(1.0)) + sized(rows(2.0)) + last[:-5])
        heard = await reader.readuntil(b"[1.0]")
        heard += await reader.readuntil(b"[2.0]")
        writer.write(last[-5:])
        heard += await reader.read()
        writer.close()
        assert predictions(heard) == [[1.0], [2.0], [3.0]]
