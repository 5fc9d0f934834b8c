"""Workers that load no model and serve nobody: what a real supervisor does with them is seen in milliseconds.

What one does is in files of its folder, named by its number: `exit-1` has the code that it ends with at its start,
`mute-1` keeps it from saying hello, `unready-1` from being ready, `deaf-1` from answering, `busy-1` too, while it
computes, `nudges-1` has it nudge. `doors-1` says whom it stands in for.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Collection
from multiprocessing.process import BaseProcess
from pathlib import Path

from prometheus_client import CollectorRegistry

from monitoring.metrics import Metrics
from serving.crew import Alone
from serving.doors import Doors
from serving.fleet import Fleet
from serving.named import Finder
from serving.workers.linked import Linked
from tests.fakes import Registry


class Puppet(Alone):
    """A worker's own part, as its folder says."""

    def __init__(self, folder: Path, number: int) -> None:
        metrics = Metrics(CollectorRegistry(), (), ())
        super().__init__(Fleet({}, None, 1.0, lambda: 0, Finder(Registry())), metrics)
        self._folder, self._number = folder, number

    @property
    def ready(self) -> bool:
        return not self.told("unready")

    def told(self, what: str) -> bool:
        return (self._folder / f"{what}-{self._number}").exists()

    def say(self, what: str, text: str) -> None:
        """Leaves a file, whole at once."""
        file = self._folder / f"{what}-{self._number}"
        file.with_suffix(".part").write_text(text)
        file.with_suffix(".part").rename(file)

    async def repository(self, name: str, *, load: bool) -> None:
        if name == "none":
            await self._fleet.summon(name)
        with (self._folder / f"operations-{self._number}").open("a") as file:
            file.write(f"{'load' if load else 'unload'} {name}\n")

    def wake(self, name: str) -> int:
        self.say("woken", name)
        return 1


class Told(Doors):
    """Says whom it was told to stand in for."""

    def __init__(self, own: Puppet) -> None:
        super().__init__((), 0)
        self._puppet = own

    def stand_in(self, numbers: Collection[int]) -> None:
        self._puppet.say("doors", str(list(numbers)))


def work(folder: Path, end: socket.socket, number: int) -> None:
    """The life of one worker."""
    own = Puppet(folder, number)
    own.say("began", str(os.getpid()))
    if own.told("exit"):
        sys.exit(int((folder / f"exit-{number}").read_text()))
    if own.told("mute"):
        time.sleep(3600)
    asyncio.run(_work(own, Linked(own, end, Told(own))))


async def _work(own: Puppet, crew: Linked) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    joining = asyncio.create_task(crew.join(stop.set))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait((joining, stopping), return_when=asyncio.FIRST_COMPLETED)
    crew.listens = True
    own.metrics.predictions.labels("m", "1").inc(10)
    own.say("listens", str(os.getpid()))
    while not stop.is_set():
        own.say("ready", str(crew.ready))
        if own.told("deaf"):
            time.sleep(3600)  # nothing of the loop runs
        while own.told("busy"):
            pass
        if own.told("nudges"):
            crew.nudge("m")
        await asyncio.sleep(0.02)
    await crew.leave()


class Puppets:
    """Forks them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.crew"])

    def warm(self) -> None:
        first = self._context.Process(target=int)
        first.start()
        first.join()

    def start(self, number: int, end: socket.socket) -> BaseProcess:
        process = self._context.Process(target=work, args=(self._folder, end, number))
        process.start()
        return process
