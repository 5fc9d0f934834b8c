"""What travels between a transport and the data plane.

None of these is frozen: one of each is made per request, and a frozen dataclass takes three times as long to make.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

from registry.versions import ModelVersion
from serving.decoding import Partial
from serving.loading import Loaded
from serving.runtimes.base import Outputs
from serving.waiting import NORMAL, Priority

Out_co = TypeVar("Out_co", covariant=True)
Out = TypeVar("Out")
STAGES = ("decode", "features", "predict", "encode")


@dataclass(slots=True)
class Call:
    """Who is asked, until when. `received` is monotonic seconds at the last byte in; `timeout` the client's wish."""

    model: str
    version: str | None = None
    label: str | None = None
    request_id: str = ""
    received: float = 0.0
    timeout: float | None = None


@dataclass(slots=True)
class Decoded:
    """A request's rows, and what it wants to know of them; None means the model's own setting."""

    partial: Partial
    output: str | None = None
    per_instance: bool | None = None
    priority: Priority = NORMAL


@dataclass(slots=True)
class Answer:
    """What was computed, by whom, and how it is to be shown."""

    model: str
    version: ModelVersion
    loaded: Loaded
    outputs: Outputs
    output: str
    per_instance: bool

    @property
    def predictions(self) -> np.ndarray:
        """The array that the answer calls `predictions`."""
        outputs, output = self.outputs, self.output
        if output == "probabilities":
            chosen = outputs.probabilities
        else:
            chosen = outputs.raw if output == "raw" else outputs.labels
        assert chosen is not None
        return chosen

    @property
    def named(self) -> dict[str, np.ndarray]:
        """What the answer says by name: a network's several outputs, or the one that is called `predictions`."""
        return self.outputs.named or {"predictions": self.predictions}

    @property
    def probabilities(self) -> np.ndarray | None:
        """The array that stands beside the labels: under `auto`, for classifiers only."""
        return self.outputs.probabilities if self.output == "auto" else None


class Request(Protocol[Out_co]):
    """One request of one protocol."""

    def decode(self, loaded: Loaded) -> Decoded:
        """Checks the request against the version's schema. Raises BadRequest."""
        ...

    @property
    def size(self) -> int:
        """Bytes of what must be decoded."""
        ...

    def decode_at_once(self, loaded: Loaded) -> Decoded | None:
        """What `decode` returns, if it is sure to take milliseconds only though the request is large; else None."""
        ...

    def decode_slices(self, loaded: Loaded, pace: Callable[[], None]) -> Decoded:
        """What `decode` returns, in a thread and a slice at a time; `pace` is called in between, and may raise."""
        ...

    @property
    def may_hurry(self) -> bool:
        """Whether it may ask for another priority than the normal one; cheap, and right unless it is False."""
        ...

    def encode(self, answer: Answer) -> Out_co:
        """The answer in the protocol's shape."""
        ...


@dataclass(slots=True)
class Reply(Generic[Out]):
    """An encoded answer, the version that gave it, the seconds of each of `STAGES`, how rows were completed, and what
    the response cache did (`hit`, `miss`, or nothing)."""

    payload: Out
    version: str
    stages: tuple[float, float, float, float]
    features: str = ""
    cache: str = ""
