"""Retries, deadline and breaker: a registry that is down costs nothing, whoever asks."""

import threading
import time

import pytest
from mlflow.exceptions import RestException

from registry.patience import Breaker, NotAskedAgain, Patience


class Registry:
    """Fails `failures` times, then answers."""

    def __init__(self, failures: int, error: Exception | None = None) -> None:
        self.left, self.calls = failures, 0
        self.error = error or ConnectionError("refused")

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.left:
            raise self.error
        return "answer"


def test_a_hiccup_is_asked_again() -> None:
    """Two failures, and the third answer counts."""
    registry = Registry(2)
    assert Patience().ask(registry) == "answer"
    assert registry.calls == 3


@pytest.mark.parametrize("code", ["RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "UNAUTHENTICATED"])
def test_an_answer_is_not_asked_again(code: str) -> None:
    """A 4xx is the registry's own word: one call, and the breaker stays closed however often."""
    registry = Registry(99, RestException({"error_code": code, "message": "no"}))
    patience = Patience()
    for _ in range(10):
        with pytest.raises(RestException):
            patience.ask(registry)
    assert registry.calls == 10


def test_nothing_is_tried_after_the_deadline() -> None:
    """A call that failed late is not tried again, whatever the number of attempts left."""

    def late() -> None:
        calls.append(1)
        time.sleep(0.05)
        raise ConnectionError

    calls: list[int] = []
    with pytest.raises(ConnectionError):
        Patience(attempts=50, deadline_seconds=0.04).ask(late)
    assert len(calls) == 1


def test_a_dead_registry_is_left_alone_and_then_tried_by_one() -> None:
    """Three failures open the breaker; after the rest one caller is admitted, and its answer closes it for all."""
    now = [0.0]
    breaker = Breaker(failures=3, rest_seconds=10, clock=lambda: now[0])
    patience = Patience(attempts=1, breaker=breaker)
    registry = Registry(4)
    for _ in range(3):
        with pytest.raises(ConnectionError):
            patience.ask(registry)
    for _ in range(100):
        with pytest.raises(NotAskedAgain) as refused:
            patience.ask(registry)
    assert registry.calls == 3
    assert str(refused.value.__cause__) == "refused"
    now[0] = 10.0
    with pytest.raises(ConnectionError):
        patience.ask(registry)
    now[0] = 19.0
    with pytest.raises(NotAskedAgain):
        patience.ask(registry)
    now[0] = 20.0
    breaker.admit()
    with pytest.raises(NotAskedAgain):
        breaker.admit()  # somebody is asking already
    breaker.record(None)
    assert patience.ask(registry) == "answer"
    assert registry.calls == 5


def test_one_slow_answer_makes_nobody_else_wait() -> None:
    """The breaker holds no lock while a call runs."""
    patience, hold = Patience(), threading.Event()
    slow = threading.Thread(target=lambda: patience.ask(hold.wait))
    slow.start()
    assert patience.ask(lambda: "answer") == "answer"
    hold.set()
    slow.join()
