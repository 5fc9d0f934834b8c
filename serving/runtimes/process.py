"""A version in a process of its own, behind the port of a runtime.

What its code breaks, it breaks there: modules of the same name do not meet, and a version that crashes, hangs or leaks
loses its own requests only. The process is started again, with a pause that doubles while it keeps ending, and given up
on when several in a row have answered nobody.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from registry.errors import InvalidModel
from registry.mlmodel import MLmodel
from serving.configuration import Configuration
from serving.errors import ModelFailed, NotReady
from serving.lifecycle import backoff
from serving.refusals import Raised
from serving.runtimes.base import Engine, Outputs, Want
from serving.runtimes.spawn import Child, Ending, Gone, Unsent
from serving.runtimes.wire import OUTPUT, pack

log = logging.getLogger("headway.process")
#: A process that lived this long starts again without a pause.
STEADY_SECONDS = 60.0
#: So many ends and vain starts in a row, with no prediction answered in between, and there is no next start.
MOST_IN_VAIN = 5
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 60.0
_FAREWELL_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bytes of memory (0: none) and seconds: for one prediction, and for a start."""

    memory_bytes: int
    hang_seconds: float
    start_seconds: float


class ProcessRuntime:
    """A runtime whose `predict` happens elsewhere. It blocks on a socket: never call it on the event loop.

    Raises, beside what a runtime raises: ModelFailed for rows that were in the process when it ended; NotReady for rows
    that come while there is none, so that nobody waits for a start that may fail.
    """

    def __init__(
        self, order: Mapping[str, Any], bounds: Bounds, facts: Mapping[str, Any], lost: Callable[[Ending], None]
    ) -> None:
        """Starts the process; blocks until the version is loaded. `order` is what the process is told to load, `facts`
        name the version on log lines, `lost` hears why a process had to be replaced. Raises InvalidModel."""
        self._order, self._bounds, self._facts, self._lost = order, bounds, facts, lost
        self._closed = threading.Event()
        self._first: bytes | None = None
        self._newest: Child | None = None
        self.classes: np.ndarray | None = None
        self.engine = Engine("process")
        #: why there is no process now, or None
        self.trouble: str | None = None
        #: hears, from another thread, that no process will be started any more, and why
        self.given_up: Callable[[str], None] = lambda reason: None
        self._in_vain = 0
        self._child: Child | None = self._start()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True, name="headway-process")
        self._supervisor.start()

    @property
    def pid(self) -> int | None:
        """The id of the process, or None while there is none."""
        child = self._child
        return child.pid if child is not None else None

    def predict(self, arrays: tuple[np.ndarray, ...], rows: int, want: Want) -> Outputs:
        """Sends the batch to the process and waits, at most `hang_seconds`."""
        child = self._child
        if child is None:
            raise NotReady(self._excuse())
        question = pack({"rows": rows, "want": want.value}, {str(i): array for i, array in enumerate(arrays)})
        self._first = self._first or question
        try:
            answer = child.ask(question, self._bounds.hang_seconds)
        except Unsent as error:
            raise NotReady(self._excuse()) from error
        except Gone as error:
            raise ModelFailed(str(error)) from error
        self._in_vain = 0
        if "raised" in answer.facts:
            facts = answer.facts
            kind = str(facts["raised"])[:64]
            text = f"{kind}: {facts.get('text')}\n{facts.get('trace')}"[:5000]
            raise Raised(text, kind, facts.get("about_rows") is True)
        found = answer.arrays
        self.classes = found.get("classes", self.classes)
        named = {name.removeprefix(OUTPUT): array for name, array in found.items() if name.startswith(OUTPUT)}
        return Outputs(rows, found.get("labels"), found.get("probabilities"), found.get("raw"), named or None)

    def close(self) -> None:
        """Ends the process: an idle one by itself, a busy one by force after two seconds. Blocks that long."""
        self._closed.set()
        child = self._newest
        if child is not None:
            child.hang_up()
            self._supervisor.join(_FAREWELL_SECONDS)
            child.end()
        self._child = None
        self.given_up = lambda reason: None

    def _excuse(self) -> str:
        return f"The version's process {self.trouble or 'has just ended'}; ask again in a moment."

    def _start(self) -> Child:
        """A process with the version loaded, or InvalidModel; nothing is left of one that did not come so far."""
        child = self._newest = Child(self._facts, self._bounds.memory_bytes)
        try:
            if self._closed.is_set():
                raise InvalidModel("the version is being unloaded")
            hello = child.greet(self._order, self._bounds.start_seconds)
            if self._first is not None:
                # The first prediction of a process is its slowest: not at a caller's expense, nor by a caller's bound.
                child.ask(self._first, max(self._bounds.hang_seconds, STEADY_SECONDS))
        except BaseException as error:
            child.end()
            child.wait()
            if isinstance(error, Gone):
                raise InvalidModel(f"{error} at its first prediction") from error
            raise
        self.classes = hello.arrays.get("classes", self.classes)
        self.engine = _engine(hello.facts.get("engine"))
        log.info("the version's process is up", extra={**self._facts, "pid": child.pid})
        return child

    def _supervise(self) -> None:
        failures = 0
        while (child := self._child) is not None:
            born = time.monotonic()
            ending = child.wait()
            self.trouble = child.epitaph(ending)
            self._child = None
            if self._closed.is_set():
                return
            if time.monotonic() - born > STEADY_SECONDS:
                failures = self._in_vain = 0
            failures += 1
            self._report(ending, failures)
            child = self._start_again(failures)
            if child is not None:
                self._child, self.trouble = child, None

    def _start_again(self, failures: int) -> Child | None:
        """Tries until a process is up; None when the version is unloaded meanwhile, or is given up on."""
        while self._in_vain < MOST_IN_VAIN and not self._closed.wait(pause(failures)):
            try:
                return self._start()
            except (InvalidModel, OSError) as error:
                failures += 1
                self.trouble = f"does not start again: {error}"
                self._report(Ending.START, failures)
        if not self._closed.is_set():
            self.given_up(
                f"its process ended {MOST_IN_VAIN} times in a row and answered nothing between: it {self.trouble}"
            )
        return None

    def _report(self, ending: Ending, failures: int) -> None:
        self._in_vain += 1
        self._lost(ending)
        log.error(
            "the version's process is gone",
            extra={**self._facts, "reason": ending, "detail": self.trouble, "in_a_row": failures},
        )


def _engine(said: Any) -> Engine:
    """What the process says that it computes with: a stranger's words, so cut."""
    facts = said if isinstance(said, dict) else {}
    why = facts.get("why")
    return Engine(str(facts.get("name"))[:64], None if why is None else str(why)[:300])


def pause(failures: int) -> float:
    """Seconds before the next start: none after the first failure, then half a second, doubled up to a minute, give or
    take a fifth."""
    if failures <= 1:
        return 0.0
    return backoff(failures - 1, _FIRST_PAUSE, _LONGEST_PAUSE) * random.uniform(0.8, 1.2)  # noqa: S311


@dataclass(frozen=True, slots=True)
class Processes:
    """Starts versions in processes of their own. `lost` hears the version's number and why a process was replaced."""

    start_seconds: float = 600.0
    lost: Callable[[str, Ending], None] = lambda version, ending: None

    def start(
        self, model: MLmodel, name: str, version: str, configuration: Configuration, memory_mb: int, ignore_extra: bool
    ) -> ProcessRuntime:
        """Loads a version whose trust has been checked. Blocks; raises InvalidModel."""
        order = {
            "path": str(model.path),
            "ignore_extra": ignore_extra,
            "task": configuration.task,
            "activation": configuration.activation,
            "classes": configuration.classes,
            "accelerate": configuration.accelerate,
            "torch": asdict(configuration.torch),
        }
        bounds = Bounds(memory_mb * 2**20, configuration.hang_seconds, self.start_seconds)
        facts = {"model": name, "version": version}
        return ProcessRuntime(order, bounds, facts, lambda ending: self.lost(version, ending))
