"""The plan is pure: what is aspired and what exists in, one next action out."""

import itertools
import random

import pytest

from registry.versions import ModelVersion
from serving.lifecycle import (
    MOST_COMING,
    Drain,
    Forget,
    IllegalTransition,
    Load,
    Publish,
    State,
    Unload,
    View,
    advance,
    backoff,
    next_due,
    plan,
)

V1, V2 = ModelVersion("m", "1"), ModelVersion("m", "2")
S = State


@pytest.mark.parametrize(
    ("aspired", "views", "expected"),
    [
        ([V1], [], Load(V1)),
        ([V1], [View(1, V1, S.LOADING)], None),
        ([V1], [View(1, V1, S.WARMING)], None),
        ([V1], [View(1, V1, S.READY)], Publish(1)),
        ([V1], [View(1, V1, S.READY, current=True)], None),
        ([V2], [View(1, V1, S.READY, current=True)], Load(V2)),
        ([V2], [View(1, V1, S.READY, current=True), View(2, V2, S.READY)], Publish(2)),
        ([V2], [View(1, V1, S.READY), View(2, V2, S.READY, current=True)], Drain(1)),
        ([V2], [View(1, V1, S.DRAINING, leases=1, since=99), View(2, V2, S.READY, current=True)], None),
        ([V2], [View(1, V1, S.DRAINING, leases=0, since=99), View(2, V2, S.READY, current=True)], Unload(1)),
        ([V2], [View(1, V1, S.DRAINING, leases=1, since=70), View(2, V2, S.READY, current=True)], Unload(1)),
        ([], [View(1, V1, S.READY, current=True)], None),
        ([], [], None),
        ([V2], [View(1, V1, S.READY, current=True), View(2, V2, S.FAILED, due=101)], None),
        ([V2], [View(1, V1, S.READY, current=True), View(2, V2, S.FAILED, due=100)], Load(V2)),
        ([V1], [View(1, V1, S.READY, current=True), View(2, V2, S.FAILED, due=101)], Forget(2)),
        ([], [View(2, V2, S.FAILED, due=101)], None),
        ([V1], [View(1, V1, S.READY, current=True), View(2, V2, S.READY)], Drain(2)),
        ([V1], [View(1, V1, S.READY, current=True), View(2, V2, S.LOADING)], None),
        ([V1], [View(2, V2, S.LOADING)], Load(V1)),
        ([V2, V1], [View(1, V1, S.LOADING)], None),
        ([V1], [View(2, V2, S.WARMING), View(1, V1, S.LOADING)], None),
        ([V1], [View(2, V2, S.LOADING), View(1, V1, S.FAILED, due=101)], None),
        ([V1], [View(i, ModelVersion("m", str(i)), S.LOADING) for i in range(2, 6)], None),
    ],
)
def test_the_next_action(aspired: list[ModelVersion], views: list[View], expected: object) -> None:
    """One row of the table is one fact; the clock stands at 100 and the drain bound is 25 seconds."""
    assert plan(aspired, views, 100.0, 25.0) == expected


@pytest.mark.audit("29")
def test_a_load_that_may_hang_keeps_nothing_that_is_aspired_from_loading() -> None:
    """Neither one that nobody wants any more, nor that of an extra; extras wait for one another and for what is aspired."""
    assert plan([V1], [View(2, V2, S.LOADING)], 0, 25) == Load(V1)
    assert plan([V1], [View(2, V2, S.LOADING)], 0, 25, extras=[V2]) == Load(V1)
    assert plan([], [View(2, V2, S.WARMING)], 0, 25, extras=[V1]) == Load(V1)
    assert plan([], [View(2, V2, S.WARMING)], 0, 25, extras=[V2, V1]) is None
    assert plan([V2], [View(2, V2, S.LOADING)], 0, 25, extras=[V1]) is None


def test_time_alone_matters_only_for_retries_and_drains() -> None:
    """The loop sleeps until the next moment that could change the plan."""
    assert next_due([View(1, V1, S.READY)], 10, 25) is None
    assert next_due([View(1, V1, S.FAILED, due=12), View(2, V2, S.DRAINING, since=0)], 10, 25) == 2
    assert next_due([View(1, V1, S.FAILED, due=10), View(2, V2, S.LOADING)], 10, 25) is None
    assert [backoff(n) for n in (1, 2, 3, 9)] == [1, 2, 4, 60]


def test_no_state_is_skipped() -> None:
    """Every pair that the drawing does not have is refused."""
    legal = {(S.NEW, S.LOADING), (S.LOADING, S.WARMING), (S.WARMING, S.READY), (S.READY, S.DRAINING),
             (S.DRAINING, S.UNLOADED), (S.LOADING, S.FAILED), (S.WARMING, S.FAILED), (S.READY, S.FAILED)}  # fmt: skip
    for pair in itertools.product(S, S):
        if pair in legal:
            assert advance(*pair) is pair[1]
        else:
            with pytest.raises(IllegalTransition):
                advance(*pair)


class World:
    """Performs the plan on views alone; loads end well or badly as the dice say."""

    def __init__(self, dice: random.Random) -> None:
        self.dice, self.views, self.ids, self.now = dice, list[View](), itertools.count(1), 0.0

    def change(self, id: int, **facts: object) -> None:
        self.views = [
            View(**{**{f: getattr(v, f) for f in View.__slots__}, **facts}) if v.id == id else v for v in self.views
        ]

    def perform(self, action: object) -> None:
        match action:
            case Load(version):
                coming = [v.version for v in self.views if v.state in (S.LOADING, S.WARMING)]
                assert version not in coming, "two loads of one version"
                assert len(coming) < MOST_COMING
                self.views = [v for v in self.views if not (v.version == version and v.state is S.FAILED)]
                self.views.append(View(next(self.ids), version, S.LOADING, since=self.now))
            case Publish(id):
                for view in self.views:
                    self.change(view.id, current=view.id == id)
            case Drain(id):
                self.change(id, state=S.DRAINING, since=self.now)
            case Unload(id) | Forget(id):
                self.views = [v for v in self.views if v.id != id]

    def event(self) -> None:
        for view in list(self.views):
            if view.state is S.LOADING and self.dice.random() < 0.5:
                self.change(view.id, state=self.dice.choice([S.READY, S.FAILED]), due=self.now + 2)
        self.now += self.dice.choice([0.1, 5.0])


@pytest.mark.parametrize("seed", range(40))
def test_once_ready_a_model_never_has_no_ready_version(seed: int) -> None:
    """Any sequence of aspirations, failures and time keeps a READY current version, and the plan always settles."""
    dice = random.Random(seed)
    world, was_ready = World(dice), False
    for _ in range(120):
        aspired = dice.choice([[], [V1], [V2], [V1, V2], [ModelVersion("m", "3")]])
        for _ in range(30):
            action = plan(aspired, world.views, world.now, 1.0)
            if action is None:
                due = next_due(world.views, world.now, 1.0)
                assert due is None or due > 0, "it would not rest"
                break
            world.perform(action)
            current = [v for v in world.views if v.current]
            assert len(current) <= 1
            assert all(v.state is S.READY for v in current)
            was_ready = was_ready or bool(current)
            assert bool(current) == was_ready
        else:
            pytest.fail("the plan does not settle")
        world.event()


@pytest.mark.parametrize("seed", range(20))
def test_a_model_that_rests_ends_with_its_extras_and_loads_nothing_else(seed: int) -> None:
    """From any state, with loads that end well or badly meanwhile, and leases that are held to the drain bound."""
    dice = random.Random(seed)
    extras = dice.choice([[], [V1], [V2]])
    world = World(dice)
    for _ in range(dice.randrange(30)):
        action = plan(dice.choice([[V1], [V1, V2], [V2]]), world.views, world.now, 1.0, extras=extras)
        if action is not None:
            world.perform(action)
        world.event()
    for view in world.views:
        world.change(view.id, leases=dice.randrange(2), current=False)
    for _ in range(200):
        action = plan([], world.views, world.now, 1.0, extras=extras)
        assert not isinstance(action, Publish)
        assert not isinstance(action, Load) or action.version in extras
        if action is not None:
            world.perform(action)
        world.event()
    left = [view for view in world.views if view.state is not S.FAILED]
    assert all(view.version in extras for view in left)


def test_extras_load_last_are_never_published_and_leave_when_nobody_wants_them() -> None:
    """And a promotion to one of them is a publication, with no load."""
    serving, extra = View(1, V1, S.READY, current=True), View(2, V2, S.READY)
    assert plan([V1], [], 0, 25, extras=[V2]) == Load(V1)
    assert plan([V1], [serving], 0, 25, extras=[V2]) == Load(V2)
    assert plan([V1], [serving, extra], 0, 25, extras=[V2]) is None
    assert plan([], [extra], 0, 25, extras=[V2]) is None
    assert plan([V2], [serving, extra], 0, 25, extras=[V2]) == Publish(2)
    assert plan([V1], [serving, extra], 0, 25) == Drain(2)
