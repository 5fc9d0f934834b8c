"""How long a back end is asked before it counts as down: bounded retries, a deadline, and a breaker shared by all models.

A call is tried a few times with exponential back-off and jitter (`tenacity`), and never again after the deadline. When
several calls in a row have failed the breaker opens: for a while a dead registry is not asked at all, whoever polls,
and then by one caller alone. The registry and the artifact store have one each: either may be down alone. (pybreaker holds its lock while the call runs, so that one slow answer would make every
model wait; hence the few lines here.)
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

import tenacity
from mlflow.exceptions import MlflowException

from registry.errors import RegistryUnavailable

T = TypeVar("T")


class NotAskedAgain(RegistryUnavailable):
    """The breaker is open: what is behind it failed a moment ago and has not been asked."""


class Breaker:
    """Counts failures in a row; after `failures` of them nobody is admitted for `rest_seconds`, and then one caller."""

    def __init__(
        self,
        failures: int,
        rest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        what: str = "registry",
    ) -> None:
        self._what = what
        self._most, self._rest, self._clock = failures, rest_seconds, clock
        self._lock = threading.Lock()
        self._failures = 0
        self._open_until = 0.0
        self._last: BaseException | None = None

    def admit(self) -> None:
        """Raises NotAskedAgain while the breaker is open."""
        with self._lock:
            now = self._clock()
            if self._failures < self._most:
                return
            if now < self._open_until:
                raise NotAskedAgain(f"the {self._what} failed a moment ago") from self._last
            self._open_until = now + self._rest  # this caller tries; the others wait for what it finds

    def record(self, error: BaseException | None) -> None:
        """What an admitted call came to: an error, or None if the registry answered."""
        with self._lock:
            self._failures, self._last = (0, None) if error is None else (self._failures + 1, error)
            self._open_until = self._clock() + self._rest


class Patience:
    """Retries, deadline and breaker of one back end. Thread-safe."""

    def __init__(
        self,
        attempts: int = 3,
        deadline_seconds: float = 10.0,
        breaker: Breaker | None = None,
        what: str = "registry",
    ) -> None:
        """`what` is the back end's name in errors."""
        self._breaker = breaker or Breaker(failures=3, rest_seconds=10.0, what=what)
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts) | tenacity.stop_after_delay(deadline_seconds),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=2),
            retry=tenacity.retry_if_exception(lambda error: not is_answer(error)),
            reraise=True,
        )

    def ask(self, call: Callable[[], T]) -> T:
        """What the call returns, or its last error; NotAskedAgain while the breaker is open."""
        self._breaker.admit()
        try:
            answer: T = self._retrying.copy()(call)
        except Exception as error:
            self._breaker.record(None if is_answer(error) else error)
            raise
        self._breaker.record(None)
        return answer


def within(seconds: float, call: Callable[[], T]) -> T:
    """What a call that blocks returns or raises; TimeoutError if it takes longer, and then its thread is left to itself."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(call())
        except BaseException as error:  # noqa: BLE001  handed to who waits
            done.set_exception(error)

    threading.Thread(target=run, daemon=True, name="headway-work").start()
    return done.result(seconds)


def is_answer(error: BaseException) -> bool:
    """Whether an error is the registry's own word, which asking again would not change."""
    return isinstance(error, MlflowException) and 400 <= error.get_http_status_code() < 500
