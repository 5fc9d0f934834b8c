"""A small open-loop load generator: sends at a steady rate from a few threads and keeps every answer."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import requests


@dataclass
class Tally:
    """What came back: how often each version answered, and what was lost (anything but a 200, each with its cause)."""

    versions: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)

    @property
    def sent(self) -> int:
        """All requests, answered or lost."""
        return self.versions.total() + self.lost.total()


class Load:
    """Sends `body` to `url` at `rate` requests per second until stopped. Use as a context manager.

    `right` judges each 200's body; an answer that it does not accept is lost as "wrong answer".
    """

    def __init__(
        self, url: str, body: Any, rate: float = 150.0, threads: int = 4, right: Callable[[Any], bool] | None = None
    ) -> None:
        self.tally = Tally()
        self._right = right
        self._url, self._body = url, body
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._began = 0.0
        self.seconds = 0.0
        self._threads = [threading.Thread(target=self._send, args=(threads / rate,)) for _ in range(threads)]

    def __enter__(self) -> Load:
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.seconds = time.monotonic() - self._began

    @property
    def rate(self) -> float:
        """Requests per second that were really sent."""
        return self.tally.sent / self.seconds

    def _send(self, interval: float) -> None:
        due = time.monotonic()
        with requests.Session() as session:
            while not self._stop.is_set():
                self._count(session)
                due = max(due + interval, time.monotonic() - 1)
                self._stop.wait(max(0.0, due - time.monotonic()))

    def _count(self, session: requests.Session) -> None:
        version, cause = self._ask(session)
        with self._lock:
            if cause:
                self.tally.lost[cause] += 1
            else:
                self.tally.versions[version] += 1

    def _ask(self, session: requests.Session) -> tuple[str, str]:
        """The version that answered, or the cause of the loss."""
        try:
            answer = session.post(self._url, json=self._body, timeout=10)
            if answer.status_code != 200:
                return "", f"status {answer.status_code}"
            body = answer.json()
        except requests.RequestException as error:
            return "", type(error).__name__
        if self._right is not None and not self._right(body):
            return "", "wrong answer"
        return str(body["model_version"]), ""
