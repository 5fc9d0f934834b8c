"""Who is still taken in: tables of a queue's depth, its pace, and the time that a request has."""

import time
from dataclasses import dataclass

import pytest

from serving.admission import Admission, BatchingLimits
from serving.errors import QueueFull
from serving.waiting import Priority

HIGH, NORMAL, LOW = Priority


@dataclass
class Line:
    """So many rows in line, and outside; `first` of these are of the long request that nobody was before."""

    depth: int
    beyond: int = 0
    first: int = 0

    @property
    def outside(self) -> int:
        return self.beyond - self.first


def admitted(
    admission: Admission, depth: int | Line, rows: int, seconds: float | None, priority: Priority = NORMAL
) -> bool:
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        admission.check(Line(depth) if isinstance(depth, int) else depth, rows, deadline, priority)
    except QueueFull:
        return False
    return True


@pytest.mark.parametrize(
    ("priority", "depth", "rows", "fits"),
    [
        (NORMAL, 79, 1, True), (NORMAL, 80, 1, False), (NORMAL, 70, 11, False), (NORMAL, 0, 500, True),
        (LOW, 39, 1, True), (LOW, 40, 1, False), (LOW, 0, 500, True),
        (HIGH, 99, 1, True), (HIGH, 100, 1, False), (HIGH, 80, 20, True),
    ],
)  # fmt: skip
def test_low_is_shed_first_and_high_last(priority: Priority, depth: int, rows: int, fits: bool) -> None:
    """Half the watermark, the watermark, the whole queue; an empty queue takes anybody."""
    admission = Admission(BatchingLimits(max_queue=100, high_watermark=0.8), 32, 0.0)
    assert admitted(admission, depth, rows, None, priority) is fits


@pytest.mark.parametrize(
    ("depth", "seconds", "concurrency", "fits"),
    [
        (32, 2.5, 1, True),  # the batch that runs, and the rows before it with its own, have 85 % of the time
        (32, 2.3, 1, False),
        (31, 0.1, 1, True),  # the next batch has room
        (32 * 7, 10, 1, True), (32 * 7, 9, 1, False), (32 * 7, 9, 4, True), (0, 0.1, 1, True),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_in_time_is_shed_at_once(
    depth: int, seconds: float, concurrency: int, fits: bool
) -> None:
    """The rows before it, in full batches of a second each, must leave it time; high priority does not wait for them."""
    admission = Admission(BatchingLimits(concurrency=concurrency), 32, 1.0)
    assert admitted(admission, depth, 1, seconds) is fits
    assert admitted(admission, depth, 1, seconds, HIGH)
    assert admitted(admission, depth, 1, None)


@pytest.mark.audit("37")
@pytest.mark.parametrize(
    ("line", "rows", "fits"),
    [
        (Line(32, 60_000, 60_000), 1, True), (Line(32, 60_000, 60_000), 100, True), (Line(64, 60_068, 60_000), 32, True),
        (Line(32), 800, True), (Line(32), 801, False),  # longer than the watermark: when nobody waits
        (Line(64, 700), 132, True), (Line(64, 700), 133, False), (Line(768), 33, True), (Line(769), 33, False),
        (Line(800), 1, False),
    ],
)  # fmt: skip
def test_a_long_request_takes_room_for_one_of_its_chunks(line: Line, rows: int, fits: bool) -> None:
    """The rest of it waits outside, where there is room for as many rows as the watermark, and for one request of any length."""
    admission = Admission(BatchingLimits(max_queue=1000, high_watermark=0.8), 32, 0.0)
    assert admitted(admission, line, rows, None) is fits


@pytest.mark.audit("37")
def test_what_a_long_request_can_expect() -> None:
    """It shares the model with the long ones before it: each of its chunks waits for one of theirs."""
    admission = Admission(BatchingLimits(max_queue=10_000), 32, 1.0)
    assert admitted(
        admission, Line(32, 60_000, 60_000), 320, 25
    )  # of ten chunks each behind another, and two batches more
    assert not admitted(admission, Line(32, 60_000, 60_000), 320, 22)
    assert admitted(admission, Line(32, 32), 320, 17)
    assert not admitted(admission, Line(32, 32), 320, 15)


def test_one_that_was_late_makes_cautious() -> None:
    """Then 60 % of the time must do, until the queue has been empty."""
    admission = Admission(BatchingLimits(), 32, 1.0)
    admission.late()
    assert not admitted(admission, 32, 1, 3.3)
    assert admitted(admission, 32, 1, 3.5)
    admission.rested()
    assert admitted(admission, 32, 1, 2.5)


def test_the_pace_follows_full_batches() -> None:
    """Slower or faster than at warm-up, after a few of them."""
    admission = Admission(BatchingLimits(), 32, 1.0)
    assert admitted(admission, 32, 1, 4)
    for _ in range(20):
        admission.ran(32, 3.0, 32)
    assert not admitted(admission, 32, 1, 4)
    for _ in range(40):
        admission.ran(32, 0.1, 32)
    assert admitted(admission, 32, 1, 0.5)


def test_small_batches_say_little_of_full_ones() -> None:
    """Single rows that each take what a full batch takes do not make a queue look 32 times as long."""
    admission = Admission(BatchingLimits(), 32, 0.01)
    for _ in range(100):
        admission.ran(1, 0.01, 32)
    assert admitted(admission, 320, 1, 1)


def test_one_that_hung_is_outlived_by_small_batches() -> None:
    """A batch of a minute, and then only small ones: a full one cannot take longer than so many of them."""
    admission = Admission(BatchingLimits(), 32, 0.01)
    admission.ran(32, 60.0, 32)
    assert not admitted(admission, 32, 1, 1)
    for _ in range(40):
        admission.ran(1, 0.001, 32)
    assert admitted(admission, 32, 1, 1)


@pytest.mark.parametrize(("depth", "concurrency", "seconds"), [(80, 1, 25), (80, 2, 13), (1, 1, 1)])
def test_retry_after_is_the_time_to_drain(depth: int, concurrency: int, seconds: int) -> None:
    """In whole seconds, one at least."""
    limits = BatchingLimits(max_queue=1, concurrency=concurrency)
    with pytest.raises(QueueFull) as shed:
        Admission(limits, 32, 10.0).check(Line(depth), 1, None, NORMAL)
    assert shed.value.retry_after == seconds
