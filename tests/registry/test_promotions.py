"""The way back: what a history of moves means, as a table."""

import pytest

from registry.promotions import Kind, Move, noticed, trail


def moves(*steps: tuple[str, str | None, str | None]) -> list[Move]:
    kinds: dict[str, Kind] = {"p": "promote", "r": "rollback", "n": "noticed"}
    return [Move(kinds[kind], before, after, "2026-11-21T08:30:00Z", "anna") for kind, before, after in steps]


UP = (("p", None, "1"), ("p", "1", "2"), ("p", "2", "3"))


@pytest.mark.parametrize(
    ("steps", "now", "expected"),
    [
        ((), "1", []),
        ((), None, []),
        (UP[:1], "1", []),
        (UP, "3", ["1", "2"]),
        ((*UP, ("r", "3", "2")), "2", ["1"]),
        ((*UP, ("r", "3", "2"), ("r", "2", "1")), "1", []),
        ((*UP, ("r", "3", "2"), ("p", "2", "4")), "4", ["1", "2"]),
        ((*UP, ("r", "3", "1")), "1", []),  # 2 was deleted, and passed over
        (UP, "7", ["1", "2", "3"]),  # moved without us
        (UP, None, ["1", "2", "3"]),  # deleted
        ((*UP, ("n", "3", "7"), ("r", "7", "3")), "3", ["1", "2"]),
        ((UP[2], ("r", "3", "2"), ("r", "2", "1"), ("p", "1", "5")), "5", ["1"]),  # its beginning is not kept
    ],
)
def test_the_way_back(
    steps: tuple[tuple[str, str | None, str | None], ...], now: str | None, expected: list[str]
) -> None:
    """Promotions lengthen it, rollbacks shorten it, and a move that nobody recorded counts as a promotion."""
    assert trail(moves(*steps), now) == expected


def test_a_move_without_us_is_noticed_once() -> None:
    """It stands in the history from the next move on; without a history there is nothing to compare with."""
    assert noticed(moves(*UP), "3", "now") == moves(*UP)
    assert noticed(moves(*UP), "7", "now")[-1] == Move("noticed", "3", "7", "now", None)
    assert noticed([], "7", "now") == []
