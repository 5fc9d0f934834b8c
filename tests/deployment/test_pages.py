"""docs/deployment.md and docs/troubleshooting.md: every command is run or checked, every name is a real one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from serving.errors import REASONS
from tests.deployment.clusters import ROOT, Shell, manifest, patched, percent, running, with_route
from tests.deployment.controller import Cluster

DOCS = ROOT / "docs"
PAGES = ["deployment.md", "troubleshooting.md"]


def canary() -> Cluster:
    """Version 2 at 10 %, version 1 before it."""
    cluster = running("1")
    cluster.apply(patched(manifest(version="2"), percent(10)))
    cluster.settle()
    return cluster


STATES = {"canary": canary, "promoted": lambda: running("1", "2"), "Standard": lambda: running("2", mode="Standard")}


def text(page: str) -> str:
    return (DOCS / page).read_text("utf-8")


def blocks(page: str, heading: str = "") -> list[str]:
    """The shell blocks of a page, or of one of its sections."""
    section = text(page)
    if heading:
        section = re.split(r"^#+ ", section.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return re.findall(r"```bash\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def run(shell: Shell, script: str) -> None:
    done = shell.run("bash", "-euc", script)
    assert done.returncode == 0, done.stdout + done.stderr


SECTIONS = [
    ("Start", lambda: running("1"), {"2": 10, "1": 90}),
    ("Widen", canary, {"2": 50, "1": 50}),
    ("Promote", canary, {"2": 100}),
    ("Roll back", canary, {"1": 100}),
    ("Roll back after a promotion", lambda: running("1", "2"), {"2": 99, "1": 1}),
]


@pytest.mark.parametrize(("heading", "begin", "shares"), SECTIONS)
def test_the_commands_of_a_section_do_what_it_says(
    shell: Shell, heading: str, begin: Callable[[], Cluster], shares: dict[str, int]
) -> None:
    """From the state that the section is about, by a real shell."""
    shell.begin(begin())
    [block] = blocks("deployment.md", heading)
    run(shell, block)
    assert shell.shares() == shares


def test_after_a_promotion_the_old_revision_has_its_pods_before_it_has_everything(shell: Shell) -> None:
    """The commands of both sections, one after the other."""
    shell.begin(running("1", "2"))
    run(shell, blocks("deployment.md", "Roll back after a promotion")[0])
    [revision, *_] = shell.cluster_as_it_is().revisions("predictive-maintenance").values()
    assert (revision["status"]["actualReplicas"], shell.shares()) == (2, {"2": 99, "1": 1})
    run(shell, blocks("deployment.md", "Roll back")[0])
    assert shell.shares() == {"1": 100}


def test_the_commands_of_a_roll_back_never_give_the_rejected_version_anything(shell: Shell) -> None:
    """From the first read after the first patch on; and the percent is gone in the end."""
    shell.begin(canary())
    run(shell, blocks("deployment.md", "Roll back")[0])
    assert all("2" not in shares for shares in shell.since_the_first_patch())
    assert "canaryTrafficPercent" not in shell.cluster().service()["spec"]["predictor"]


def test_the_weights_by_hand_split_the_route(shell: Shell) -> None:
    """The overlay's route, with the indices of the page."""
    shell.begin(with_route(weight=10))
    run(shell, blocks("deployment.md", "A canary by a route")[1])
    assert shell.cluster().route_shares("predictive-maintenance-split") == {"1": 50, "2": 50}


def opposites() -> list[tuple[str, str, dict[str, int]]]:
    """State, command and resulting shares of each row of the table."""
    rows = [line.split(" | ") for line in text("deployment.md").splitlines() if re.match(r"\| \w+ \| `kubectl", line)]
    return [
        (row[0].strip("| "), row[1].strip("`"), {v: int(n) for v, n in re.findall(r"version (\d+): (\d+) %", row[3])})
        for row in rows
    ]


@pytest.mark.parametrize(("state", "command", "shares"), opposites())
def test_the_commands_that_do_the_opposite_really_do(
    shell: Shell, state: str, command: str, shares: dict[str, int]
) -> None:
    """At some moment after the command the traffic is what the table says, and that is not what was meant."""
    shell.begin(STATES[state]())
    run(shell, command)
    cluster = shell.cluster_as_it_is()
    seen = []
    while cluster.step():
        seen.append(cluster.shares())
    assert shares in (seen or [cluster.shares()])


def test_the_table_has_every_known_trap() -> None:
    """Among them the two that are most widespread: removing the percent, and the percent beside the predictor."""
    commands = [command for _, command, _ in opposites()]
    assert len(commands) == 8
    assert '"op":"remove","path":"/spec/predictor/canaryTrafficPercent"' in commands[0]
    assert '{"spec":{"canaryTrafficPercent"' in commands[1]


RECORDER = '#!/bin/sh\nexec python3 -c \'import json, sys; open("{log}", "a").write(json.dumps(["{name}", *sys.argv[1:]]) + "\\n")\' "$@"\n'


def recorded(tmp_path: Path, page: str) -> Iterator[list[str]]:
    """Every command of a page's blocks, as a shell takes it apart; nothing real is run."""
    programs = ["kubectl", "kind", "curl", "docker", *(f"scripts/{p.name}" for p in (ROOT / "scripts").glob("*.sh"))]
    (tmp_path / "scripts").mkdir()
    log = tmp_path / "log"
    for name in programs:
        (tmp_path / name).write_text(RECORDER.format(log=log, name=name))
        (tmp_path / name).chmod(0o755)
    script = "\nwait\n".join(blocks(page))
    path = f"{tmp_path}:{os.environ['PATH']}"
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env={"PATH": path}, check=True, timeout=60)
    for line in log.read_text().splitlines():
        yield json.loads(line)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_one_that_exists(tmp_path: Path, page: str) -> None:
    """Folders that are applied have a kustomization, scripts know the words; kubectl, where it is, knows the flags."""
    for program, *words in recorded(tmp_path, page):
        if program.startswith("scripts/"):
            check_script(program, words)
        if program == "kubectl" and "-k" in words:
            assert (ROOT / words[words.index("-k") + 1] / "kustomization.yaml").is_file(), words
        if program == "kubectl" and (real := shutil.which("kubectl")):
            done = subprocess.run([real, *words, "--help"], capture_output=True, text=True, timeout=60)
            assert (done.returncode, "Usage:" in done.stdout) == (0, True), done.stderr


def check_script(program: str, words: list[str]) -> None:
    """A script exists, and its usage names every flag and every verb."""
    usage = subprocess.run([ROOT / program, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    known = usage + (
        subprocess.run([ROOT / "scripts/smoke.sh", "--help"], capture_output=True, text=True, check=True).stdout
    )
    for word in words:
        if word.startswith("--") and word != "--":
            assert word in known, word
    if program == "scripts/canary.sh":
        assert any(f"\n  {word} " in usage for word in words), words


def test_what_is_read_from_the_status_is_there(shell: Shell, tmp_path: Path) -> None:
    """The JSONPaths of the troubleshooting page find something in a service with a canary."""
    folder = tmp_path / "recorder"
    folder.mkdir()
    asked = [words for program, *words in recorded(folder, "troubleshooting.md") if program == "kubectl"]
    paths = [words for words in asked if words[0] == "get" and any("jsonpath" in word for word in words)]
    assert len(paths) == 2
    cluster = canary()
    cluster.service()["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    shell.begin(cluster)
    for words in paths:
        assert shell.run("kubectl", *words).stdout.strip()


@pytest.mark.parametrize("page", PAGES)
def test_every_metric_and_reason_is_real(page: str) -> None:
    """Names of metrics, values of `error_type`."""
    names = set(
        re.findall(r"\b((?:model|inference|headway)_[a-z_]+(?:seconds|total|loaded|size|depth|alive))\b", text(page))
    )
    assert names <= set(re.findall(r"^\| `([a-z_]+)`", text("metrics.md"), re.MULTILINE))
    reasons = set(re.findall(r"^\| \d+[^|]* \| `([a-z_]+)` \|", text(page), re.MULTILINE))
    assert reasons <= set(REASONS)
    assert (page == "deployment.md") != bool(names and reasons)


@pytest.mark.parametrize("page", PAGES)
def test_every_setting_is_real(page: str) -> None:
    """As the page of the configuration has it."""
    names = re.findall(
        r"`((?:server|registry|batching|security)\.[a-z_]+|(?!model_|inference_|headway_)[a-z_]+_(?:ms|mb|seconds))`",
        text(page),
    )
    assert names
    assert [name for name in names if not re.search(rf"`(\w+\.)?{re.escape(name)}`", text("configuration.md"))] == []
