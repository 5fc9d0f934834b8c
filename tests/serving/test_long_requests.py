"""Long requests and their neighbours: the queue is shared by request, not by row."""

import asyncio
import json
import random
import time
from collections.abc import Iterable

import numpy as np
import pytest

from serving.batch import Item
from serving.runtimes.base import Outputs, Want
from serving.waiting import Priority, Waiting
from tests.lanes import Echo, Listening, answers, listening, predictions, rows, sized

CHUNK = 32


def item(rows: int, deadline: float | None = None, priority: Priority = Priority.NORMAL) -> Item:
    return Item((), rows, Want.LABELS, deadline, time.monotonic(), lambda *_: None, priority)


def queue(*items: Item) -> Waiting:
    waiting = Waiting(lambda late: waiting.drop(late), CHUNK)
    for each in items:
        waiting.add(each)
    return waiting


def taken(waiting: Waiting, who: dict[int, str], room: int = CHUNK) -> list[tuple[str, int]]:
    """Name and rows of each in the next batch."""
    return [(who[id(piece.item)], piece.stop - piece.start) for piece in waiting.take(room, 0.0)]


@pytest.mark.audit("37")
def test_long_requests_take_turns_with_all_others() -> None:
    """Each has a batch of its own and goes to the end of the line; what a batch has room for beside short ones it takes too."""
    parts = {"long": item(100), "other": item(70), "short": item(3)}
    waiting, who = queue(*parts.values()), {id(each): name for name, each in parts.items()}
    assert (waiting.depth, waiting.beyond, waiting.outside) == (67, 106, 38)
    batches = [taken(waiting, who) for _ in range(6)]
    assert batches == [
        [("long", 32)], [("other", 32)], [("short", 3), ("long", 29)], [("long", 32)], [("other", 32)],
        [("long", 7), ("other", 6)],
    ]  # fmt: skip
    assert (waiting.depth, waiting.beyond, waiting._first) == (0, 0, None)


def counted(items: Iterable[Item]) -> tuple[int, int]:
    left = [each.rows - each.taken for each in items]
    return sum(min(n, CHUNK) for n in left), sum(max(0, n - CHUNK) for n in left)


@pytest.mark.audit("37")
def test_the_counts_are_those_of_the_rows_whatever_happens() -> None:
    """Requests of any length come, are taken in batches of any size, and leave: what is counted is what is there."""
    chance = random.Random(3)
    waiting, items, counted_before = queue(), list[Item](), (0, 0)
    for _ in range(3000):
        step = chance.random()
        if step < 0.3:
            items.append(item(chance.choice([1, 5, 32, 33, 64, 1000]), None, chance.choice(list(Priority))))
            waiting.add(items[-1])
        elif step < 0.4 and items:
            waiting.drop(items.pop(chance.randrange(len(items))))
        else:
            room = chance.randint(1, CHUNK)
            pieces = waiting.take(room, 0.0)
            assert sum(piece.stop - piece.start for piece in pieces) == min(room, sum(counted_before))
            items = [each for each in items if each.taken < each.rows]
        counted_before = counted(items)
        assert (waiting.depth, waiting.beyond) == counted_before
        assert 0 <= waiting.outside <= waiting.beyond


class Slow(Echo):
    """A millisecond for each batch."""

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        time.sleep(0.001)
        return super().predict(arrays, rows, want)


async def flood(server: Listening, length: int) -> None:
    """One client that asks for so many rows, again and again, over the binary form of V2."""
    values = np.arange(length, dtype="<f8").tobytes()
    tensor = {"name": "x", "datatype": "FP64", "shape": [length, 1], "parameters": {"binary_data_size": len(values)}}
    head = json.dumps({"inputs": [tensor], "outputs": [{"name": "predictions", "parameters": {"binary_data": True}}]})
    body = head.encode() + values
    said = sized(body, f"inference-header-content-length: {len(head)}", path="/v2/models/echo/infer", close=True)
    while True:
        await server.say(said)


@pytest.mark.audit("37")
@pytest.mark.parametrize("inline", [True, False])
async def test_a_client_with_long_requests_harms_no_neighbour(inline: bool) -> None:
    """Its rows are far more than the queue holds; others have theirs answered, short ones and such as run in chunks."""
    async with listening("protocol", runtime=Slow(), inline=inline, max_queue=200) as server:
        batcher = server.manager.servables[0].batcher
        assert batcher is not None
        flooding = [asyncio.create_task(flood(server, 10_000)) for _ in range(2)]
        statuses = []
        for i in range(10):
            await server.until(lambda: batcher.depth > 2_000)
            short, long = sized(rows(float(i)), close=True), sized(rows(*map(float, range(40))), close=True)
            heard = await asyncio.gather(server.say(short), server.say(long))
            statuses += [answers(each)[0][0] for each in heard]
            assert predictions(heard[0]) in ([[float(i)]], [503])
        for each in flooding:
            each.cancel()
        await asyncio.gather(*flooding, return_exceptions=True)
    assert statuses == [200] * 20


@pytest.mark.audit("37")
async def test_one_long_request_is_answered_whole_beside_others() -> None:
    """In order, whoever came between."""
    async with listening("protocol", max_queue=200) as server:
        server.runtime.seconds = 0.001
        whole = [float(i) for i in range(3000)]
        long = asyncio.create_task(server.say(sized(rows(*whole), close=True)))
        short = [server.say(sized(rows(float(-i)), close=True)) for i in range(20)]
        heard = await asyncio.gather(long, *short)
        assert predictions(heard[0]) == [whole]
        assert [predictions(each) for each in heard[1:]] == [[[float(-i)]] for i in range(20)]
