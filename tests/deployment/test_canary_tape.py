"""The verbs of a canary, and the model of the controllers, against what a real cluster went through in every canary."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from serving.rollout import knative, revisions
from serving.rollout.canary import Canary, Driver, Failed
from serving.rollout.decisions import Done, Patch
from tests.deployment.acting import NAME
from tests.deployment.clusters import ROOT, manifest
from tests.deployment.controller import Cluster
from tests.deployment.kubectl import apply_patch

TAPE = ROOT.parent / "shared" / "kubernetes" / "canary-tape.json"
needs_tape = pytest.mark.skipif(not TAPE.exists(), reason=f"no recording of a cluster is at hand ({TAPE.parent})")


def scenes() -> list[dict[str, Any]]:
    tape: list[dict[str, Any]] = json.loads(TAPE.read_text()) if TAPE.exists() else []
    return tape


def recorded(state: dict[str, Any]) -> revisions.Service:
    """A recorded state as the verbs see it."""
    names = ("latestCreatedRevision", "latestReadyRevision", "latestRolledoutRevision", "previousRolledoutRevision")
    shares = (revisions.Share(t["revisionName"], t["percent"], bool(t.get("latestRevision"))) for t in state["traffic"])
    cut = (
        revisions.Revision(r["name"], r["version"], r["ready"] == "True", r["actualReplicas"], r["desiredReplicas"])
        for r in state["revisions"]
    )
    return revisions.Service(
        NAME, "Knative", state["version"], "/spec/predictor/containers/0/env/1", state["percent"],
        *(state[name] or "" for name in names), tuple(shares), tuple(cut),
    )  # fmt: skip


@needs_tape
def test_the_model_goes_through_the_states_of_the_tape() -> None:
    """Every state of a service's status that was recorded comes, in that order, in the model too: with the controllers as far
    as they were when the next patch came, or one pass further."""
    cluster = Cluster()
    for scene in scenes():
        played = (play(cluster, scene, passes) for passes in (0, 1))
        cluster = next((after for after in played if after is not None), Cluster())
        assert cluster.objects, scene["step"]


def play(cluster: Cluster, scene: dict[str, Any], passes: int) -> Cluster | None:
    """The cluster at the scene's last state; None if it does not come to that through all others."""
    after = Cluster(deepcopy(cluster.objects), ["99"])
    for _ in range(passes):
        after.step()
    if scene["step"].startswith("applied"):
        after = Cluster(broken=["99"])
        after.apply(manifest())
    elif scene["patch"]:
        after.apply(apply_patch(after.service(), *scene["patch"]))
    expected = distinct([status(recorded(state)) for state in scene["states"]])
    for _ in range(12):
        if expected[0] == seen(after):
            expected.pop(0)
        if not expected:
            return after
        after.step()
    return None


def seen(cluster: Cluster) -> Any:
    service = revisions.observe(cluster.service(), [*cluster.revisions(NAME).values()])
    return status(service)


def status(service: revisions.Service) -> Any:
    return service.created, service.ready, service.rolled_out, service.previous, service.traffic


def distinct(found: list[Any]) -> list[Any]:
    return [each for i, each in enumerate(found) if i == 0 or found[i - 1] != each]


@needs_tape
@pytest.mark.parametrize("scene", scenes(), ids=lambda scene: scene["step"])
def test_no_decision_from_a_recorded_state_moves_traffic_to_what_is_not_there(scene: dict[str, Any]) -> None:
    """Only what is ready and has its pods is widened, promoted, or given everything back."""
    for state in scene["states"]:
        service = recorded(state)
        newest = service.newest
        assert newest is not None
        for decision in (knative.widen(service, 77, begun=False), knative.promote(service, begun=False)):
            if isinstance(decision, Patch):
                assert (newest.version, newest.complete, service.ready) == (service.version, True, newest.name)
                assert service.traffic == service._due
        back = knative.roll_back(service, None, begun=False)
        if isinstance(back, Patch) and {"op": "add", "path": knative.PERCENT, "value": 0} in back.operations:
            good = service.revision(service.rolled_out)
            assert good is not None
            assert good.pods > 0
            assert good.version != service.version


@needs_tape
def test_the_recorded_ends_are_the_ends_of_the_verbs() -> None:
    """The last state of each step is where the verb that makes it stops."""
    ends = {
        "start 2 at 10 %": lambda s: knative.start(s, "2", 10, begun=True),
        "widen to 50 %": lambda s: knative.widen(s, 50, begun=True),
        "promote": lambda s: knative.promote(s, begun=True),
        "percent removed": lambda s: knative.roll_back(s, None, begun=True),
        "rollback: percent removed": lambda s: knative.roll_back(s, None, begun=True),
    }
    played = [(ends[scene["step"]], scene["states"]) for scene in scenes() if scene["step"] in ends]
    for verb, states in played:
        assert isinstance(verb(recorded(states[-1])), Done)
        earlier = (recorded(state) for state in states if status(recorded(state)) != status(recorded(states[-1])))
        assert not any(isinstance(verb(state), Done) for state in earlier)
    assert len(played) >= 8


class Tape:
    """A cluster that plays what was recorded: after a patch the states of the next scene, one a look, whatever is asked."""

    def __init__(self, *numbers: int) -> None:
        tape = scenes()
        self.now = recorded(tape[numbers[0]]["states"][-1])
        self.coming = [[recorded(state) for state in tape[number]["states"]] for number in numbers[1:]]
        self.playing: list[revisions.Service] = []

    def service(self, name: str) -> revisions.Service:
        if self.playing:
            self.now = self.playing.pop(0)
        return self.now

    def route(self, name: str) -> Any:
        raise AssertionError(name)

    def patch(self, patch: Any) -> None:
        """It must ask for what the next scene's spec says; what is left of this one would have been more of the same."""
        assert all(status(each) == status(self.now) for each in self.playing)
        self.playing = self.coming.pop(0)
        wanted = {**dict.fromkeys(["percent", "version"]), "percent": self.now.percent, "version": self.now.version}
        for operation in patch.operations:
            key = "percent" if operation["path"] == knative.PERCENT else "version"
            if operation["op"] != "test":
                wanted[key] = operation.get("value")
        assert wanted == {"percent": self.playing[0].percent, "version": self.playing[0].version}

    def why(self, selector: str) -> str:
        return ""


def drive(tape: Tape, *words: str) -> str:
    """Runs a command against a tape; its end, or why it failed."""
    now, said = [0.0], list[str]()
    driver = Driver(Canary(tape, NAME), str, said.append, said.append, 30, clock=lambda: now[0],
                    sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))  # fmt: skip
    try:
        driver.run([*words])
    except Failed as error:
        return str(error)
    return said[-1]


@needs_tape
def test_the_verbs_against_the_recorded_cluster() -> None:
    """Start, widen, promote; a promotion and its roll-back by 99 and 0; the roll-back of a canary."""
    tape = Tape(0, 1, 2, 3)
    assert drive(tape, "start", "2", "10") == "Version 2 has its 10 %. Now version 2 has 10 %, version 1 has 90 %."
    assert drive(tape, "widen", "50").startswith("Version 2 has its 50 %.")
    assert drive(tape, "promote").startswith("Version 2 is rolled out.")
    tape = Tape(28, 29, 30, 32, 33, 26, 27)
    drive(tape, "start", "2", "10")
    drive(tape, "promote")
    tape.now = recorded(scenes()[31]["states"][-1])  # meanwhile the old revision has no pod
    assert drive(tape, "rollback").startswith("Version 1 is rolled out.")
    tape = Tape(6, 7, 8, 9, 10)
    drive(tape, "start", "2", "10")
    assert drive(tape, "rollback").startswith("Version 1 is rolled out.")
    assert tape.coming == []


@needs_tape
def test_a_version_that_never_got_ready_against_the_recorded_cluster() -> None:
    """The start ends with what it waited for; the roll-back finishes; nothing was ever promoted."""
    tape = Tape(22)
    tape.coming = [[recorded(state) for state in scenes()[18]["states"]][-3:]]
    assert "version 99) has 2 pods; it has 0. Now version 1 has 100 %" in drive(tape, "start", "99", "10")
    assert "has 2 pods; it has 0" in drive(tape, "promote")
    tape.coming = [[recorded(state) for state in scenes()[number]["states"]] for number in (19, 20, 21)]
    assert drive(tape, "rollback").startswith("Version 1 is rolled out.")
    assert tape.coming == []
