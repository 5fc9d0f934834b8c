"""A kubectl, or a cluster, that does not do as it should: what is endured, what ends a command, and in which words."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from serving.rollout.decisions import Patch
from serving.rollout.kubectl import ClusterError, Kubectl, NoAnswer, Rejected
from tests.deployment.acting import NAME, Model, session
from tests.deployment.clusters import running

Program = Callable[[str], Kubectl]
CHANGE = Patch(f"inferenceservice/{NAME}", ({"op": "test", "path": "/x", "value": 1},))


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """A `kubectl` of these lines of shell, alone on the PATH with what a shell has."""

    def make(lines: str) -> Kubectl:
        file = tmp_path / "kubectl"
        file.write_text(f"#!/bin/sh\n{lines}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        return Kubectl("headway")

    return make


REFUSED = [
    "The request is invalid: the server rejected our request due to an error in our request",
    'Error from server (NotFound): inferenceservices.serving.kserve.io "x" not found',
    "Error from server (Forbidden): inferenceservices is forbidden",
]
UNDECIDED = [
    "Unable to connect to the server: EOF",
    "Error from server (Timeout): Timeout: request did not complete within requested timeout",
    "Unable to connect to the server: context deadline exceeded",
    "error: read tcp 10.0.0.1:443: connection reset by peer",
]


@pytest.mark.parametrize("said", [*REFUSED, *UNDECIDED])
def test_a_change_is_refused_or_nobody_knows(program: Program, said: str) -> None:
    """A connection that breaks says nothing of the patch that went over it."""
    with pytest.raises(ClusterError) as error:
        program(f"echo '{said}' >&2; exit 1").patch(CHANGE)
    assert isinstance(error.value, Rejected) is (said in REFUSED)


def test_a_kubectl_that_does_not_end_leaves_it_open(program: Program) -> None:
    """It is ended; whether it had made the change is not known."""
    with pytest.raises(NoAnswer, match="did not answer within"):
        replace(program("exec sleep 20"), seconds=0.3).patch(CHANGE)


def test_a_change_that_nobody_knows_of_is_not_called_refused() -> None:
    """With who had what, and what to type; the same command goes on from what it finds."""
    one = session(running("1"))

    def breaks(model: Model) -> None:
        raise ClusterError("Unable to connect to the server: EOF")

    one.model.after_patch = breaks
    why = one.refused("start", "2", "10")
    assert why == (
        "Unable to connect to the server: EOF. Whether the change was made is not known. Before it: Now version 1 has 100 %. "
        "Next: `status`, or the same command again."
    )
    one.model.after_patch = lambda model: None
    one.run("start", "2", "10")
    assert one.model.cluster.shares() == {"2": 10, "1": 90}


@pytest.mark.parametrize("looks", [1, 3])
def test_an_answer_that_does_not_come_after_a_change_is_waited_for(looks: int) -> None:
    """Once, and the command goes on; for longer than the timeout, and it ends with what to type."""
    one = session(running("1"), timeout=20)
    silent = [looks]

    def look(model: Model) -> None:
        if model.patches and silent[0]:
            silent[0] -= 1
            raise ClusterError("Unable to connect to the server: i/o timeout")

    one.model.each_look = look
    assert "Version 2 has its 10 %" in one.run("start", "2", "10")
    silent[0] = 1000
    began = one.now
    why = one.refused("widen", "50")
    assert why.endswith("i/o timeout"), why
    assert one.now == began
    silent[0] = 0
    one.model.after_patch = lambda model: silent.__setitem__(0, 1000)
    why = one.refused("widen", "50")
    assert why.endswith("What was changed stays. Next: the same command again, when the cluster answers.")
    assert 20 <= one.now - began <= 22


def test_what_is_not_json_is_no_traceback(program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapper that talks on standard output; bytes that are no text; a file that cannot be run."""
    with pytest.raises(ClusterError, match="printed something that is not JSON: using context prod"):
        program("echo using context prod").get("inferenceservice/x")
    assert program("printf 'a\\377b'").run("logs", "pod/x") == "a\ufffdb"
    broken = program("exit 0")
    (tmp_path / "kubectl").chmod(0o644)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl cannot be run"):
        broken.get("inferenceservice/x")


def test_warnings_of_a_change_are_shown(program: Program, capfd: pytest.CaptureFixture[str]) -> None:
    """A field that the cluster does not know is dropped with a warning, and kubectl says `patched`."""
    program("echo 'Warning: unknown field \"spec.x\"' >&2").patch(CHANGE)
    assert "Warning: unknown field" in capfd.readouterr().err


def test_the_newest_pod_that_is_not_ready_is_asked(program: Program) -> None:
    """Not one that is ready, nor one that is on its way out, however many there are."""
    ready = '"status":{"conditions":[{"type":"Ready","status":"True"}]}'
    pods = [
        f'{{"metadata":{{"name":"ready-{i}","creationTimestamp":"2026-01-01T00:00:0{i}Z"}},{ready}}}' for i in range(8)
    ]
    pods += [
        '{"metadata":{"name":"old","creationTimestamp":"2026-01-02T00:00:00Z"},"status":{"phase":"Pending"}}',
        '{"metadata":{"name":"new","creationTimestamp":"2026-01-03T00:00:00Z"},"status":{"phase":"Running"}}',
        '{"metadata":{"name":"out","creationTimestamp":"2026-01-04T00:00:00Z","deletionTimestamp":"x"},"status":{}}',
    ]
    answers = f"""case $1 in get) echo '{{"items":[{",".join(pods)}]}}';; logs) echo 'a line';; esac"""
    assert program(answers).why("a=b") == "pod new: Running, not ready yet; its last line: a line"
