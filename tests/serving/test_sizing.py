"""The learned size of a batch: as many rows as keep it within its target, whatever the batches looked like."""

import random

import pytest

from serving.sizing import Cost

MOST = 64


def cost_of(batches: list[tuple[int, float]]) -> Cost:
    cost = Cost()
    for rows, seconds in batches:
        cost.add(rows, seconds)
    return cost


def line(a: float, b: float, *sizes: int) -> list[tuple[int, float]]:
    return [(rows, a + b * rows) for rows in sizes]


@pytest.mark.parametrize(
    ("batches", "target", "rows"),
    [
        ([], 0.005, 64),
        (line(0.001, 0.0002, 1, 64) * 20, 0.005, 20),
        (line(0.001, 0.0002, 1, 64) * 20, 1.0, 64),
        (line(0.006, 0.0002, 1, 64) * 20, 0.005, 1),
        ([(64, 0.0138)], 0.005, 23),  # one size: in proportion
        ([(32, 0.004)] * 50, 0.005, 40),
        ([(32, 0.010)] * 50, 0.005, 16),
        ([(1, 0.0045)] * 50, 0.005, 2),  # another size, to learn from
        ([(1, 0.009)] * 50, 0.005, 1),
        ([(64, 0.001)] * 50, 0.005, 64),
        (line(0.004, 0.0, 1, 2, 32) * 20, 0.005, 64),  # rows are free
        (line(0.004, -0.00001, 1, 32) * 20, 0.005, 64),
        (line(0.009, -0.00001, 1, 32) * 20, 0.005, 1),
        (line(0.0, 0.0, 1, 32) * 20, 0.005, 64),
    ],
)
def test_the_rows_of_a_target(batches: list[tuple[int, float]], target: float, rows: int) -> None:
    """The most that are expected to keep it: one at least, all if nothing is known or rows cost nothing."""
    assert cost_of(batches).rows_within(target, MOST) == rows


@pytest.mark.parametrize("noise", [0.05, 0.3])
@pytest.mark.parametrize(
    ("a", "b", "rows"), [(0.001, 0.0002, 20), (0.0, 0.0002, 25), (0.004, 0.00001, 64), (0.002, 0.001, 3)]
)
def test_under_load_it_settles_at_the_size_that_keeps_the_target(a: float, b: float, rows: int, noise: float) -> None:
    """Every batch is as large as it may be, so that sizes hardly differ, and times are noisy."""
    dice, cost = random.Random(7), Cost()
    chosen = []
    for _ in range(500):
        size = cost.rows_within(0.005, MOST)
        cost.add(size, (a + b * size) * max(0.1, dice.gauss(1, noise)))
        chosen.append(size)
    assert abs(sum(chosen[-200:]) / 200 - rows) <= max(1.0, 0.2 * rows)


def test_a_batch_that_stands_out_changes_little() -> None:
    """A pause of the machine, a hundred times as long, is not the model."""
    cost = cost_of(line(0.001, 0.0002, 1, 10, 20, 30) * 20)
    before = cost.rows_within(0.005, MOST)
    cost.add(20, 0.5)
    assert before == 20
    assert cost.rows_within(0.005, MOST) >= 15


def test_a_model_that_has_become_dear_is_believed() -> None:
    """Ten times as dear from one batch to the next: old batches are forgotten."""
    cost = cost_of(line(0.001, 0.0002, 1, 10, 20, 30) * 20)
    for rows, seconds in line(0.01, 0.002, 1, 2, 3, 4) * 40:
        cost.add(rows, seconds)
    assert cost.rows_within(0.02, MOST) == 5


def test_after_a_quiet_night_a_burst_finds_its_size() -> None:
    """Single rows alone say nothing of larger batches; a few of them do."""
    cost = cost_of([(1, 0.0012)] * 10_000)
    for _ in range(20):
        rows = cost.rows_within(0.005, MOST)
        cost.add(rows, 0.001 + 0.0002 * rows)
    assert cost.rows_within(0.005, MOST) == 20
