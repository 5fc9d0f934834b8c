"""The supervisor and its real processes, which serve nobody: who counts, who is started again, and when all end."""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.workers.member import Bounds
from serving.workers.supervisor import Supervisor
from serving.workers.worker import FAILED_FAST
from tests.crew import Puppets

BOUNDS = Bounds(first_pause=0.01, longest_pause=0.01)


class Crew:
    """A supervisor that runs, and the folder by which its workers are told."""

    def __init__(self, folder: Path, workers: int, bounds: Bounds) -> None:
        self.folder = folder
        self.supervisor = Supervisor(workers, Puppets(folder), 20.0, bounds)
        self.running = asyncio.create_task(self.supervisor.run())

    def say(self, what: str, text: str = "") -> None:
        (self.folder / what).write_text(text)

    def hear(self, what: str) -> str | None:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / what).read_text()
        return None

    async def until(self, condition: Callable[[], Any], seconds: float = 30) -> None:
        async with asyncio.timeout(seconds):
            while not condition():
                assert not self.running.done(), self.running.result()
                await asyncio.sleep(0.01)

    async def until_says(self, what: str, text: str) -> None:
        await self.until(lambda: self.hear(what) == text)

    async def until_ready(self, *numbers: int) -> None:
        for number in numbers or (1, 2):
            await self.until_says(f"ready-{number}", "True")

    async def replaced(self, number: int, before: str | None) -> str:
        """The process id of the next worker that listens in this place."""
        await self.until(lambda: self.hear(f"listens-{number}") not in (None, before))
        return str(self.hear(f"listens-{number}"))

    async def metric(self, name: str, **labels: str) -> float | None:
        families = text_string_to_metric_families((await self.supervisor.exposition()).decode())
        found = [s.value for f in families for s in f.samples if s.name == name and labels.items() <= s.labels.items()]
        return sum(found) if found else None

    async def until_metric(self, name: str, holds: Callable[[float], bool], **labels: str) -> None:
        """Waits until that holds; what the workers say of themselves is heard in its own time."""
        async with asyncio.timeout(30):
            while not holds(await self.metric(name, **labels) or 0.0):
                await asyncio.sleep(0.01)

    async def end(self) -> int:
        self.supervisor.stop()
        return await asyncio.wait_for(self.running, 30)


@contextlib.asynccontextmanager
async def crew(folder: Path, workers: int = 2, bounds: Bounds = BOUNDS, **files: str) -> AsyncIterator[Crew]:
    for name, text in files.items():
        (folder / name.replace("_", "-")).write_text(text)
    made = Crew(folder, workers, bounds)
    try:
        yield made
    finally:
        if not made.running.done():
            await made.end()


class Stuck(Puppets):
    """Nothing to fork from ever comes up."""

    def __init__(self, folder: Path, freed: threading.Event) -> None:
        super().__init__(folder)
        self._freed, self.asked = freed, threading.Event()

    def warm(self) -> None:
        self.asked.set()
        self._freed.wait(60)


@pytest.fixture
def freed() -> Iterator[threading.Event]:
    """Ends the waiting threads when the test has ended."""
    event = threading.Event()
    yield event
    event.set()


async def test_what_workers_are_forked_from_has_a_bound_too(tmp_path: Path, freed: threading.Event) -> None:
    """At the start that is the end: whoever started the server starts it again."""
    supervisor = Supervisor(2, Stuck(tmp_path, freed), 20.0, replace(BOUNDS, warm=0.1))
    assert await asyncio.wait_for(supervisor.run(), 10) == 1


async def test_the_end_does_not_wait_for_what_never_comes_up(tmp_path: Path, freed: threading.Event) -> None:
    """The drain bound holds."""
    stuck = Stuck(tmp_path, freed)
    supervisor = Supervisor(2, stuck, 0.1, BOUNDS)
    running = asyncio.create_task(supervisor.run())
    assert await asyncio.to_thread(stuck.asked.wait, 10)
    supervisor.stop()
    assert await asyncio.wait_for(running, 10) == 1


async def test_all_must_be_ready_and_all_are_told(tmp_path: Path) -> None:
    """At the start every worker listens at once; one that is not ready makes all of them say so, then and later."""
    async with crew(tmp_path, unready_2="") as made:
        await made.until(lambda: made.hear("listens-1") and made.hear("listens-2"))
        await made.until_says("ready-1", "False")
        (tmp_path / "unready-2").unlink()
        await made.until_ready()
        await made.until_metric("headway_workers", (2.0).__eq__)
        made.say("unready-1")
        await made.until_says("ready-2", "False")
        assert await made.end() == 0


async def test_one_that_is_gone_comes_back_and_nobody_is_unready_meanwhile(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not listen before it is ready; until then it does not count; what it had counted still does."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        assert await made.metric("model_predictions_total") == 20
        made.say("unready-1")
        await made.until_says("ready-2", "False")
        before, began = made.hear("listens-1"), made.hear("began-1")
        os.kill(int(str(before)), signal.SIGKILL)
        await made.until(lambda: made.hear("began-1") != began)
        await made.until_ready(2)
        assert made.hear("listens-1") == before
        await made.until_metric("headway_workers", (1.0).__eq__)
        assert await made.metric("model_predictions_total") == 20
        (tmp_path / "unready-1").unlink()
        await made.replaced(1, before)
        await made.until_ready()
        assert await made.metric("model_predictions_total") == 30
        assert await made.metric("headway_worker_restarts_total", reason="crashed") == 1
    assert [record.message for record in caplog.records if record.levelno == logging.ERROR] == ["a worker is gone"]


async def test_when_nobody_listens_any_more_a_new_one_does_at_once(tmp_path: Path) -> None:
    """Ready or not: a server that says 503 is better than none."""
    async with crew(tmp_path, workers=1) as made:
        await made.until_ready(1)
        made.say("unready-1")
        before = made.hear("listens-1")
        os.kill(int(str(before)), signal.SIGKILL)
        await made.replaced(1, before)
        await made.until_says("ready-1", "False")


@pytest.mark.parametrize("how", ["stopped", "deaf"])
async def test_one_that_does_not_answer_is_replaced(tmp_path: Path, how: str) -> None:
    """Whether the kernel does not let it run, or its own loop stands still."""
    async with crew(tmp_path, bounds=replace(BOUNDS, heartbeat=2.0)) as made:
        await made.until_ready()
        before = made.hear("listens-2")
        if how == "stopped":
            os.kill(int(str(before)), signal.SIGSTOP)
        else:
            made.say("deaf-2")
        await made.until(lambda: not _runs(int(str(before))))
        (tmp_path / "deaf-2").unlink(missing_ok=True)
        await made.replaced(2, before)
        assert await made.metric("headway_worker_restarts_total", reason="hung") == 1


@pytest.mark.audit("30d")
async def test_while_one_is_silent_or_away_another_stands_in_for_it(tmp_path: Path) -> None:
    """Long before it is given up: at once, and until it answers again, or the next one listens."""
    async with crew(tmp_path, bounds=replace(BOUNDS, still=20.0)) as made:
        await made.until_ready()
        before = int(str(made.hear("listens-2")))
        os.kill(before, signal.SIGSTOP)
        await made.until_says("doors-1", "[2]")
        os.kill(before, signal.SIGCONT)
        await made.until_says("doors-1", "[]")
        made.say("unready-2")  # the next one does not listen before it is ready
        os.kill(before, signal.SIGKILL)
        await made.until_says("doors-1", "[2]")
        (tmp_path / "unready-2").unlink()
        await made.replaced(2, str(before))
        await made.until_says("doors-1", "[]")
        assert await made.metric("headway_worker_restarts_total", reason="hung") == 0


@pytest.mark.audit("30d")
async def test_one_that_does_nothing_is_given_up_before_one_that_computes(tmp_path: Path) -> None:
    """A loop that is held up by its own work comes back; a process that does nothing at all does not."""
    async with crew(tmp_path, bounds=replace(BOUNDS, still=0.5)) as made:
        await made.until_ready()
        before = made.hear("listens-2")
        made.say("busy-2")
        await made.until_says("doors-1", "[2]")
        await asyncio.sleep(2)
        (tmp_path / "busy-2").unlink()
        await made.until_says("doors-1", "[]")
        assert made.hear("listens-2") == before
        os.kill(int(str(before)), signal.SIGSTOP)
        await made.replaced(2, before)
        assert await made.metric("headway_worker_restarts_total", reason="hung") == 1


def _runs(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_one_that_never_says_hello_is_replaced(tmp_path: Path) -> None:
    """Its start has a bound of its own; the other one serves meanwhile."""
    async with crew(tmp_path, bounds=replace(BOUNDS, hello=1.0), mute_1="") as made:
        await made.until_says("ready-2", "True")
        began = made.hear("began-1")
        await made.until(lambda: made.hear("began-1") != began)
        (tmp_path / "mute-1").unlink()
        await made.until_ready()
        assert (await made.metric("headway_worker_restarts_total", reason="hung") or 0) >= 1


async def test_one_that_ends_by_itself_is_replaced(tmp_path: Path) -> None:
    """Somebody sent it a signal; what it had counted since the last scrape it hands over."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        before = made.hear("listens-1")
        os.kill(int(str(before)), signal.SIGTERM)
        await made.replaced(1, before)
        await made.until_ready()
        assert await made.metric("headway_worker_restarts_total", reason="exited") == 1
        assert await made.metric("model_predictions_total") == 30


@pytest.mark.parametrize("code", [FAILED_FAST, 1])
async def test_one_that_cannot_serve_ends_all(tmp_path: Path, code: int) -> None:
    """Because `server.fail_fast` says so, or because the first start failed: the same would happen for ever."""
    made = Crew(tmp_path, 2, BOUNDS)
    made.say("exit-2", str(code))
    made.say("exit-1", str(code))
    assert await asyncio.wait_for(made.running, 30) == 1


async def test_a_failed_start_later_is_tried_again(tmp_path: Path) -> None:
    """While others serve."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        await made.until_metric("headway_workers", (2.0).__eq__)
        before = made.hear("listens-1")
        made.say("exit-1", "1")
        os.kill(int(str(before)), signal.SIGKILL)
        await made.until_metric("headway_worker_restarts_total", (2.0).__le__, reason="exited")
        (tmp_path / "exit-1").unlink()
        await made.replaced(1, before)
        await made.until_ready()


async def test_what_was_loaded_by_request_is_loaded_again(tmp_path: Path) -> None:
    """All are asked; the next worker hears of what is still loaded, before it listens; what failed is not remembered."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        for name, load in (("a", True), ("b", True), ("a", False)):
            await made.supervisor.repository(name, load=load)
        with pytest.raises(Exception, match="no model 'none'") as error:
            await made.supervisor.repository("none", load=True)
        assert error.value.kind == "NotFound"
        assert made.hear("operations-1") == made.hear("operations-2") == "load a\nload b\nunload a\n"
        (tmp_path / "operations-1").unlink()
        before = made.hear("listens-1")
        os.kill(int(str(before)), signal.SIGKILL)
        await made.replaced(1, before)
        assert made.hear("operations-1") == "load b\n"


async def test_news_reach_the_others(tmp_path: Path) -> None:
    """Not the one that they come from."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        made.say("nudges-1")
        await made.until_says("woken-2", "m")
        assert made.hear("woken-1") is None


async def test_workers_outlive_what_they_were_forked_from(tmp_path: Path) -> None:
    """It is started again when the next worker is."""
    async with crew(tmp_path) as made:
        await made.until_ready()
        before = [made.hear(f"listens-{number}") for number in (1, 2)]
        os.kill(psutil.Process(int(str(before[0]))).ppid(), signal.SIGKILL)
        assert await made.metric("model_predictions_total") == 20
        os.kill(int(str(before[0])), signal.SIGKILL)
        await made.replaced(1, before[0])
        await made.until_ready()
        assert made.hear("listens-2") == before[1]
        assert await made.end() == 0
