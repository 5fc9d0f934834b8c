"""One experiment: its servers started and checked, all rounds measured, everything stopped."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil

from scripts.bench.commands import Job, command
from scripts.bench.environments import Unavailable
from scripts.bench.experiments import STEPS, Experiment, Server, Side
from scripts.bench.figures import Figure, next_rate, order
from scripts.bench.loads import Load, cores_of_machine, direct
from scripts.bench.models import Models
from scripts.bench.processes import Running, await_answer, free_ports, send, started
from scripts.bench.results import Record
from scripts.bench.saved import Saved
from scripts.bench.wires import ask

WARM_CLIENTS, WARM_SECONDS = 16, 1.0
#: What a server is asked before its memory is read.
ASKED = 200
LOWEST_RATE, HIGHEST_RATE, P95_MS = 200.0, 20_000.0, 50.0

#: What a server or a load may die of; the row says so, and the run goes on.
BROKEN = (Unavailable, OSError, subprocess.SubprocessError, psutil.Error, grpc.RpcError)
Measure = Callable[[int, float], Figure]


@dataclass
class Bench:
    """Runs experiments with models in `home`; `rounds` of each measurement, which takes `seconds`."""

    home: Path
    models: Models
    rounds: int
    seconds: float

    def run(self, experiment: Experiment) -> Record:
        """Measures it. What cannot be started, or breaks, is skipped with the reason."""
        record = Record(self.rounds, self.seconds)
        kinds = {"closed": self._closed, "start": self._start, "open": self._open, "capacity": self._capacity}
        try:
            kinds[experiment.kind](experiment, record)
        except BROKEN as reason:
            record.skipped[experiment.sides[0].name] = f"{type(reason).__name__}: {reason}"
            say(f"  {experiment.name} is given up: {reason}")
        return record

    # -- the kinds of measurement ---------------------------------------------------------------------------------

    def _closed(self, experiment: Experiment, record: Record) -> None:
        with contextlib.ExitStack() as stack:
            ready = self._ready(experiment, record, stack)
            sides = [side for side in experiment.sides if side.name in ready]
            if experiment.sides[0] not in sides:
                return
            for number in range(self.rounds):
                for clients in experiment.clients:
                    for i in order(len(sides), number):
                        if sides[i].name not in record.skipped:
                            self._measure(record, sides[i].name, clients, number, ready[sides[i].name])

    def _measure(self, record: Record, side: str, clients: int, number: int, measure: Measure) -> None:
        try:
            figure = measure(clients, self.seconds)
        except BROKEN as reason:
            record.skipped[side] = f"with {clients} clients: {reason}"
            return
        record.add(side, clients, figure)
        told = f"{figure.errors} errors" if figure.errors else ""
        say(f"  round {number + 1}/{self.rounds} {clients:4} clients {side:20} {figure.rate:9.0f}/s {told}")

    def _start(self, experiment: Experiment, record: Record) -> None:
        for number in range(self.rounds):
            for i in order(len(experiment.sides), number):
                side = experiment.sides[i]
                if side.name in record.skipped:  # the rounds of two sides are paired by their number
                    continue
                try:
                    figure = self._started_once(experiment, side)
                except BROKEN as reason:
                    record.skipped[side.name] = str(reason)
                    continue
                record.add(side.name, 1, figure)
                say(f"  round {number + 1}/{self.rounds} {side.name:20} {figure.seconds:.2f} s {figure.memory:.0f} MB")

    def _started_once(self, experiment: Experiment, side: Side) -> Figure:
        saved = self.models.get(experiment.model)
        message = ask(side.wire, saved.columns, saved.asked(1))
        with self._served(experiment, side.server) as server:
            seconds = await_answer(server, side.wire, saved)
            for _ in range(ASKED):
                send(server, side.wire, message)
            return Figure(1 / seconds, seconds=seconds, memory=server.memory())

    def _open(self, experiment: Experiment, record: Record) -> None:
        side = experiment.sides[0]
        with self._warm(experiment) as (load, server, saved):
            for number in range(self.rounds):
                message = ask(side.wire, saved.columns, saved.asked(experiment.rows))
                figure = load.open(server, message, experiment.rate, 3 * self.seconds)
                record.add(side.name, 1, figure)
                say(f"  round {number + 1}/{self.rounds} {experiment.rate:.0f}/s P95 {figure.p95:.2f} ms")

    def _capacity(self, experiment: Experiment, record: Record) -> None:
        """Bisection over rates; the figure kept is that of the highest rate that was carried, at the first or second try:
        one stall of the machine must not end the search."""
        side, carried = experiment.sides[0], dict[float, bool]()
        with self._warm(experiment) as (load, server, saved):
            message = ask(side.wire, saved.columns, saved.asked(experiment.rows))
            best: Figure | None = None
            for step in range(STEPS):
                rate = next_rate(LOWEST_RATE, HIGHEST_RATE, carried)
                tries = (load.open(server, message, rate, self.seconds) for _ in range(2))
                figure = next((f for f in tries if f.p95 <= P95_MS and not f.errors), None)
                carried[rate] = figure is not None
                if figure is not None and (best is None or figure.rate > best.rate):
                    best = figure
                told = f"P95 {figure.p95:.1f} ms, load {figure.load:.2f} of a core" if figure else "not carried"
                say(f"  step {step + 1}/{STEPS} {rate:.0f}/s {told}")
        if best is None:
            raise Unavailable(f"it did not carry {min(carried):.0f} requests a second")
        record.add(side.name, 1, best)

    # -- servers --------------------------------------------------------------------------------------------------

    def _ready(self, experiment: Experiment, record: Record, stack: contextlib.ExitStack) -> dict[str, Measure]:
        """Starts each server once, and gives the measurement of each side that answers right."""
        running: list[tuple[Server, Running]] = []
        ready: dict[str, Measure] = {}
        for side in experiment.sides:
            try:
                ready[side.name] = self._side(experiment, side, running, stack)
            except BROKEN as reason:
                record.skipped[side.name] = str(reason)
                say(f"  {side.name} is skipped: {reason}")
        return ready

    def _side(
        self, experiment: Experiment, side: Side, running: list[tuple[Server, Running]], stack: contextlib.ExitStack
    ) -> Measure:
        saved = self.models.get(experiment.model)
        ours, theirs = cores(experiment)
        if side.server.program == "direct":
            how = side.server.options["how"]
            return lambda clients, seconds: direct(saved.folder, how, experiment.rows, seconds, ours)
        server = next((r for s, r in running if s == side.server), None)
        if server is None:
            server = stack.enter_context(self._served(experiment, side.server))
            running.append((side.server, server))
        self._check(side, server, saved, experiment.rows)
        load, message = Load(self.home, theirs), ask(side.wire, saved.columns, saved.asked(experiment.rows))
        load.closed(server, side.wire, message, WARM_CLIENTS, WARM_SECONDS)
        return lambda clients, seconds: load.closed(server, side.wire, message, clients, seconds)

    def _check(self, side: Side, server: Running, saved: Saved, rows: int) -> None:
        """The question of the load, and one with rows of every answer; a server without a model answers as it likes."""
        judged = side.wire != "entities" and side.server.options.get("how") != "nothing"
        for count in {rows, 32}:
            await_answer(server, side.wire, saved, count, judged=judged)

    @contextlib.contextmanager
    def _warm(self, experiment: Experiment) -> Iterator[tuple[Load, Running, Saved]]:
        side, saved = experiment.sides[0], self.models.get(experiment.model)
        with self._served(experiment, side.server) as server:
            load = Load(self.home, cores(experiment)[1])
            self._check(side, server, saved, experiment.rows)
            load.open(server, ask(side.wire, saved.columns, saved.asked(experiment.rows)), LOWEST_RATE, WARM_SECONDS)
            yield load, server, saved

    def _served(self, experiment: Experiment, server: Server) -> contextlib.AbstractContextManager[Running]:
        home = Path(tempfile.mkdtemp(dir=self.home))
        ports = free_ports(3)
        feast = self.models.feast() if server.options.get("features") else None
        job = Job(server.options, self.models.get(experiment.model), home, ports[0], ports[1], ports[2], feast)
        return started(command(server.program, job), cores(experiment)[0], ports, home)


def cores(experiment: Experiment) -> tuple[list[int], list[int]]:
    """The server's cores, and those of the load: apart, unless the server needs all."""
    found = cores_of_machine()
    if len(found) < 2:
        raise SystemExit("the benchmark needs two cores: one for the servers, one for the load")
    server = found[: experiment.cores]
    return server, found[experiment.cores :] or server


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)
